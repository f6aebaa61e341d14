"""What the record of a run notices and no run in the simulator shows: who is late, lost, on the way back."""

import json
import time
from contextlib import contextmanager
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import FLContextKey, ReservedKey, ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.app_common.abstract.fl_model import FLModel
from nvflare.app_common.app_constant import AppConstants
from nvflare.app_common.app_event_type import AppEventType
from nvflare.app_common.utils.fl_model_utils import FLModelUtils

from src.federation import server
from src.federation.flare_2_9 import LOSS_IS_NOTED, SITE_IS_BACK
from src.federation.reasons import LAST_WORDS, REASON, WITHOUT_STATE
from src.federation.server import RECORD, RunRecorder


class Server:
    """A record in its first round, with as much of FLARE's engine as it asks for. ``connected`` are the sites' processes."""

    def __init__(self, folder, sites, min_clients, round_timeout=None, connected=None, first_contact=600.0):
        self.folder, self.connected = folder, {*(sites if connected is None else connected)}
        self.engine, self.runner, self.panics = MagicMock(), MagicMock(), []
        self.engine.get_clients.return_value = [SimpleNamespace(name=site) for site in sites]
        self.engine.get_workspace().get_run_dir.return_value = str(folder)
        self.engine.server.cell.is_cell_connected = lambda cell: cell.removesuffix(".job-1") in self.connected
        self.engine.fire_event, self.engine.new_context = self._fire, self.context
        self.runner.current_wf.controller.aggregator = None
        self.recorder = RunRecorder(min_clients, round_timeout, first_contact)
        self.event(EventType.START_RUN)

    def _fire(self, event_type, fl_ctx):
        if event_type == EventType.FATAL_SYSTEM_ERROR:
            self.panics.append(fl_ctx.get_prop(FLContextKey.EVENT_DATA))

    @contextmanager
    def context(self, props=()):
        context = FLContext()
        of_a_run = {ReservedKey.ENGINE: self.engine, ReservedKey.RUN_NUM: "job-1", FLContextKey.RUNNER: self.runner}
        for key, value in {**of_a_run, AppConstants.NUM_ROUNDS: 3, **dict(props)}.items():
            context.set_prop(key, value, private=True, sticky=False)
        yield context

    def event(self, name, site=None, reply=None, **props):
        """Of the server's own, or one for which a site's process is the reason."""
        with self.context(props) as context:
            if site:
                context.set_peer_context(FLContext())
                for key, value in {ReservedKey.IDENTITY_NAME: site, FLContextKey.SHAREABLE: reply}.items():
                    context.get_peer_context().set_prop(key, value, private=False, sticky=False)
            self.recorder.handle_event(name, context)

    def start(self, number):
        self.event(AppEventType.ROUND_STARTED, **{AppConstants.CURRENT_ROUND: number})

    def answer(self, site, failed=None, said=None):
        code, accepted = ReturnCode.EXECUTION_EXCEPTION if failed else ReturnCode.OK, failed is None
        reply, event = make_reply(code, headers={REASON: failed or said}), AppEventType.AFTER_CONTRIBUTION_ACCEPT
        self.event(event, site, reply, **{AppConstants.AGGREGATION_ACCEPTED: accepted})

    def give(self, *sites):
        """A task for each, outside of rounds."""
        for site in sites:
            self.event(EventType.BEFORE_PROCESS_TASK_REQUEST, site)
            given = {FLContextKey.TASK_ID: f"task of {site}", FLContextKey.TASK_NAME: "fed_stats"}
            self.event(EventType.AFTER_TASK_DATA_FILTER, site, **given)

    def result(self, site, reply):
        given = {FLContextKey.TASK_ID: f"task of {site}", FLContextKey.TASK_RESULT: reply}
        self.event(EventType.BEFORE_PROCESS_SUBMISSION, site, **given)

    def dead(self):
        """Sites that FLARE was told are dead."""
        return [call.args[0] for call in self.runner.handle_dead_job.call_args_list]

    def wait_for(self, site):
        """Until the site has been reported as dead, and the clock has looked some times more."""
        deadline = time.monotonic() + 5
        while site not in self.dead():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(0.05)

    def lines(self, *events):
        found = [json.loads(line) for line in (self.folder / RECORD).read_text().splitlines()]
        return [line for line in found if line["event"] in events or not events]


