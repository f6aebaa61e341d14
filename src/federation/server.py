"""What the server of a job runs beside FLARE's own: the record of who took part."""

import json
import threading
import time
from collections import Counter
from math import inf
from pathlib import Path

from nvflare.apis.dxo import MetaKey, from_shareable
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import FLContextKey, ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.app_common.app_constant import AppConstants
from nvflare.app_common.app_event_type import AppEventType
from nvflare.fuel.utils import fobs
from nvflare.widgets.widget import Widget

from src.federation.flare_2_9 import LOSS_IS_NOTED, SITE_IS_BACK
from src.federation.reasons import LAST_WORDS, REASON, WITHOUT_STATE, given_reason, meta_of, said_reason

RECORD, RECEIVED, LOOK_SECONDS, FIRST_CONTACT = "course_record.jsonl", "received", 0.5, 600.0
LOST = "its process has ended; often a lack of memory"
GONE = "the server has lost it: its process, its machine or its line"
NEVER_CAME = "its process never came: is its kit used on a second machine, or its network closed?"
EVENTS = {
    EventType.START_RUN: "run started",
    AppEventType.ROUND_STARTED: "round started",
    AppEventType.BEFORE_AGGREGATION: "all answers in",
    AppEventType.AFTER_LEARNABLE_PERSIST: "model saved",
    AppEventType.CROSS_VAL_INIT: "final validation",
    EventType.END_RUN: "run ended",
}


