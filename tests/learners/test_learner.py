"""The learners, driven in this process by FLARE's own executor."""

import math

import numpy as np
import pytest
import torch
from ignite.engine import Events
from nvflare.apis.dxo import DXO, DataKind, MetaKey, from_shareable
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import FLContextKey, FLMetaKey, ReturnCode
from nvflare.apis.fl_context import FLContextManager
from nvflare.apis.signal import Signal
from nvflare.app_common.abstract.fl_model import ParamsType
from nvflare.app_common.app_constant import AppConstants
from nvflare.app_common.executors.learner_executor import LearnerExecutor
from nvflare.app_common.utils.fl_model_utils import FLModelUtils

from src.common.datalists import read_site
from src.common.engine import make_trainer, train_for
from src.common.errors import CourseError
from src.common.files import write_json
from src.federation.aggregation import SampleWeightedMean
from src.federation.local import train_locally
from src.federation.site import REASON, said_reason
from src.learners.supervised_learner import SupervisedLearner
from src.learners.supervised_monai_prostate_learner import SupervisedMonaiProstateLearner
from src.prostate.card import CARD, CONFIG_FILE, Settings
from src.prostate.training import evaluate, new_model
from src.prostate.transforms import prepare
from tests.tests_support import ball_case, through_the_door

CPU = torch.device("cpu")
PATIENT = "SURNAME_FIRSTNAME_1950"


pytestmark = pytest.mark.usefixtures("one_thread")


# -- a site without a server -------------------------------------------------------------------------------------------


class Engine:
    """As much of FLARE's engine as an executor and a streamed metric need."""

    def __init__(self, learner):
        self.learner = learner
        self.events = []

    def get_component(self, component_id):
        return self.learner

    def get_all_components(self):
        return {"learner": self.learner}

    def fire_event(self, event_type, fl_ctx):
        self.events.append((event_type, fl_ctx.get_prop(FLContextKey.EVENT_DATA)))


class Site:
    """A LearnerExecutor with its learner, outside of a run."""

    def __init__(self, learner, name="site-1", app_root=None):
        self.engine, self.learner = Engine(learner), learner
        self.contexts = FLContextManager(self.engine, name, "job", {}, {FLContextKey.APP_ROOT: app_root})
        self.executor = LearnerExecutor(learner_id="learner")
        self.signal = Signal()

    def do(self, task, weights, current_round=0):
        shareable = DXO(DataKind.WEIGHTS, data=weights).to_shareable()
        if current_round is not None:
            shareable.set_header(AppConstants.CURRENT_ROUND, current_round)
        with self.contexts.new_context() as fl_ctx:
            return self.executor.execute(task, shareable, fl_ctx, self.signal)

    def event(self, event_type):
        with self.contexts.new_context() as fl_ctx:
            self.executor.handle_event(event_type, fl_ctx)

    @property
    def streamed(self):
        return [from_shareable(data).data for event, data in self.engine.events if event == "analytix_log_stats"]


def numpy_weights(model):
    return {name: value.numpy().copy() for name, value in model.state_dict().items()}


def average(answers):
    """The server's half of a round: the average of the course's own aggregator."""
    mean = SampleWeightedMean()
    for number, answer in enumerate(answers):
        update = FLModelUtils.from_shareable(answer)
        update.meta["client_name"] = f"site-{number}"
        mean.accept_model(update)
    return mean.aggregate_model()


def next_weights(weights, answers):
    """The global model after a round."""
    change = average(answers).params
    return {name: weights[name] + change[name] for name in weights}


def assert_failed(answer, why):
    assert answer.get_return_code() == ReturnCode.EXECUTION_EXCEPTION
    assert answer.get_header(REASON) == said_reason(answer) == why


# -- what every supervised learner does --------------------------------------------------------------------------------


def line_batches(count, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return [
        {"image": torch.randn(4, 3, generator=draw), "label": torch.randn(4, 1, generator=draw)} for _ in range(count)
    ]


def line_trainer(batches, epochs=6, optimizer=torch.optim.SGD, **options):
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 1)
    loss = torch.nn.functional.mse_loss
    return make_trainer(model, batches, optimizer(model.parameters(), lr=0.1), loss, CPU, epochs=epochs, **options)


