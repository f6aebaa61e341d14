"""What the course adds to a recipe on the server: how it is written into the job, and what the record notices by itself."""

import json
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import FLContextKey, ReservedKey, ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import make_reply
from nvflare.app_common.app_constant import AppConstants
from nvflare.app_common.app_event_type import AppEventType
from src.mednist.recipe import recipe
from src.prostate.recipe import learner_recipe

from src.common.errors import CourseError
from src.common.task import tasks
from src.federation import server
from src.federation.flare_2_9 import LOSS_IS_NOTED, SITE_IS_BACK
from src.federation.server import RECORD, RunRecorder
from src.federation.site import REASON
from src.mednist.card import Settings

# -- in the job --------------------------------------------------------------------------------------------------------


def configuration(made, folder: Path, side: str) -> dict:
    made.export(job_dir=str(folder))
    (file,) = folder.glob(f"*/app/config/config_fed_{side}.json")
    return json.loads(file.read_text())


def arguments(config: dict, name: str) -> dict:
    """Arguments of the component or workflow of this class."""
    (found,) = [one for one in config["components"] + config["workflows"] if one["path"].endswith(f".{name}")]
    return found["args"]


def test_a_recipe_has_all_that_the_course_adds(tmp_path):
    config = configuration(recipe(4, Settings(rounds=6)), tmp_path, "server")
    fedavg = arguments(config, "FedAvg")
    assert (fedavg["num_clients"], fedavg["num_rounds"]) == (4, 6)
    assert fedavg["aggregator"]["path"] == "src.federation.aggregation.SampleWeightedMean"
    assert arguments(config, "RunRecorder") == {"at_least": 4}
    selector = arguments(config, "IntimeModelSelector")
    assert selector.get("key_metric", "val_accuracy") == "val_accuracy"  # which is FLARE's default
    assert selector["weigh_by_local_iter"] is True
    assert arguments(config, "TBAnalyticsReceiver") and arguments(config, "CrossSiteModelEval")
    assert config["server"]["task_request_interval"] == server.ASK_SECONDS
    assert fedavg["task_check_period"] == server.SCRIPT_SECONDS
    assert config["dead_client_grace_period"] == 1.0


def test_the_learners_job_has_the_same_server(tmp_path):
    card = tasks()["prostate"]
    settings = card.room("card").Settings(rounds=4)
    script = configuration(card.room("recipe").recipe(3, settings), tmp_path / "script", "server")
    (tmp_path / "config").mkdir()
    learner = configuration(learner_recipe(tmp_path / "config", 3, settings), tmp_path / "learner", "server")
    for name in ("FedAvg", "CrossSiteModelEval", "RunRecorder", "IntimeModelSelector", "TBAnalyticsReceiver"):
        one, other = ({**arguments(config, name), "aggregation_weights": None} for config in (script, learner))
        assert one == other, name
    assert arguments(script, "IntimeModelSelector")["key_metric"] == card.key_metric


@pytest.mark.parametrize(
    ("at_least", "minimum", "ignores"), [(None, 3, None), (3, 3, None), (2, 2, True), (1, 1, True)]
)
def test_one_argument_says_how_many_sites_must_take_part(tmp_path, at_least, minimum, ignores):
    config = configuration(recipe(3, at_least=at_least), tmp_path, "server")
    assert arguments(config, "RunRecorder") == {"at_least": minimum}
    assert arguments(config, "FedAvg").get("ignore_result_error") is ignores
    assert json.loads((tmp_path / "mednist" / "meta.json").read_text())["min_clients"] == minimum


@pytest.mark.parametrize("at_least", [0, -1, 4])
def test_a_number_of_sites_that_makes_no_sense_is_refused(at_least):
    with pytest.raises(CourseError, match=f"at_least is {at_least}; the job asks 3"):
        recipe(3, at_least=at_least)


@pytest.mark.parametrize("card", tasks().values(), ids=lambda card: card.name)
def test_an_unknown_tracker_is_refused(card):
    with pytest.raises(CourseError, match=r"Unknown tracker 'excel'; choose tensorboard or mlflow\."):
        card.room("recipe").recipe(tracker="excel")