@pytest.fixture
def a_run(tmp_path, monkeypatch):
    """``a_run(sites, min_clients, ...)``: a server in its first round, which has seen who is connected."""
    monkeypatch.setattr(server, "LOOK_SECONDS", 0.01)
    started = []

    def start(*args, **options):
        started.append(Server(tmp_path, *args, **options))
        started[0].start(0)
        time.sleep(0.1)
        return started[0]

    yield start
    started[0].event(EventType.END_RUN)


def test_a_run_goes_on_as_long_as_enough_are_left_in_each_round_of_those_that_are_not_gone(a_run):
    one = a_run(["a", "b", "c", "d"], 2)
    for number, site in enumerate(("a", "b", "c")):
        one.start(number)
        one.answer(site, failed="NaN")
    one.answer("b", failed="NaN")
    assert one.panics == [], "two failed in the last round"
    one.connected.discard("a")
    one.wait_for("a")
    assert one.panics == [f"round 3 needs 2 site(s). c: NaN; b: NaN; a: {server.LOST}"]
    assert [line["site"] for line in one.lines("site lost")] == ["a"]
    assert len(one.dead()) > 1, "the next workflow has a list of its own"
    one.start(3)
    one.answer("b", failed="NaN")
    assert one.panics[1:] == []
    one.answer("c", failed="no memory")
    assert one.panics[1:] == [f"round 4 needs 2 site(s). a: {server.LOST}; b: NaN; c: no memory"]


def test_a_round_goes_on_without_a_site_that_is_late_and_the_next_one_asks_it_again(a_run):
    one = a_run(["a", "b", "c"], 2, round_timeout=0.4)
    one.answer("a")
    one.answer("b")
    one.wait_for("c")
    late = [(line["site"], line["reason"]) for line in one.lines("answer") if not line["accepted"]]
    assert late == [("c", "it did not answer within round_timeout, 0.4 s")]
    one.event(AppEventType.BEFORE_AGGREGATION)
    one.start(1)
    one.answer("a", failed="NaN")
    assert one.panics == [], "c is not counted as missing in this round"
    one.answer("b")
    one.answer("c")
    one.event(AppEventType.BEFORE_AGGREGATION)
    written = len(one.lines())
    time.sleep(0.6)
    assert len(one.lines()) == written, "no clock runs between two rounds"


def test_a_site_that_flare_has_lost_and_found_is_both_in_the_record(a_run):
    """In a real federation, where it is not this process that sees the sites' connections."""
    one = a_run(["a", "b", "c"], 2, connected=())
    lost, back = FLContextKey.DISCONNECTED_CLIENT_NAME, FLContextKey.RECONNECTED_CLIENT_NAME
    ask = one.engine.register_app_command.call_args.args[1]
    with one.context() as context:
        assert ask(SITE_IS_BACK, {"site": "a"}, context) == {LOSS_IS_NOTED: False}
        one.event(EventType.CLIENT_DISCONNECTED, **{lost: "a"})
        one.event(EventType.CLIENT_DISCONNECTED, **{lost: "a"})
        assert ask(SITE_IS_BACK, {"site": "a"}, context) == {LOSS_IS_NOTED: True}
    assert one.engine.sync_clients_from_main_process.call_count == 2, "a site that registers anew is asked for"
    one.start(1)
    one.event(EventType.CLIENT_RECONNECTED, **{back: "a"})
    lines = [(e["event"], e["site"], e["round"], e.get("reason")) for e in one.lines("site lost", "site back")]
    assert lines == [("site lost", "a", 0, server.GONE), ("site back", "a", 1, None)]
    one.start(2)
    one.event(EventType.CLIENT_DISCONNECTED, **{lost: "b"})
    one.wait_for("b")
    assert one.dead() == ["b"], "once for each workflow"
    assert one.panics == [], "a counts again"
    one.event(EventType.CLIENT_DISCONNECTED, **{lost: "c"})
    assert one.panics == [f"round 3 needs 2 site(s). b: {server.GONE}; c: {server.GONE}"]