class RunRecorder(Widget):
    """Writes what happened on the server, and when, as one JSON object a line, and ends a run that too many sites have left.

    ``course_record.jsonl`` is in the job's run folder. A line has ``time`` (seconds since the epoch), ``event`` and ``round``, None
    where there is none. A site that is given a task is ``asked``; its ``answer``, or ``result`` outside of rounds, also has
    ``accepted`` and ``reason``. For the arguments see :func:`src.federation.recipes.add_record`."""

    def __init__(self, min_clients: int, round_timeout: float | None = None, first_contact: float = FIRST_CONTACT):
        super().__init__()
        self.min_clients, self.round_timeout, self.first_contact = min_clients, round_timeout, first_contact
        self._ended, self._deadline, self._contact = threading.Event(), inf, inf
        self._file = self._round = self._rounds = None
        self._begun, self._losses = 0.0, Counter()  # when this round did, or the workflow; how often each site was lost
        # By site: when it asked for work last; its task, and until when; why it failed in this round; why it is lost.
        self._heard, self._given, self._failed, self._lost = {}, {}, {}, {}
        # Who has trained; who has answered in this round; who is on the way back.
        self._trained, self._answered, self._expected = set(), set(), set()

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        prop, peer, now = fl_ctx.get_prop, fl_ctx.get_peer_context(), time.monotonic()
        site = peer and peer.get_identity_name()
        if event_type == EventType.START_RUN:
            engine, job_id = fl_ctx.get_engine(), fl_ctx.get_job_id()
            self._file = Path(engine.get_workspace().get_run_dir(job_id)) / RECORD
            self._contact = now + self.first_contact
            engine.register_app_command(SITE_IS_BACK, self._look_who_is_there)
            engine.register_aux_message_handler(LAST_WORDS, self._hear)
            threading.Thread(target=self._watch, args=(engine, job_id), name="site_watch", daemon=True).start()
        elif event_type in (EventType.ABOUT_TO_END_RUN, EventType.END_RUN):
            self._ended.set()
        if self._file is None:
            return
        if event_type in (AppEventType.ROUND_STARTED, EventType.START_WORKFLOW):  # whoever is not lost may fail anew
            in_rounds = event_type == AppEventType.ROUND_STARTED
            self._round, self._begun = prop(AppConstants.CURRENT_ROUND) if in_rounds else None, now
            self._deadline = now + ((in_rounds and self.round_timeout) or inf)
            self._answered, self._given, self._failed = set(), {}, dict(self._lost)
        elif event_type == AppEventType.BEFORE_AGGREGATION:
            self._deadline, self._given = inf, {}
        self._rounds = prop(AppConstants.NUM_ROUNDS) or self._rounds
        if event_type in EVENTS:
            self._write(EVENTS[event_type], rounds=self._rounds)
        elif event_type == EventType.FATAL_SYSTEM_ERROR:
            self._write("run stopped", reason=str(prop(FLContextKey.EVENT_DATA)))
        elif event_type == EventType.BEFORE_PROCESS_TASK_REQUEST:
            if self._lost.get(site) == NEVER_CAME:
                self._note_return(site)
            self._heard[site] = now
        elif event_type == EventType.AFTER_TASK_DATA_FILTER:
            self._given[site] = prop(FLContextKey.TASK_ID), now + (self.round_timeout or inf)
            self._write("asked", site=site, task=prop(FLContextKey.TASK_NAME))
        elif event_type == EventType.BEFORE_PROCESS_SUBMISSION:
            self._note_submission(site, fl_ctx)
        elif event_type == AppEventType.AFTER_CONTRIBUTION_ACCEPT and self._round is not None:
            self._note_answer(site, fl_ctx)
        elif event_type == EventType.CLIENT_DISCONNECTED:
            self._note_loss(prop(FLContextKey.DISCONNECTED_CLIENT_NAME), GONE, fl_ctx)
        elif event_type == EventType.CLIENT_RECONNECTED:
            self._note_return(prop(FLContextKey.RECONNECTED_CLIENT_NAME))

    def _look_who_is_there(self, topic: str, data: dict, fl_ctx: FLContext) -> dict:
        """Note a loss, where there is a ``reason``; else ask the server who this job's sites are, for one has registered anew."""
        site = data["site"]
        if "reason" in data:
            self._lost.pop(site, None)  # this is the better reason
            self._note_loss(site, data["reason"], fl_ctx)
        else:
            self._expected.add(site)
            fl_ctx.get_engine().sync_clients_from_main_process()
        return {LOSS_IS_NOTED: site in self._lost}

    def _hear(self, topic: str, request: Shareable, fl_ctx: FLContext) -> Shareable:
        self._note_loss(fl_ctx.get_peer_context().get_identity_name(), request[REASON], fl_ctx)
        return make_reply(ReturnCode.OK)

    def _note_return(self, site: str) -> None:
        self._lost.pop(site, None)
        self._failed.pop(site, None)
        self._expected.discard(site)
        self._write("site back", site=site)

    def _note_loss(self, site: str, reason: str, fl_ctx: FLContext) -> None:
        if site not in self._lost:
            self._losses[site] += 1
            often = f"; lost {self._losses[site]} times: is its kit used on a second machine?"
            self._lost[site] = reason = reason + often * (self._losses[site] > 2)
            self._write("site lost", site=site, reason=reason)
            self._fail(site, reason, fl_ctx)

    def _note_submission(self, site: str, fl_ctx: FLContext) -> None:
        """Note what no aggregator judges: an answer outside of a round, and one that failed."""
        answer = fl_ctx.get_prop(FLContextKey.TASK_RESULT)
        if self._given.get(site, (None, 0.0))[0] != fl_ctx.get_prop(FLContextKey.TASK_ID):
            return  # to a task of a round that went on without it
        del self._given[site]
        given = given_reason(answer)
        well = answer.get_return_code() in (ReturnCode.OK, ReturnCode.EARLY_TERMINATION)
        accepted = well and not (given and not from_shareable(answer).data)
        if self._round is None or not accepted:
            self._note(site, accepted, given if accepted else said_reason(answer), fl_ctx)

    def _note_answer(self, site: str, fl_ctx: FLContext) -> None:
        answer = fl_ctx.get_peer_context().get_prop(FLContextKey.SHAREABLE)
        aggregator = getattr(fl_ctx.get_prop(FLContextKey.RUNNER).current_wf.controller, "aggregator", None)
        refused = getattr(aggregator, "refused", {}).get(site)
        accepted = refused is None and bool(fl_ctx.get_prop(AppConstants.AGGREGATION_ACCEPTED))
        reason = given_reason(answer) if accepted else refused or said_reason(answer)
        samples = meta_of(answer).get(MetaKey.NUM_STEPS_CURRENT_ROUND) if accepted else None
        self._note(site, accepted, reason, fl_ctx, samples)

    def _note(self, site: str, accepted: bool, reason: str | None, fl_ctx: FLContext, samples=None) -> None:
        if self._round is not None and site in self._answered:
            return  # it failed, and that is noted
        if accepted and reason == WITHOUT_STATE and site not in self._trained:
            reason = None  # it begins, and has none to lack
        self._answered.add(site)
        self._trained |= {site} if accepted else set()
        kind = "result" if self._round is None else "answer"
        self._write(kind, site=site, accepted=accepted, reason=reason, samples=samples)
        if not accepted:
            self._fail(site, reason, fl_ctx)

    def _fail(self, site: str, reason: str, fl_ctx: FLContext) -> None:
        self._failed[site] = reason
        everyone = len(fl_ctx.get_engine().get_clients())
        if everyone - len(self._failed) < self.min_clients:
            causes = "; ".join(f"{name}: {why}" for name, why in self._failed.items())
            where = "the job" if self._round is None else f"round {self._round + 1}"
            self.system_panic(f"{where} needs {self.min_clients} site(s). {causes}", fl_ctx)

    def _is_late(self, site: str, now: float) -> bool:
        # Of those without a task, who has asked for work in this round was not given any.
        waited_for = site not in self._answered and self._heard.get(site, 0.0) < self._begun
        return now > (self._given[site][1] if site in self._given else self._deadline if waited_for else inf)

    def _watch(self, engine, job_id: str) -> None:
        """Report, as FLARE would, each site whose process was there and is not, or that has not answered in time."""
        # In a real federation a site's process has no connection to this one: none is seen, and FLARE says who is lost.
        seen, told = set(), set()
        while not self._ended.wait(LOOK_SECONDS):
            for site in sorted(client.name for client in engine.get_clients()):
                here = engine.server.cell.is_cell_connected(f"{site}.{job_id}")
                seen |= {site} if here else set()
                gone = not here and (site in seen or site in self._lost.keys() - self._expected)
                absent = time.monotonic() > self._contact and site not in self._heard
                late = self._is_late(site, time.monotonic())
                if not (gone or absent or late) or self._ended.is_set():
                    continue
                with engine.new_context() as fl_ctx:
                    runner = fl_ctx.get_prop(FLContextKey.RUNNER)
                    if gone or absent:
                        self._note_loss(site, LOST if gone else NEVER_CAME, fl_ctx)
                        # Each workflow has a list of its own: that of the rounds, then that of the final validation.
                        if site not in seen and (not runner.current_wf or (site, id(runner.current_wf)) in told):
                            continue
                        told.add((site, id(runner.current_wf)))
                    elif site not in self._failed:
                        reason = f"it did not answer within round_timeout, {self.round_timeout:g} s"
                        self._note(site, False, reason, fl_ctx)
                    # At each look: FLARE takes a site that asks for work as alive again.
                    runner.handle_dead_job(site, fl_ctx)

    def _write(self, event: str, **more) -> None:
        with self._file.open("a") as file:
            file.write(json.dumps({"time": time.time(), "event": event, "round": self._round, **more}) + "\n")


class KeepReceived(Widget):
    """Writes each site's last update to ``received/<site>.fobs`` in the run folder, in FLARE's format and as it came, before any
    filter of the server's. Every server can do so, and no site notices."""

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        if event_type == EventType.BEFORE_TASK_RESULT_FILTER and fl_ctx.get_prop(FLContextKey.TASK_NAME) == "train":
            folder = Path(fl_ctx.get_engine().get_workspace().get_run_dir(fl_ctx.get_job_id())) / RECEIVED
            folder.mkdir(exist_ok=True)
            site, answer = fl_ctx.get_peer_context().get_identity_name(), fl_ctx.get_prop(FLContextKey.TASK_RESULT)
            (folder / f"{site}.fobs").write_bytes(fobs.dumps(answer))
