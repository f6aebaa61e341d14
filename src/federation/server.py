"""What the server of a job runs beside FLARE's own: the record of who took part."""

import json
import threading
import time
from math import inf
from pathlib import Path

from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.app_common.app_constant import AppConstants
from nvflare.app_common.app_event_type import AppEventType
from nvflare.widgets.widget import Widget

from src.federation.flare_2_9 import LOSS_IS_NOTED, SITE_IS_BACK
from src.federation.reasons import said_reason

RECORD, LOOK_SECONDS = "course_record.jsonl", 0.5
LOST = "its process has ended; often a lack of memory"
GONE = "the server has lost it: its process, its machine or its line"
EVENTS = {
    EventType.START_RUN: "run started",
    AppEventType.INITIAL_MODEL_LOADED: "initial model loaded",
    AppEventType.ROUND_STARTED: "round started",
    AppEventType.BEFORE_AGGREGATION: "all answers in",
    AppEventType.AFTER_LEARNABLE_PERSIST: "model saved",
    AppEventType.GLOBAL_BEST_MODEL_AVAILABLE: "best model",
    AppEventType.CROSS_VAL_INIT: "final validation",
    EventType.END_RUN: "run ended",
}


class RunRecorder(Widget):
    """Writes what happened on the server, and when, as one JSON object a line, and ends a run that too many sites have left.

    ``course_record.jsonl`` is in the job's run folder. A line has ``time`` (seconds since the epoch), ``event`` and ``round``, an
    answer also ``site``, ``accepted`` and ``reason``. For the arguments see :func:`src.federation.recipes.add_record`.
    """

    def __init__(self, min_clients: int, round_timeout: float | None = None):
        super().__init__()
        self.min_clients, self.round_timeout = min_clients, round_timeout
        self._ended, self._deadline = threading.Event(), inf
        self._file = self._round = self._rounds = None
        self._answered: set[str] = set()  # in this round
        self._failed: dict[str, str] = {}  # in this round
        self._lost: dict[str, str] = {}  # until it is back
        self._expected: set[str] = set()  # of those, who is on the way

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
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
        if event_type in EVENTS:
            self._write(EVENTS[event_type], rounds=self._rounds)
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
        if everyone - len(self._failed) < self.min_clients:
            causes = "; ".join(f"{name}: {why}" for name, why in self._failed.items())
            self.system_panic(f"round {(self._round or 0) + 1} needs {self.min_clients} site(s). {causes}", fl_ctx)

    def _watch(self, engine, job_id: str) -> None:
        """Report, as FLARE would, each site whose process was there and is not, or that has not answered in time."""
        # In a real federation a site's process has no connection to this one: none is seen, and FLARE says who is lost.
        seen, told = set(), set()
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
                        if site not in seen and (not runner.current_wf or (site, id(runner.current_wf)) in told):
                            continue
                        told.add((site, id(runner.current_wf)))
                    elif site not in self._failed:
                        reason = f"it did not answer within round_timeout, {self.round_timeout:g} s"
                        self._write("answer", site=site, accepted=False, reason=reason, samples=None)
                        self._fail(site, reason, fl_ctx)
                    # At each look: FLARE takes a site that asks for work as alive again.
                    runner.handle_dead_job(site, fl_ctx)

    def _write(self, event: str, **more) -> None:
        with self._file.open("a") as file:
            file.write(json.dumps({"time": time.time(), "event": event, "round": self._round, **more}) + "\n")