@pytest.mark.parametrize("card", tasks().values(), ids=lambda card: card.name)
def test_a_job_says_which_data_by_name_and_its_script_without_a_place(card, tmp_path):
    settings = card.room("card").Settings(data="shared-out", learning_rate=0.25)
    config = configuration(card.room("recipe").recipe(2, settings), tmp_path, "client")
    (executor,) = [one["executor"]["args"] for one in config["executors"]]
    assert executor["task_script_path"] == card.client
    assert type(settings).from_words(executor["task_script_args"].split(" ")) == settings


# -- the record --------------------------------------------------------------------------------------------------------


class Engine:
    """As much of FLARE's server as the record asks: which sites there are, and which are connected."""

    def __init__(self, folder, sites):
        self.connected = set(sites)
        self.sites = [SimpleNamespace(name=site) for site in sites]
        self.server = SimpleNamespace(cell=SimpleNamespace(is_cell_connected=lambda name: name in self.cells()))
        self.workspace = SimpleNamespace(get_run_dir=lambda job: str(folder))
        self.panics, self.dead, self.commands, self.synced = [], [], {}, 0
        controller = SimpleNamespace(aggregator=SimpleNamespace(refused={}, accepted={}))
        self.aggregator = controller.aggregator
        self.runner = SimpleNamespace(
            current_wf=SimpleNamespace(controller=controller),
            handle_dead_job=lambda site, fl_ctx: self.dead.append(site),
        )

    def register_app_command(self, topic, command):
        self.commands[topic] = command

    def sync_clients_from_main_process(self):
        self.synced += 1

    def cells(self):
        return {f"{site}.job-1" for site in self.connected}

    def get_clients(self):
        return self.sites

    def get_workspace(self):
        return self.workspace

    def fire_event(self, event_type, fl_ctx):
        if event_type == EventType.FATAL_SYSTEM_ERROR:
            self.panics.append(fl_ctx.get_prop(FLContextKey.EVENT_DATA))

    @contextmanager
    def new_context(self):
        context = FLContext()
        context.set_prop(ReservedKey.ENGINE, self, private=True, sticky=False)
        context.set_prop(ReservedKey.RUN_NUM, "job-1", private=True, sticky=False)
        context.set_prop(FLContextKey.RUNNER, self.runner, private=True, sticky=False)
        context.set_prop(AppConstants.NUM_ROUNDS, 3, private=True, sticky=False)
        yield context


class Server:
    """A record in a run that is made by hand."""

    def __init__(self, folder, sites, at_least, round_timeout=None):
        self.folder, self.engine = folder, Engine(folder, sites)
        self.recorder = RunRecorder(at_least, round_timeout)

    def event(self, name, **props):
        with self.engine.new_context() as context:
            for key, value in props.items():
                context.set_prop(getattr(AppConstants, key, key), value, private=True, sticky=False)
            self.recorder.handle_event(name, context)

    def start(self, number):
        self.event(AppEventType.ROUND_STARTED, CURRENT_ROUND=number)

    def answer(self, site, accepted=True, reply=None):
        with self.engine.new_context() as context:
            peer = FLContext()
            peer.set_prop(ReservedKey.IDENTITY_NAME, site, private=False, sticky=False)
            peer.set_prop(FLContextKey.SHAREABLE, reply, private=False, sticky=False)
            context.set_peer_context(peer)
            context.set_prop(AppConstants.AGGREGATION_ACCEPTED, accepted, private=True, sticky=False)
            self.recorder.handle_event(AppEventType.AFTER_CONTRIBUTION_ACCEPT, context)

    def kill(self, site):
        self.engine.connected.discard(site)
        self.wait_for(site)

    def wait_for(self, site):
        """Until the site has been reported as dead."""
        deadline = time.monotonic() + 5
        while site not in self.engine.dead and time.monotonic() < deadline:
            time.sleep(0.01)
        assert site in self.engine.dead

    @property
    def lines(self):
        return [json.loads(line) for line in (self.folder / RECORD).read_text().splitlines()]


