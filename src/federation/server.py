"""What the course adds to a recipe on the server, one function each: the record of who took part, and a quicker pace."""

import json
import threading
import time
from math import ceil, inf
from pathlib import Path
from typing import ClassVar

from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.app_common.abstract.fl_model import FLModel
from nvflare.app_common.app_constant import AlgorithmConstants, AppConstants
from nvflare.app_common.app_event_type import AppEventType
from nvflare.app_common.workflows.scaffold import Scaffold
from nvflare.recipe.spec import Recipe
from nvflare.recipe.utils import add_experiment_tracking, add_final_global_evaluation
from nvflare.widgets.widget import Widget

from src.common.errors import CourseError
from src.federation.flare_2_9 import LOSS_IS_NOTED, SITE_IS_BACK
from src.federation.site import SCRIPT_SECONDS, said_reason

RECORD = "course_record.jsonl"
LOOK_SECONDS = 0.5
ASK_SECONDS = 0.1
LOST = "its process has ended; often a lack of memory"
GONE = "the server has lost it: its process, its machine or its line"


def add_everything(
    recipe: Recipe,
    at_least: int | None = None,
    tracker: str = "tensorboard",
    round_timeout: float | None = None,
    final_evaluation: bool = True,
) -> Recipe:
    """All that the course adds to a recipe beside its aggregator; what notebook 02 switches on line by line.

    Args:
        recipe: of a PyTorch model, before it is executed.
        at_least: see :func:`add_record`.
        round_timeout: see :func:`add_record`; the final validation waits as long.
        tracker: where the server writes the sites' curves: ``tensorboard`` or ``mlflow``.
        final_evaluation: let every site validate the final model; not where FLARE's ``add_cross_site_evaluation`` follows.

    Raises:
        CourseError: for an unknown tracker.
    """
    if tracker not in ("tensorboard", "mlflow"):
        raise CourseError(f"Unknown tracker {tracker!r}; choose tensorboard or mlflow.")
    add_record(recipe, at_least, round_timeout)
    add_experiment_tracking(recipe, tracker)
    if final_evaluation:
        add_final_global_evaluation(recipe, **({"validation_timeout": ceil(round_timeout)} if round_timeout else {}))
    weigh_selection(recipe)
    add_quick_pace(recipe)
    forget_script_folder(recipe)
    return recipe


def add_record(recipe: Recipe, at_least: int | None = None, round_timeout: float | None = None) -> None:
    """Keep a record of who took part, and say what happens when a site fails.

    FLARE's ``MetricsArtifactWriter``, which every recipe has, writes down the metrics of the updates that were accepted. The
    record also holds what was not: refused updates, sites that failed and sites that are gone, with reasons and times. And FLARE's
    simulator has no heartbeat: a site whose process was killed is waited for without end. The record notices.

    Args:
        recipe: of any kind, before it is executed.
        at_least: a round goes on without the others as long as so many sites take part. By default all must: the first site that
            fails ends the run, with an error that names it.
        round_timeout: seconds after which a round goes on without the sites that have not answered, which counts as a failure of
            theirs in this round. By default a round waits for a site as long as its process is there.

    Raises:
        CourseError: if ``at_least`` is not between 1 and the number of sites, or ``round_timeout`` is not positive.
    """
    if round_timeout is not None and not round_timeout > 0:
        raise CourseError(f"round_timeout is {round_timeout}; give a number of seconds above 0, or None.")
    job, server = recipe._job, recipe._job._deploy_map["server"]
    everyone = job.job.min_clients
    at_least = everyone if at_least is None else at_least
    if not 1 <= at_least <= everyone:
        raise CourseError(f"at_least is {at_least}; the job asks {everyone} site(s), so give a number from 1 to that.")
    job.job.min_clients = at_least
    if at_least < everyone:  # FLARE would end the run at the first site that answers with an error
        server.app_config.workflows[0].controller._ignore_result_error = True
    job.to_server(RunRecorder(at_least, round_timeout), id="recorder")
    # FLARE waits 60 s for a site that is gone to come back, and does not count one as gone in a task's first 30 s.
    recipe.add_server_config({"dead_client_grace_period": 1.0, "dead_client_check_lead_time": 2.0})


def add_quick_pace(recipe: Recipe) -> None:
    """Let sites ask for work ten times a second, and the server look for answers, and for sites that are lost, fifty times.

    FLARE's sites ask every 2 s and its server looks every 0.5 s: right for hospitals, and a third of the time of a course's run.
    """
    for workflow in recipe._job._deploy_map["server"].app_config.workflows:
        workflow.controller._task_check_period = SCRIPT_SECONDS
    recipe.add_server_config({"server": {"task_request_interval": ASK_SECONDS}})


