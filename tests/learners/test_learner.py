"""The learners, driven in this process by FLARE's own executor."""

import math
from types import SimpleNamespace

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

from benchmarks.local import train_locally
from src.common.datalists import read_site
from src.common.errors import CourseError
from src.federation.aggregation import SampleWeightedMean
from src.federation.reasons import REASON
from src.federation.site import Site
from src.learners.recipe import learner_recipe
from src.learners.supervised_learner import SupervisedLearner
from src.learners.supervised_monai_prostate_learner import SupervisedMonaiProstateLearner
from src.prostate.card import CONFIG_FILE
from src.prostate.training import TASK
from tests.runs_support import volumes
from tests.tests_support import course_error
from tests.training_support import LINE, LineSettings, line_batches

PATIENT = "SURNAME_FIRSTNAME_1950"
CURVES = {"seconds_validation", "train_loss", "seconds_training"}

pytestmark = pytest.mark.usefixtures("one_thread")


class Executor:
    """A LearnerExecutor with its learner, outside of a run, and as much of FLARE's engine as both need."""

    def __init__(self, learner, app_root=None):
        self.learner, self.streamed, self.signal = learner, [], Signal()
        engine = SimpleNamespace(get_component=lambda _: learner, get_all_components=lambda: {}, fire_event=self.note)
        self.contexts = FLContextManager(engine, "site-1", "job", {}, {FLContextKey.APP_ROOT: app_root})
        self.executor = LearnerExecutor(learner_id="learner")

    def note(self, event_type, fl_ctx):
        if event_type == "analytix_log_stats":
            self.streamed.append(from_shareable(fl_ctx.get_prop(FLContextKey.EVENT_DATA)).data)

    def do(self, task, weights, current_round=0):
        shareable = DXO(DataKind.WEIGHTS, data=weights).to_shareable()
        if current_round is not None:
            shareable.set_header(AppConstants.CURRENT_ROUND, current_round)
        with self.contexts.new_context() as fl_ctx:
            return self.executor.execute(task, shareable, fl_ctx, self.signal)

    def trained(self, weights, current_round=0):
        """The model that one round of this site alone makes of the weights, as the course's own aggregator averages it."""
        update = FLModelUtils.from_shareable(self.do("train", weights, current_round))
        return {name: weights[name] + change for name, change in update.params.items()}

    def event(self, event_type):
        with self.contexts.new_context() as fl_ctx:
            self.executor.handle_event(event_type, fl_ctx)


def numpy_weights(model):
    return {name: value.numpy().copy() for name, value in model.state_dict().items()}


def assert_failed(answer, why):
    assert (answer.get_return_code(), answer.get_header(REASON)) == (ReturnCode.EXECUTION_EXCEPTION, why)


class LineLearner(SupervisedLearner):
    def __init__(self, batches, error=None, epochs=2):
        super().__init__(aggregation_epochs=epochs)
        self.batches, self.error = batches, error

    def set_up(self, name, fl_ctx):
        if self.error:
            raise self.error
        parts = {"training": self.batches, "validation": self.batches[:1]}
        return Site(LINE, LineSettings(local_epochs=self.aggregation_epochs), parts, name)


START = numpy_weights(LINE.new_model(0))


def test_the_answer_is_the_difference_with_items_and_metrics_of_the_received_model():
    executor = Executor(LineLearner(line_batches(3)))
    answer = executor.do("train", START)
    dxo, model = from_shareable(answer), FLModelUtils.from_shareable(answer)
    assert (answer.get_return_code(), dxo.data_kind) == (ReturnCode.OK, DataKind.WEIGHT_DIFF)
    trained = numpy_weights(executor.learner.site.model)
    for name, value in dxo.data.items():
        np.testing.assert_array_equal(value, trained[name] - START[name])
        assert np.abs(value).max() > 0
    assert (model.params_type, model.meta[FLMetaKey.NUM_STEPS_CURRENT_ROUND]) == (ParamsType.DIFF, 3)
    assert model.metrics == {"val_fit": pytest.approx(-np.abs(START["weight"]).sum())}
    assert dxo.meta[MetaKey.INITIAL_METRICS] == model.metrics  # where IntimeModelSelector looks