GOOD, BAD = Shareable(), make_reply(ReturnCode.EXECUTION_RESULT_ERROR)
WORDS = FLModelUtils.to_shareable(FLModel(metrics={}, meta={REASON: "no memory"}))
LATE = "it did not answer within round_timeout, 0.4 s"


def test_a_task_without_rounds_as_of_statistics_is_watched_as_a_round_is(a_run):
    one = a_run(["a", "b", "c", "d", "e"], 2, round_timeout=0.4)
    one.event(EventType.START_WORKFLOW)
    one.give("a", "b", "c", "d")
    for site, reply in {"a": GOOD, "b": BAD, "c": WORDS}.items():
        one.result(site, reply)
        one.result(site, BAD)  # to a task that it has not got any more
        one.answer(site, failed="as a controller without rounds says too")
    assert one.panics == []
    one.wait_for("d")
    found = [(e["site"], e["accepted"], e["reason"], e["round"]) for e in one.lines("result")]
    said = {"b": "it answered with EXECUTION_RESULT_ERROR", "c": "no memory", "d": LATE}
    assert found == [("a", True, None, None), *[(site, False, words, None) for site, words in said.items()]]
    assert [e["site"] for e in one.lines("asked")] == ["a", "b", "c", "d"] and one.dead().count("e") == 0
    hear = one.engine.register_aux_message_handler.call_args.args[1]
    with one.context() as context:
        context.set_peer_context(SimpleNamespace(get_identity_name=lambda: "e"))
        hear(LAST_WORDS, {REASON: "an image cannot be read"}, context)
    causes = "; ".join(f"{site}: {words}" for site, words in {**said, "e": "an image cannot be read"}.items())
    assert one.panics == [f"the job needs 2 site(s). {causes}"]


def test_whoever_never_comes_is_lost_and_whoever_is_not_asked_is_not_late(a_run):
    one = a_run(["a", "b", "c"], 1, round_timeout=1.2, connected=(), first_contact=0.6)
    one.event(EventType.BEFORE_PROCESS_TASK_REQUEST, "a")
    one.give("b")
    one.wait_for("c")
    (lost,) = one.lines("site lost")
    assert (lost["site"], lost["reason"]) == ("c", server.NEVER_CAME) and one.panics == []
    one.event(EventType.BEFORE_PROCESS_TASK_REQUEST, "c")
    assert [e["site"] for e in one.lines("site back")] == ["c"]
    one.wait_for("b")
    assert "a" not in one.dead(), "it asked for work in this round, and got none"


def test_a_remark_beside_a_good_update_and_a_site_that_is_lost_again_and_again(a_run):
    one = a_run(["a", "b"], 1)
    for number in range(2):
        one.start(number)
        one.answer("a", said=WITHOUT_STATE)
    # Who has not trained before has no state to lack.
    assert [(e["accepted"], e["reason"]) for e in one.lines("answer")] == [(True, None), (True, WITHOUT_STATE)]
    for _ in range(3):
        one.event(EventType.CLIENT_DISCONNECTED, **{FLContextKey.DISCONNECTED_CLIENT_NAME: "b"})
        one.event(EventType.CLIENT_RECONNECTED, **{FLContextKey.RECONNECTED_CLIENT_NAME: "b"})
    reasons = [e["reason"] for e in one.lines("site lost")]
    assert reasons[:2] == [server.GONE] * 2 and "is its kit used on a second machine?" in reasons[2]