@pytest.fixture
def a_run(tmp_path, monkeypatch):
    """``a_run(sites, at_least, round_timeout)``: a server in its first round, which has seen all sites."""
    monkeypatch.setattr(server, "LOOK_SECONDS", 0.01)
    started = []

    def start(sites, at_least, round_timeout=None):
        one = Server(tmp_path, sites, at_least, round_timeout)
        started.append(one)
        one.event(EventType.START_RUN)
        one.start(0)
        time.sleep(0.1)
        return one

    yield start
    for one in started:
        one.event(EventType.END_RUN)


def failed(why):
    return make_reply(ReturnCode.EXECUTION_EXCEPTION, headers={REASON: why})


def test_the_record_has_a_line_for_each_answer(a_run):
    one = a_run(["north", "south"], at_least=1)
    one.engine.aggregator.accepted["north"] = 12.0
    one.engine.aggregator.refused["south"] = "its number of samples is -1"
    one.answer("north")
    one.answer("south")  # FLARE takes it; the course's aggregator did not
    answers = [line for line in one.lines if line["event"] == "answer"]
    assert [(a["round"], a["site"], a["accepted"], a["reason"], a["samples"]) for a in answers] == [
        (0, "north", True, None, 12.0),
        (0, "south", False, "its number of samples is -1", None),
    ]
    assert [line["event"] for line in one.lines] == ["run started", "round started", "answer", "answer"]
    assert one.lines[1]["rounds"] == 3
    times = [line["time"] for line in one.lines]
    assert times == sorted(times) and abs(times[0] - time.time()) < 60
    assert one.engine.panics == []


def test_a_site_that_fails_ends_a_run_that_needs_all(a_run):
    one = a_run(["north", "south"], at_least=2)
    one.answer("north")
    one.answer("south", accepted=False, reply=failed("an image cannot be read"))
    assert one.engine.panics == ["round 1 needs 2 site(s). south: an image cannot be read"]


def test_a_run_goes_on_as_long_as_enough_are_left_in_each_round(a_run):
    one = a_run(["a", "b", "c"], at_least=2)
    for number, site in enumerate(("a", "b", "c")):
        one.start(number)
        one.answer(site, accepted=False, reply=failed("NaN"))
    assert one.engine.panics == [], "one failed in each round"
    one.answer("a", accepted=False, reply=failed("no memory"))
    assert one.engine.panics == ["round 3 needs 2 site(s). c: NaN; a: no memory"]


def test_a_process_that_has_ended_is_noticed_once_and_told_to_every_workflow(a_run):
    one = a_run(["north", "south"], at_least=1)
    one.kill("south")
    time.sleep(0.05)
    assert [line["site"] for line in one.lines if line["event"] == "site lost"] == ["south"]
    assert len(one.engine.dead) > 1, "the next workflow has a list of its own"
    assert one.engine.panics == []


def test_a_site_that_is_gone_counts_as_missing_in_all_later_rounds(a_run):
    one = a_run(["a", "b", "c"], at_least=2)
    one.kill("a")
    one.start(1)
    one.answer("b")
    assert one.engine.panics == []
    one.answer("c", accepted=False, reply=failed("NaN"))
    assert one.engine.panics == ["round 2 needs 2 site(s). a: its process has ended; often a lack of memory; c: NaN"]


def test_a_round_goes_on_without_a_site_that_is_late_and_the_next_one_asks_it_again(a_run):
    one = a_run(["a", "b", "c"], at_least=2, round_timeout=0.4)
    one.answer("a")
    one.answer("b")
    one.wait_for("c")
    late = [(line["site"], line["reason"]) for line in one.lines if line["event"] == "answer" and not line["accepted"]]
    assert late == [("c", "it did not answer within round_timeout, 0.4 s")]
    one.event(AppEventType.BEFORE_AGGREGATION)
    one.start(1)
    one.answer("a", accepted=False, reply=failed("NaN"))
    assert one.engine.panics == [], "c is not counted as missing in this round"
    one.answer("b")
    one.answer("c")
    one.event(AppEventType.BEFORE_AGGREGATION)
    written = len(one.lines)
    time.sleep(0.6)
    assert len(one.lines) == written, "no clock runs between two rounds"