def test_two_equal_sites_with_one_step_are_the_pooled_step():
    one, other = line_batches(1, seed=1)[0], line_batches(1, seed=2)[0]
    pooled = LineLearner([{key: torch.cat([one[key], other[key]]) for key in one}], epochs=1).set_up("", None)
    pooled.train()
    mean = SampleWeightedMean()
    for number, batch in enumerate((one, other)):
        update = FLModelUtils.from_shareable(Executor(LineLearner([batch], epochs=1)).do("train", START))
        update.meta["client_name"] = f"site-{number}"
        mean.accept_model(update)
    change = mean.aggregate_model().params
    for name, value in numpy_weights(pooled.model).items():
        np.testing.assert_allclose(START[name] + change[name], value, rtol=1e-5, atol=1e-6)


def test_validation_alone_as_after_the_last_round_streams_nothing_and_rounds_their_curves_with_plain_text_tags():
    executor, rounds = Executor(LineLearner(line_batches(3))), {}
    model = FLModelUtils.from_shareable(executor.do("validate", START, current_round=None))
    assert model.metrics == {"val_fit": pytest.approx(-np.abs(START["weight"]).sum())}
    assert model.params is None and executor.streamed == []
    for number in (0, 1):
        executor.do("train", START, number)
    for data in executor.streamed:
        assert type(data["track_key"]) is str and isinstance(data["track_value"], float)
        rounds.setdefault(data["track_key"], []).append(data["global_step"])
    assert rounds == {name: [0, 1] for name in ("val_fit", *CURVES)}
    assert_failed(executor.do("train", START, current_round=None), "its software raised TypeError")
    executor.event(EventType.END_RUN)
    assert executor.learner.site is None, "the end of the run lets go of data and model"


def test_an_error_in_set_up_is_answered_in_every_round_without_its_text(caplog):
    error = CourseError(f"site-1: /data/{PATIENT}.nii.gz cannot be read", "an image cannot be read")
    executor = Executor(LineLearner(line_batches(1), error=error))
    for task, number in (("train", 0), ("train", 1), ("validate", None)):
        answer = executor.do(task, START, number)
        assert_failed(answer, "an image cannot be read")
        assert PATIENT not in str(answer) + repr(dict(answer))
    assert PATIENT in caplog.text, "the site's own log says it all"
    assert caplog.text.count("Traceback") == 1, "once"


def test_a_loss_or_a_metric_that_is_nan_fails_the_round_and_not_the_next(monkeypatch, caplog):
    """After a validation that failed the round is not trained."""
    batches, said, steps = line_batches(2), "its loss or its weights became NaN or infinite", []
    executor, good = Executor(LineLearner(batches)), batches[1]["image"].clone()
    batches[1]["image"][0, 0] = math.nan
    assert_failed(executor.do("train", START, 0), said)
    batches[1]["image"].copy_(good)
    caplog.clear()
    executor.learner.site.trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda _: steps.append(1))
    with monkeypatch.context() as patch:
        patch.setattr(executor.learner.site, "evaluate", lambda should_stop: {"val_fit": math.nan})
        assert_failed(executor.do("train", START, 1), said)
    assert steps == [] and caplog.text.count("Traceback") == 1
    trained = executor.trained(START, 2)
    assert len(steps) == 4
    assert all(np.isfinite(value).all() and (value != START[name]).any() for name, value in trained.items())