class LineLearner(SupervisedLearner):
    """The smallest learner: fits a line to the site's batches."""

    def __init__(self, batches, items=8, error=None, aggregation_epochs=2, **options):
        super().__init__(aggregation_epochs=aggregation_epochs)
        self.batches, self.items, self.error, self.options = batches, items, error, options

    def set_up(self, site, fl_ctx):
        if self.error:
            raise self.error
        self.trainer = line_trainer(self.batches, **self.options)
        self.training_items = self.items

    @torch.inference_mode()
    def evaluate(self, should_stop):
        model = self.trainer.network
        return {"fit": -float(torch.nn.functional.mse_loss(model(self.batches[0]["image"]), torch.ones(4, 1)))}


@pytest.fixture
def start():
    torch.manual_seed(0)
    return numpy_weights(torch.nn.Linear(3, 1))


def test_the_answer_is_the_difference_with_items_and_metrics_of_the_received_model(start):
    site = Site(LineLearner(line_batches(3), items=11))
    answer = site.do("train", start)
    assert answer.get_return_code() == ReturnCode.OK
    dxo = from_shareable(answer)
    assert dxo.data_kind == DataKind.WEIGHT_DIFF
    trained = numpy_weights(site.learner.trainer.network)
    for name, value in dxo.data.items():
        np.testing.assert_array_equal(value, trained[name] - start[name])
        assert np.abs(value).max() > 0
    model = FLModelUtils.from_shareable(answer)
    assert model.params_type == ParamsType.DIFF
    assert model.meta[FLMetaKey.NUM_STEPS_CURRENT_ROUND] == 11
    site.learner.trainer.network.load_state_dict({k: torch.from_numpy(v) for k, v in start.items()})
    assert model.metrics == {"fit": pytest.approx(site.learner.evaluate(None)["fit"])}
    assert dxo.meta[MetaKey.INITIAL_METRICS] == model.metrics  # where IntimeModelSelector looks


def test_one_site_is_its_own_training(start):
    batches = line_batches(3)
    site, weights = Site(LineLearner(batches, optimizer=torch.optim.AdamW)), start
    for number in range(3):
        weights = next_weights(weights, [site.do("train", weights, number)])
    alone = line_trainer(batches, optimizer=torch.optim.AdamW)
    train_for(alone, 6)
    for name, value in numpy_weights(alone.network).items():
        np.testing.assert_allclose(weights[name], value, rtol=1e-5, atol=1e-6)


def test_two_equal_sites_with_one_step_are_the_pooled_step(start):
    one, other = line_batches(1, seed=1)[0], line_batches(1, seed=2)[0]
    pooled = line_trainer([{key: torch.cat([one[key], other[key]]) for key in one}], epochs=1)
    train_for(pooled, 1)
    sites = [Site(LineLearner([batch], items=4, aggregation_epochs=1, epochs=1)) for batch in (one, other)]
    weights = next_weights(start, [site.do("train", start) for site in sites])
    for name, value in numpy_weights(pooled.network).items():
        np.testing.assert_allclose(weights[name], value, rtol=1e-5, atol=1e-6)


def test_validation_alone_answers_with_the_metrics_and_streams_nothing(start):
    """After the last round models come to be validated that belong to no round: ``current_round`` is missing."""
    site = Site(LineLearner(line_batches(1)))
    answer = site.do("validate", start, current_round=None)
    assert answer.get_return_code() == ReturnCode.OK
    model = FLModelUtils.from_shareable(answer)
    assert model.params is None
    assert model.metrics == {"fit": pytest.approx(site.learner.evaluate(None)["fit"])}
    assert site.streamed == []


def test_a_task_without_its_round_is_answered_and_raises_nothing(start):
    answer = Site(LineLearner(line_batches(1))).do("train", start, current_round=None)
    assert_failed(answer, "its software raised TypeError")


def test_curves_are_streamed_over_rounds_with_plain_text_tags(start):
    site = Site(LineLearner(line_batches(3)))
    site.do("train", start, current_round=0)
    site.do("train", start, current_round=1)
    tags = {}
    for data in site.streamed:
        assert type(data["track_key"]) is str
        assert isinstance(data["track_value"], float)
        tags.setdefault(data["track_key"], []).append(data["global_step"])
    assert tags == {tag: [0, 1] for tag in ("fit", "seconds_validation", "train_loss", "seconds_training")}


def test_an_error_in_set_up_is_answered_in_every_round_without_its_text(start, caplog):
    error = CourseError(f"site-1: /data/{PATIENT}.nii.gz cannot be read", "an image cannot be read")
    site = Site(LineLearner(line_batches(1), error=error))
    for number in range(2):
        answer = site.do("train", start, number)
        assert_failed(answer, "an image cannot be read")
        assert PATIENT not in str(answer) + repr(dict(answer))
    assert_failed(site.do("validate", start, None), "an image cannot be read")
    assert PATIENT in caplog.text, "the site's own log says it all"
    assert caplog.text.count("Traceback") == 1, "once"