def weigh_selection(recipe: Recipe) -> None:
    """Let FLARE's model selector weigh the sites' metrics by their number of samples, as the average does; else all count alike."""
    recipe._job._deploy_map["server"].app_config.components["model_selector"].weigh_by_local_iter = True


def forget_script_folder(recipe: Recipe) -> None:
    """Let a site look for the training script in the job by its name alone, also where the recipe was given a whole path.

    FLARE writes ``train_script`` into the job as it was given, and a site then looks for a whole path on its own disk.
    """
    recipe._ensure_client_apps_prepared()
    for app in recipe._job._deploy_map.values():
        for entry in getattr(app.app_config, "executors", ()):
            if script := getattr(entry.executor, "_task_script_path", None):
                entry.executor._task_script_path = Path(script).name


def use_installed_code(recipe: Recipe) -> None:
    """Carry no code of the course in the job: server and sites have installed it, a version that they have reviewed.

    For a recipe without a script of its own, such as one with a ``LearnerExecutor``: a script always travels with the job.
    """
    recipe._job.set_app_packages([__name__.split(".")[0]])


class RecordedScaffold(Scaffold):
    """FLARE's SCAFFOLD with what its FedAvg has: an event at the start of each round, and checkpoints that can be read back.

    FLARE's keeps the control terms, which it sends to the sites, in the model's ``meta``. Its persistor writes them into the
    checkpoint as NumPy arrays, and then refuses to read any but tensors.
    """

    def sample_clients(self, num_clients: int | None = None) -> list[str]:
        """Who takes part in the round that starts now."""
        self.set_fl_context(self.model)
        self.event(AppEventType.ROUND_STARTED)
        return super().sample_clients(num_clients)

    def send_model_and_wait(self, **options) -> list[FLModel]:
        """The sites' answers; the terms have then done their work."""
        answers = super().send_model_and_wait(**options)
        self.model.meta.pop(AlgorithmConstants.SCAFFOLD_CTRL_GLOBAL, None)
        return answers

    def save_model(self, model: FLModel) -> None:
        """Save the model without the terms."""
        model.meta.pop(AlgorithmConstants.SCAFFOLD_CTRL_DIFF, None)
        super().save_model(model)