@pytest.mark.parametrize("how", ["signal", "event"])
def test_abort_stops_within_a_step(how):
    executor, steps = Executor(LineLearner(line_batches(50))), []
    executor.do("validate", START, None)

    def note(_):
        steps.append(1)
        if len(steps) == 3:
            executor.signal.trigger(True) if how == "signal" else executor.event(EventType.ABORT_TASK)

    # Before the step's own handler that asks whether to stop.
    executor.learner.site.trainer.add_event_handler(Events.ITERATION_STARTED, note)
    assert executor.do("train", START).get_return_code() == ReturnCode.TASK_ABORTED and len(steps) == 3
    if how == "event":  # only that task was aborted: the next one runs, whole
        assert executor.do("train", START).get_return_code() == ReturnCode.OK and len(steps) == 3 + 100


SIZES = {"voxel_spacing": (2, 2, 3), "field_of_view": (64, 64), "patch_size": (32, 32, 16)}
TINY = TASK.settings(**SIZES, data="tiny", rounds=2, local_epochs=1)
FRESH = numpy_weights(TASK.new_model(TINY.seed))


@pytest.fixture
def hospital(tmp_path, monkeypatch):
    """Makes the executor of site-1, for a job that brings these settings along; it has four cases in the data ``tiny``."""
    monkeypatch.setenv("COURSE_DATA", str(tmp_path / "data of the site"))
    volumes(tmp_path / "data of the site" / "sites" / "tiny" / "site-1")

    def make(settings=TINY, file="mine.json"):
        settings.write(tmp_path / "app" / "custom" / "mine.json")
        learner = SupervisedMonaiProstateLearner(file, aggregation_epochs=settings.local_epochs)
        return Executor(learner, app_root=str(tmp_path / "app"))

    return make


def test_the_learner_trains_like_local_training(hospital):
    """FedAvg of one site is that site's own training, with the real network, optimiser, schedule and augmentation."""
    executor, weights = hospital(), FRESH
    for number in range(TINY.rounds):
        weights = executor.trained(weights, number)
    alone = train_locally(TASK, read_site("tiny", "site-1"), TINY, "site-1")
    assert (alone.epochs, alone.steps) == (2, 2)
    for name, value in numpy_weights(alone.model).items():
        np.testing.assert_allclose(weights[name], value, atol=2e-4)
        assert value.size < 2 or not np.array_equal(value, FRESH[name]), name
    metrics = from_shareable(executor.do("validate", weights, None)).data
    assert metrics == pytest.approx({"val_dice": alone.history[-1]["val_dice"]}, abs=0.02)
    assert {data["track_key"] for data in executor.streamed} == {"val_dice", *CURVES}


def test_the_settings_proximal_term_holds_it_back(hospital):
    """Two epochs, because in the first step it is still where it was."""
    moved = []
    for changed in ({}, {"method": "fedprox", "fedproxloss_mu": 1000}):
        trained = hospital(TINY.changed(local_epochs=2, learning_rate=1e-4, **changed)).trained(FRESH)
        moved.append(sum(float(np.abs(value - FRESH[name]).sum()) for name, value in trained.items()))
    assert 0 < moved[1] < 0.9 * moved[0]


def test_the_configuration_is_found_in_the_job_or_in_the_course_and_its_method_is_known(hospital, tmp_path, caplog):
    settings, said = TINY.changed(method="scaffold"), "The learner knows fedavg and fedprox, not method='scaffold'. Use"
    course_error(said, learner_recipe, tmp_path, 2, settings)
    assert_failed(hospital(settings).do("train", FRESH), "its settings are wrong")
    assert said in caplog.text
    missing = hospital(file="none.json")
    assert_failed(missing.do("validate", FRESH), "its settings cannot be read")
    assert f"Cannot read the settings {tmp_path}/app/config/none.json" in caplog.text
    own = SupervisedMonaiProstateLearner("mine.json")._config_file(tmp_path / "app")
    course = SupervisedMonaiProstateLearner()._config_file(tmp_path / "app")
    assert (own, course) == (tmp_path / "app/custom/mine.json", CONFIG_FILE)