def test_a_nan_loss_fails_the_round_and_not_the_next(start):
    batches = line_batches(2)
    site = Site(LineLearner(batches, optimizer=torch.optim.AdamW))
    good = batches[1]["image"].clone()
    batches[1]["image"][0, 0] = math.nan
    assert_failed(site.do("train", start, 0), "its loss or its weights became NaN or infinite")
    batches[1]["image"].copy_(good)
    answer = site.do("train", start, 1)
    assert answer.get_return_code() == ReturnCode.OK
    change = from_shareable(answer).data
    assert all(np.isfinite(value).all() for value in change.values())
    assert any(value.any() for value in change.values()), "it was trained"


def test_a_metric_that_is_nan_is_not_reported_as_one(start, monkeypatch):
    site = Site(LineLearner(line_batches(1)))
    monkeypatch.setattr(site.learner, "evaluate", lambda should_stop: {"fit": math.nan})
    assert_failed(site.do("validate", start), "its loss or its weights became NaN or infinite")


def test_after_a_validation_that_failed_the_round_is_not_trained(start, monkeypatch, caplog):
    site, steps = Site(LineLearner(line_batches(1))), []

    def fail(should_stop):
        raise ValueError(PATIENT)

    site.do("train", start, 0)
    site.learner.trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda _: steps.append(1))
    with monkeypatch.context() as patch:
        patch.setattr(site.learner, "evaluate", fail)
        assert_failed(site.do("train", start, 1), "its software raised ValueError")
    assert steps == [] and caplog.text.count("Traceback") == 1
    assert site.do("train", start, 2).get_return_code() == ReturnCode.OK
    assert len(steps) == 2


@pytest.mark.parametrize("how", ["signal", "event"])
def test_abort_stops_within_a_step(start, how):
    site, steps = Site(LineLearner(line_batches(50), epochs=8)), []
    site.do("validate", start, None)

    def note(_):
        steps.append(1)
        if len(steps) == 3:
            site.signal.trigger(True) if how == "signal" else site.event(EventType.ABORT_TASK)

    # Before the step's own handler that asks whether to stop.
    site.learner.trainer.add_event_handler(Events.ITERATION_STARTED, note)
    assert site.do("train", start).get_return_code() == ReturnCode.TASK_ABORTED
    assert len(steps) == 3
    if how == "event":  # only that task was aborted: the next one runs, whole
        assert site.do("train", start).get_return_code() == ReturnCode.OK
        assert len(steps) == 3 + 100


def test_the_end_of_the_run_lets_go_of_data_and_model(start):
    site = Site(LineLearner(line_batches(1)))
    site.do("train", start)
    site.event(EventType.END_RUN)
    assert site.learner.trainer is None


# -- the prostate ------------------------------------------------------------------------------------------------------

TINY = Settings(
    voxel_spacing=(2, 2, 3),
    field_of_view=(64, 64),
    patch_size=(32, 32, 16),
    fedproxloss_mu=0,
    data="tiny",
    rounds=2,
    local_epochs=1,
)


@pytest.fixture
def site_folder(tmp_path, monkeypatch):
    """The folder of site-1 in the shared-out data ``tiny``: two training cases, one for validation, one for testing."""
    monkeypatch.setenv("COURSE_DATA", str(tmp_path / "data of the site"))
    folder = tmp_path / "data of the site" / "sites" / "tiny" / "site-1"
    entries = []
    for number in range(4):
        ball_case(folder / "images", f"c{number}", centre=(2.0 * number, -3.0, 1.5), scale=10.0**number, seed=number)
        entries.append({"image": f"images/c{number}.nii.gz", "label": f"images/c{number}_mask.nii.gz"})
    write_json(folder / "datalist.json", {"training": entries[:2], "validation": entries[2:3], "testing": entries[3:]})
    through_the_door(folder)
    return folder


@pytest.fixture
def app(tmp_path):
    """What a job brings along: its configuration lies in its ``custom`` folder."""
    (tmp_path / "app" / "custom").mkdir(parents=True)
    write_json(tmp_path / "app" / "custom" / "mine.json", TINY.model_dump())
    return str(tmp_path / "app")