def test_a_round_that_every_site_misses_names_the_argument(a_run):
    one = a_run(["a", "b"], at_least=1, round_timeout=0.2)
    one.wait_for("b")
    assert one.engine.panics == [
        "round 1 needs 1 site(s). a: it did not answer within round_timeout, 0.2 s; "
        "b: it did not answer within round_timeout, 0.2 s"
    ]


@pytest.mark.parametrize("seconds", [0, -1, float("nan")])
def test_a_time_that_makes_no_sense_is_refused(seconds):
    with pytest.raises(CourseError, match=f"round_timeout is {seconds}; give a number of seconds above 0"):
        recipe(3, round_timeout=seconds)


def test_the_time_travels_with_the_job(tmp_path):
    config = configuration(recipe(3, round_timeout=90.5), tmp_path, "server")
    assert arguments(config, "RunRecorder") == {"at_least": 3, "round_timeout": 90.5}
    assert arguments(config, "CrossSiteModelEval")["validation_timeout"] == 91


def test_a_site_that_flare_has_lost_and_found_is_both_in_the_record(tmp_path, monkeypatch):
    """In a real federation, where it is not this process that sees the sites' connections."""
    monkeypatch.setattr(server, "LOOK_SECONDS", 0.01)
    one = Server(tmp_path, ["a", "b", "c"], at_least=2)
    one.engine.connected.clear()
    one.event(EventType.START_RUN)
    one.start(0)
    one.event(EventType.CLIENT_DISCONNECTED, **{FLContextKey.DISCONNECTED_CLIENT_NAME: "a"})
    one.event(EventType.CLIENT_DISCONNECTED, **{FLContextKey.DISCONNECTED_CLIENT_NAME: "a"})
    one.start(1)
    time.sleep(0.1)
    one.event(EventType.CLIENT_RECONNECTED, **{FLContextKey.RECONNECTED_CLIENT_NAME: "a"})
    assert one.engine.dead == ["a"], "once for each workflow"
    lines = [(e["event"], e["site"], e["round"], e.get("reason")) for e in one.lines if e["event"].startswith("site")]
    assert lines == [("site lost", "a", 0, server.GONE), ("site back", "a", 1, None)]
    one.start(2)
    one.event(EventType.CLIENT_DISCONNECTED, **{FLContextKey.DISCONNECTED_CLIENT_NAME: "b"})
    assert one.engine.panics == [], "a counts again"
    one.event(EventType.CLIENT_DISCONNECTED, **{FLContextKey.DISCONNECTED_CLIENT_NAME: "c"})
    assert one.engine.panics == [f"round 3 needs 2 site(s). b: {server.GONE}; c: {server.GONE}"]
    one.event(EventType.END_RUN)


def test_when_a_site_registers_anew_the_record_asks_who_its_sites_are(a_run):
    one = a_run(["north"], at_least=1)
    with one.engine.new_context() as context:
        ask = one.engine.commands[SITE_IS_BACK]
        assert ask(SITE_IS_BACK, {"site": "north"}, context) == {LOSS_IS_NOTED: False}
        one.event(EventType.CLIENT_DISCONNECTED, **{FLContextKey.DISCONNECTED_CLIENT_NAME: "north"})
        assert ask(SITE_IS_BACK, {"site": "north"}, context) == {LOSS_IS_NOTED: True}
    assert one.engine.synced == 2


def test_a_site_that_has_not_come_yet_is_not_lost(tmp_path, monkeypatch):
    monkeypatch.setattr(server, "LOOK_SECONDS", 0.01)
    one = Server(tmp_path, ["north", "south"], at_least=2)
    one.engine.connected = {"north"}
    one.event(EventType.START_RUN)
    time.sleep(0.1)
    one.event(EventType.END_RUN)
    assert [line["event"] for line in one.lines] == ["run started", "run ended"]


def test_when_the_run_ends_sites_may_go_and_the_watch_ends(a_run):
    one = a_run(["north"], at_least=1)
    one.event(EventType.ABOUT_TO_END_RUN)
    one.engine.connected.clear()
    time.sleep(0.1)
    assert [line["event"] for line in one.lines] == ["run started", "round started"]
    watches = [thread for thread in threading.enumerate() if thread.name == "site_watch"]
    assert not watches