class RunRecorder(Widget):
    """Writes what happened on the server, and when, as one JSON object a line, and ends a run that too many sites have left.

    The file is ``course_record.jsonl`` in the job's run folder on the server. Every line has ``time`` (seconds since
    the epoch), ``event`` and ``round``; lines about a site's answer also have ``site``, ``accepted`` and ``reason``. A site of a
    real federation that was lost and is there again is ``site lost``, then ``site back``.

    Args:
        at_least: so many sites must take part in every round.
        round_timeout: seconds that a round waits for its sites; None waits as long as their processes are there.
    """

    EVENTS: ClassVar = {
        EventType.START_RUN: "run started",
        AppEventType.INITIAL_MODEL_LOADED: "initial model loaded",
        AppEventType.ROUND_STARTED: "round started",
        AppEventType.BEFORE_AGGREGATION: "all answers in",
        AppEventType.AFTER_LEARNABLE_PERSIST: "model saved",
        AppEventType.GLOBAL_BEST_MODEL_AVAILABLE: "best model",
        AppEventType.CROSS_VAL_INIT: "final validation",
        EventType.END_RUN: "run ended",
    }

    def __init__(self, at_least: int, round_timeout: float | None = None):
        super().__init__()
        self.at_least, self.round_timeout = at_least, round_timeout
        self._file: Path | None = None
        self._ended = threading.Event()
        self._round = self._rounds = None
        self._deadline = inf
        self._answered: set[str] = set()  # in this round
        self._failed: dict[str, str] = {}  # in this round
        self._lost: dict[str, str] = {}  # until it is back
        self._expected: set[str] = set()  # of those, who is on the way

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Append one line for each event of interest."""
        if event_type == EventType.START_RUN:
            engine, job_id = fl_ctx.get_engine(), fl_ctx.get_job_id()
            self._file = Path(engine.get_workspace().get_run_dir(job_id)) / RECORD
            engine.register_app_command(SITE_IS_BACK, self._look_who_is_there)
            threading.Thread(target=self._watch, args=(engine, job_id), name="site_watch", daemon=True).start()
        elif event_type in (EventType.ABOUT_TO_END_RUN, EventType.END_RUN):
            self._ended.set()
        if self._file is None:
            return
        if event_type == AppEventType.ROUND_STARTED:
            self._round, self._failed = fl_ctx.get_prop(AppConstants.CURRENT_ROUND), dict(self._lost)
            self._answered, self._deadline = set(), time.monotonic() + (self.round_timeout or inf)
        elif event_type == AppEventType.BEFORE_AGGREGATION:
            self._deadline = inf
        self._rounds = fl_ctx.get_prop(AppConstants.NUM_ROUNDS) or self._rounds
        if event_type in self.EVENTS:
            self._write(self.EVENTS[event_type], rounds=self._rounds)
        elif event_type == AppEventType.AFTER_CONTRIBUTION_ACCEPT:
            self._note_answer(fl_ctx)
        elif event_type == EventType.CLIENT_DISCONNECTED:
            self._note_loss(fl_ctx.get_prop(FLContextKey.DISCONNECTED_CLIENT_NAME), GONE, fl_ctx)
        elif event_type == EventType.CLIENT_RECONNECTED:
            site = fl_ctx.get_prop(FLContextKey.RECONNECTED_CLIENT_NAME)
            self._lost.pop(site, None)
            self._failed.pop(site, None)
            self._expected.discard(site)
            self._write("site back", site=site)

    def _look_who_is_there(self, topic: str, data: dict, fl_ctx: FLContext) -> dict:
        """Ask the server who this job's sites are: one has registered anew. Says whether its loss has been noted."""
        self._expected.add(data["site"])
        fl_ctx.get_engine().sync_clients_from_main_process()
        return {LOSS_IS_NOTED: data["site"] in self._lost}

    def _note_loss(self, site: str, reason: str, fl_ctx: FLContext) -> None:
        if site not in self._lost:
            self._lost[site] = reason
            self._write("site lost", site=site, reason=reason)
            self._fail(site, reason, fl_ctx)

    def _note_answer(self, fl_ctx: FLContext) -> None:
        site = fl_ctx.get_peer_context().get_identity_name()
        aggregator = getattr(fl_ctx.get_prop(FLContextKey.RUNNER).current_wf.controller, "aggregator", None)
        reason = getattr(aggregator, "refused", {}).get(site)
        if reason is None and not fl_ctx.get_prop(AppConstants.AGGREGATION_ACCEPTED):
            reason = said_reason(fl_ctx.get_peer_context().get_prop(FLContextKey.SHAREABLE))
        samples = getattr(aggregator, "accepted", {}).get(site)
        self._answered.add(site)
        self._write("answer", site=site, accepted=reason is None, reason=reason, samples=samples)
        if reason is not None:
            self._fail(site, reason, fl_ctx)

    def _fail(self, site: str, reason: str, fl_ctx: FLContext) -> None:
        self._failed[site] = reason
        everyone = len(fl_ctx.get_engine().get_clients())
        if everyone - len(self._failed) < self.at_least:
            causes = "; ".join(f"{name}: {why}" for name, why in self._failed.items())
            self.system_panic(f"round {(self._round or 0) + 1} needs {self.at_least} site(s). {causes}", fl_ctx)

    def _watch(self, engine, job_id: str) -> None:
        """Look whether each site's process that was there still is, and has answered in time; report others as FLARE would.

        In a real federation a site's process has no connection to this one, and FLARE says who is lost.
        """
        seen: set[str] = set()
        told: set[tuple[str, int]] = set()
        while not self._ended.wait(LOOK_SECONDS):
            for site in sorted(client.name for client in engine.get_clients()):
                here = engine.server.cell.is_cell_connected(f"{site}.{job_id}")
                seen |= {site} if here else set()
                gone = not here and (site in seen or site in self._lost.keys() - self._expected)
                late = time.monotonic() > self._deadline and site not in self._answered
                if not (gone or late) or self._ended.is_set():
                    continue
                with engine.new_context() as fl_ctx:
                    runner = fl_ctx.get_prop(FLContextKey.RUNNER)
                    if gone:
                        self._note_loss(site, LOST, fl_ctx)
                        # Each workflow has a list of its own: that of the rounds, then that of the final validation.
                        if site in seen or (runner.current_wf and (site, id(runner.current_wf)) not in told):
                            told.add((site, id(runner.current_wf)))
                            runner.handle_dead_job(site, fl_ctx)
                        continue
                    if site not in self._failed:
                        reason = f"it did not answer within round_timeout, {self.round_timeout:g} s"
                        self._write("answer", site=site, accepted=False, reason=reason, samples=None)
                        self._fail(site, reason, fl_ctx)
                    # At each look: FLARE takes a site that asks for work as alive again.
                    runner.handle_dead_job(site, fl_ctx)

    def _write(self, event: str, **more) -> None:
        with self._file.open("a") as file:
            file.write(json.dumps({"time": time.time(), "event": event, "round": self._round, **more}) + "\n")