def test_the_learner_trains_like_local_training(site_folder, app):
    """FedAvg of one site is that site's own training, with the real network, optimiser, schedule and augmentation."""
    site = Site(SupervisedMonaiProstateLearner("mine.json", aggregation_epochs=TINY.local_epochs), app_root=app)
    weights = numpy_weights(new_model(TINY.seed))
    for number in range(TINY.rounds):
        answer = site.do("train", weights, number)
        assert answer.get_return_code() == ReturnCode.OK, answer.get_header(REASON)
        assert from_shareable(answer).meta[FLMetaKey.NUM_STEPS_CURRENT_ROUND] == 2
        weights = next_weights(weights, [answer])
    parts = read_site("tiny", "site-1")
    alone = train_locally(CARD, parts, TINY, "site-1")
    assert (alone.epochs, alone.steps) == (2, 2)
    fresh = new_model(TINY.seed).state_dict()
    for name, value in numpy_weights(alone.model).items():
        np.testing.assert_allclose(weights[name], value, atol=2e-4)
        assert value.size < 2 or not np.array_equal(value, fresh[name].numpy()), name
    metrics = from_shareable(site.do("validate", weights, None)).data
    assert metrics == pytest.approx(evaluate(alone.model, prepare(parts["validation"], TINY), TINY, CPU), abs=0.02)
    assert {data["track_key"] for data in site.streamed} == {
        "val_dice",
        "seconds_validation",
        "train_loss",
        "seconds_training",
    }


def test_volumes_are_kept_in_the_sites_own_folder_unless_its_options_forbid_it(site_folder, app):
    weights = numpy_weights(new_model(0))
    write_json(site_folder / "options.json", {"cache": False, "batch_size": 1})
    site = Site(SupervisedMonaiProstateLearner("mine.json"), app_root=app)
    assert site.do("validate", weights, None).get_return_code() == ReturnCode.OK
    assert not (site_folder / "cache").exists()
    assert site.learner.settings == TINY.changed(batch_size=1)
    (site_folder / "options.json").unlink()
    Site(SupervisedMonaiProstateLearner("mine.json"), app_root=app).do("validate", weights, None)
    assert len(list((site_folder / "cache").glob("*.pt"))) == 3


def test_a_corrupt_case_is_told_here_and_its_kind_there(site_folder, app, caplog):
    (site_folder / "images" / "c1.nii.gz").rename(site_folder / "images" / f"{PATIENT}.nii.gz")
    file = site_folder / "images" / f"{PATIENT}.nii.gz"
    file.write_bytes(file.read_bytes()[:300])
    datalist = site_folder / "datalist.json"
    datalist.write_text(datalist.read_text().replace("c1.nii.gz", file.name))
    through_the_door(site_folder)
    site = Site(SupervisedMonaiProstateLearner("mine.json"), app_root=app)
    answer = site.do("train", numpy_weights(new_model(0)))
    assert_failed(answer, "an image cannot be used")
    assert PATIENT not in repr(dict(answer)) and str(site_folder) not in repr(dict(answer))
    assert f"site-1: {file}: cannot be read" in caplog.text


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ("no datalist", "its datalist is missing or cannot be read"),
        ("no training", "its datalist cannot be used"),
        ("wrong options", "its settings are wrong"),
    ],
)
def test_what_a_site_lacks_is_told_in_a_few_words(site_folder, app, fault, kind):
    if fault == "no datalist":
        (site_folder / "datalist.json").unlink()
    elif fault == "no training":
        write_json(site_folder / "datalist.json", {"training": [], "validation": [], "testing": []})
    else:
        write_json(site_folder / "options.json", {"thread": 1})
    site = Site(SupervisedMonaiProstateLearner("mine.json"), app_root=app)
    assert_failed(site.do("train", numpy_weights(new_model(0))), kind)


def test_the_configuration_is_found_by_name_in_the_job_or_in_the_course(site_folder, app, caplog):
    assert SupervisedMonaiProstateLearner().train_config_filename == CONFIG_FILE.name
    missing = Site(SupervisedMonaiProstateLearner("none.json"), app_root=app)
    assert_failed(missing.do("validate", numpy_weights(new_model(0))), "its training configuration is missing")
    assert "none.json" in caplog.text and f"{app}/custom" in caplog.text and str(CONFIG_FILE.parent) in caplog.text
    with missing.contexts.new_context() as fl_ctx:
        own = SupervisedMonaiProstateLearner("mine.json")._config_file(fl_ctx)
        course = SupervisedMonaiProstateLearner()._config_file(fl_ctx)
    assert (str(own), course) == (f"{app}/custom/mine.json", CONFIG_FILE)
    assert Settings.read(CONFIG_FILE) == Settings()
