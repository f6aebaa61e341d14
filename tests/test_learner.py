"""Settings, the training loop, and the learners, driven in this process by FLARE's own executor."""

import copy
import json
import math

import numpy as np
import pytest
import torch
from nvflare.apis.dxo import DXO, DataKind, MetaKey, from_shareable
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import FLContextKey, FLMetaKey, ReturnCode
from nvflare.apis.fl_context import FLContextManager
from nvflare.apis.signal import Signal
from nvflare.app_common.abstract.fl_model import ParamsType
from nvflare.app_common.app_constant import AppConstants
from nvflare.app_common.executors.learner_executor import LearnerExecutor
from nvflare.app_common.utils.fl_model_utils import FLModelUtils
from tests_support import ball_case

from src.aggregation import SampleWeightedMean
from src.errors import CourseError
from src.learners import supervised_learner
from src.learners.supervised_learner import REASON_HEADER, SupervisedLearner
from src.learners.supervised_monai_prostate_learner import SupervisedMonaiProstateLearner
from src.prostate_settings import CONFIG_FILE, TrainSettings, read_settings, write_settings
from src.prostate_training import (
    dice,
    evaluate_cases,
    hausdorff95,
    largest_piece,
    local_training,
    make_loss,
    make_trainer,
    new_model,
    predict_case,
    site_seed,
    train_each_site_alone,
    train_loader,
    validate,
)
from src.prostate_transforms import prepare
from src.training_loop import LocalTrainer, constant, cosine


@pytest.fixture(autouse=True)
def one_thread():
    """Volumes this small are faster on one thread, most of all where other work runs beside the tests."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# -- settings ---------------------------------------------------------------------------------------------------------


def test_the_shipped_configuration_names_every_key_with_its_default():
    assert read_settings() == TrainSettings()
    assert set(json.loads(CONFIG_FILE.read_text())) == set(TrainSettings.__dataclass_fields__)


def test_settings_survive_being_written(tmp_path):
    settings = read_settings(learning_rate=0.1, patch_size=[32, 48, 16], loss="dice", cache_dataset=False)
    assert read_settings(write_settings(tmp_path / "a.json", settings)) == settings


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("learning_rat", 1, r"Unknown key 'learning_rat' .*did you mean 'learning_rate'\?"),
        ("fedprox_loss_mu", 0, "did you mean 'fedproxloss_mu'"),
        ("wxyz", 0, "the keys are dataset_base_dir"),
        ("learning_rate", "0.1", "'learning_rate' .*must be a number"),
        ("learning_rate", 0, "more than 0"),
        ("learning_rate", math.nan, "must be a number"),
        ("fedproxloss_mu", -1, "at least 0"),
        ("batch_size", 1.5, "a whole number"),
        ("batch_size", True, "a whole number"),
        ("batch_size", 0, "at least 1"),
        ("cache_dataset", "yes", "true or false"),
        ("loss", "dice_cee", "did you mean 'dice_ce'"),
        ("lr_schedule", "step", "choose one of cosine, constant"),
        ("voxel_spacing", [1, 1], "a list of 3 numbers"),
        ("voxel_spacing", [1, 0, 1], "more than 0"),
        ("patch_size", [40, 32, 16], "multiples of 16"),
        ("patch_size", [16, 16, 16], "at least 32"),
        ("patch_size", "64", "a list of 3 whole numbers"),
        ("dataset_base_dir", "", "must be a text"),
    ],
)
def test_a_wrong_key_is_named_with_its_file(tmp_path, key, value, says):
    file = tmp_path / "my config.json"
    file.write_text(json.dumps({key: value}))
    with pytest.raises(CourseError, match=says) as caught:
        read_settings(file)
    assert str(file) in str(caught.value)
    with pytest.raises(CourseError, match=says):
        read_settings(**{key: value})


@pytest.mark.parametrize("content", ["{", "[1]", None])
def test_a_file_that_is_no_configuration_is_named(tmp_path, content):
    file = tmp_path / "c.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(CourseError, match=r"c\.json"):
        read_settings(file)


# -- the training loop ------------------------------------------------------------------------------------------------


class Line(torch.nn.Module):
    """One linear map: small enough to follow by hand."""

    def __init__(self, size=3):
        super().__init__()
        self.linear = torch.nn.Linear(size, 1)

    def forward(self, x):
        return self.linear(x)


def line_batches(count, seed=0, batch=4):
    random = torch.Generator().manual_seed(seed)
    return [
        {"image": torch.randn(batch, 3, generator=random), "label": torch.randn(batch, 1, generator=random)}
        for _ in range(count)
    ]


def line_trainer(model=None, rate=0.1, **options):
    if model is None:
        torch.manual_seed(0)
        model = Line()
    optimizer = options.pop("optimizer", torch.optim.SGD)(model.parameters(), lr=rate)
    return LocalTrainer(model, optimizer, torch.nn.functional.mse_loss, torch.device("cpu"), **options)


def test_the_cosine_falls_from_one_to_zero():
    assert [round(cosine(p), 6) for p in (0, 0.5, 1, 2)] == [1, 0.5, 0, 0]


def test_the_rate_follows_the_whole_training_not_the_round():
    trainer = line_trainer(schedule=lambda progress: 1 - progress)
    rates = []
    batches = line_batches(2)

    def note():
        rates.append(trainer.optimizer.param_groups[0]["lr"])

    trainer.run(batches, epochs=2, first_epoch=0, total_epochs=4, after_step=note)
    trainer.run(batches, epochs=2, first_epoch=2, total_epochs=4, after_step=note)
    np.testing.assert_allclose(rates, 0.1 * (1 - np.arange(8) / 8))


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_two_rounds_are_one_training(optimizer):
    batches = line_batches(3)
    whole, parts = line_trainer(optimizer=optimizer), line_trainer(optimizer=optimizer)
    whole.run(batches, epochs=4, first_epoch=0, total_epochs=4)
    parts.run(batches, epochs=2, first_epoch=0, total_epochs=4)
    parts.run(batches, epochs=2, first_epoch=2, total_epochs=4)
    for one, other in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_proximal_term_is_fedproxs():
    mu, rate, batches = 0.7, 0.1, line_batches(3)
    trainer = line_trainer(fedprox_mu=mu)
    received = copy.deepcopy(trainer.model)
    by_hand = copy.deepcopy(trainer.model)
    losses = trainer.run(batches, epochs=1, first_epoch=0, total_epochs=1)
    plain = []
    for batch in batches:
        by_hand.zero_grad()
        loss = torch.nn.functional.mse_loss(by_hand(batch["image"]), batch["label"])
        loss.backward()
        plain.append(loss.item())
        with torch.no_grad():
            for value, start in zip(by_hand.parameters(), received.parameters(), strict=True):
                value -= rate * (value.grad + mu * (value - start))
    for one, other in zip(trainer.model.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(one, other)
    assert losses == pytest.approx([np.mean(plain)])  # without the term: comparable with plain FedAvg


def test_the_proximal_term_is_flares():
    """The gradient that the loop adds is the one of the term in FLARE's ``PTFedProxLoss``."""
    from nvflare.app_opt.pt.fedproxloss import PTFedProxLoss

    trainer = line_trainer(fedprox_mu=0.3)
    received = copy.deepcopy(trainer.model)
    with torch.no_grad():
        for value in trainer.model.parameters():
            value += torch.randn_like(value)
    PTFedProxLoss(mu=0.3)(trainer.model, received).backward()
    expected = [value.grad.clone() for value in trainer.model.parameters()]
    trainer.optimizer.zero_grad(set_to_none=False)
    trainer._pull_towards([value.detach() for value in received.parameters()])
    for value, gradient in zip(trainer.model.parameters(), expected, strict=True):
        torch.testing.assert_close(value.grad, gradient)


def test_the_proximal_term_holds_the_model_back():
    batches = line_batches(20)
    moved = {}
    for mu in (0.0, 5.0):
        trainer = line_trainer(fedprox_mu=mu)
        start = copy.deepcopy(trainer.model.state_dict())
        trainer.run(batches, epochs=1, first_epoch=0, total_epochs=1)
        moved[mu] = sum(float((trainer.model.state_dict()[k] - start[k]).square().sum()) for k in start)
    assert moved[5.0] < 0.5 * moved[0.0]


def test_a_nan_loss_stops_at_once_and_leaves_no_trace_in_the_optimizer():
    batches = line_batches(4)
    batches[1]["image"][0, 0] = math.nan
    trainer = line_trainer(optimizer=torch.optim.AdamW)
    start = copy.deepcopy(trainer.model.state_dict())
    steps = []
    with pytest.raises(FloatingPointError, match="loss became nan in epoch 3, step 2"):
        trainer.run(batches, epochs=1, first_epoch=2, total_epochs=3, after_step=lambda: steps.append(1))
    assert len(steps) == 2
    trainer.model.load_state_dict(start)
    assert np.isfinite(trainer.run(line_batches(2), epochs=1, first_epoch=0, total_epochs=1)).all()


def test_weights_that_overflow_are_found():
    (batch,) = line_batches(1)
    huge = {key: 1e17 * value for key, value in batch.items()}  # a loss of 1e34 still is a number
    with pytest.raises(FloatingPointError, match=r"2 tensors of the model hold NaN or infinity .*'linear.weight'"):
        line_trainer(rate=1e25).run([huge], epochs=1, first_epoch=0, total_epochs=1)


def test_it_stops_within_a_step():
    trainer, steps = line_trainer(), []
    losses = trainer.run(
        line_batches(10),
        epochs=5,
        first_epoch=0,
        total_epochs=5,
        should_stop=lambda: len(steps) == 13,
        after_step=lambda: steps.append(1),
    )
    assert len(steps) == 13
    assert len(losses) == 1  # of the epoch that was finished


# -- the way between FLARE and a training -----------------------------------------------------------------------------


class LineLearner(SupervisedLearner):
    """The smallest learner: fits a line to the site's batches."""

    def __init__(self, batches, cases=8, error=None, **options):
        super().__init__(aggregation_epochs=options.pop("aggregation_epochs", 2))
        self.batches, self.cases, self.error, self.options = batches, cases, error, options

    def set_up(self, site, fl_ctx):
        if self.error:
            raise self.error
        self.site = site
        self.trainer = line_trainer(**self.options)
        self.train_batches = self.batches
        self.training_cases = self.cases

    @torch.inference_mode()
    def evaluate(self, should_stop):
        return {
            "fit": -float(torch.nn.functional.mse_loss(self.trainer.model(self.batches[0]["image"]), torch.ones(4, 1)))
        }


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
        self.engine = Engine(learner)
        self.learner = learner
        self.contexts = FLContextManager(self.engine, name, "job", {}, {FLContextKey.APP_ROOT: app_root})
        self.executor = LearnerExecutor(learner_id="learner")
        self.signal = Signal()

    def do(self, task, weights, current_round=0, rounds=2):
        shareable = DXO(DataKind.WEIGHTS, data=weights).to_shareable()
        shareable.set_header(AppConstants.CURRENT_ROUND, current_round)
        shareable.set_header(AppConstants.NUM_ROUNDS, rounds)
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


@pytest.fixture
def start():
    torch.manual_seed(0)
    return numpy_weights(Line())


def average(answers):
    """The server's half of a round: the average of the course's own aggregator."""
    mean = SampleWeightedMean()
    for number, answer in enumerate(answers):
        update = FLModelUtils.from_shareable(answer)
        update.meta["client_name"] = f"site-{number}"
        mean.accept_model(update)
    return mean.aggregate_model()


def test_the_answer_is_the_difference_with_cases_and_metrics_of_the_received_model(start):
    site = Site(LineLearner(line_batches(3), cases=11))
    answer = site.do("train", start)
    assert answer.get_return_code() == ReturnCode.OK
    dxo = from_shareable(answer)
    assert dxo.data_kind == DataKind.WEIGHT_DIFF
    trained = numpy_weights(site.learner.trainer.model)
    for name, value in dxo.data.items():
        np.testing.assert_array_equal(value, trained[name] - start[name])
        assert np.abs(value).max() > 0
    model = FLModelUtils.from_shareable(answer)
    assert model.params_type == ParamsType.DIFF
    assert model.meta[FLMetaKey.NUM_STEPS_CURRENT_ROUND] == 11
    site.learner.trainer.model.load_state_dict({k: torch.from_numpy(v) for k, v in start.items()})
    assert model.metrics == {"fit": pytest.approx(site.learner.evaluate(None)["fit"])}
    assert dxo.meta[MetaKey.INITIAL_METRICS] == model.metrics  # where IntimeModelSelector looks


def test_one_site_is_its_own_training(start):
    batches = line_batches(3)
    site = Site(LineLearner(batches, optimizer=torch.optim.AdamW, schedule=cosine))
    weights = start
    for number in range(3):
        change = average([site.do("train", weights, number, rounds=3)]).params
        weights = {name: weights[name] + change[name] for name in weights}
    alone = line_trainer(optimizer=torch.optim.AdamW, schedule=cosine)
    alone.run(batches, epochs=6, first_epoch=0, total_epochs=6)
    for name, value in numpy_weights(alone.model).items():
        np.testing.assert_allclose(weights[name], value, rtol=1e-5, atol=1e-6)


def test_two_equal_sites_with_one_step_are_the_pooled_step(start):
    one, other = line_batches(1, seed=1)[0], line_batches(1, seed=2)[0]
    pooled = {key: torch.cat([one[key], other[key]]) for key in one}
    sites = [Site(LineLearner([batch], cases=4, aggregation_epochs=1)) for batch in (one, other)]
    change = average([site.do("train", start, rounds=1) for site in sites]).params
    trainer = line_trainer()
    trainer.run([pooled], epochs=1, first_epoch=0, total_epochs=1)
    for name, value in numpy_weights(trainer.model).items():
        np.testing.assert_allclose(start[name] + change[name], value, rtol=1e-5, atol=1e-6)


def test_validation_alone_answers_with_metrics_and_cases(start):
    site = Site(LineLearner(line_batches(1), cases=5))
    model = FLModelUtils.from_shareable(site.do("validate", start, current_round=2))
    assert set(model.metrics) == {"fit"}
    assert model.params is None
    assert model.meta[FLMetaKey.NUM_STEPS_CURRENT_ROUND] == 5


def test_curves_are_streamed_with_plain_text_tags(start):
    site = Site(LineLearner(line_batches(3)))
    site.do("train", start, current_round=0)
    site.do("train", start, current_round=1)
    tags = {}
    for data in site.streamed:
        assert type(data["track_key"]) is str
        tags.setdefault(data["track_key"], []).append(data["global_step"])
    assert tags["train_loss"] == [1, 2, 3, 4]  # epochs
    assert tags["fit"] == [0, 1]  # rounds
    assert tags["seconds_to_first_step"] == tags["seconds_set_up"] == [0]
    assert tags["peak_memory_mb"] == tags["seconds_training"] == tags["seconds_validation"] == [0, 1]


def test_an_error_in_set_up_is_answered_in_every_round(start):
    site = Site(LineLearner(line_batches(1), error=CourseError("site-1: cannot read a.nii.gz")))
    for number in range(2):
        answer = site.do("train", start, number)
        assert answer.get_return_code() == ReturnCode.EXECUTION_EXCEPTION
        assert "site-1: cannot read a.nii.gz" in answer.get_header(REASON_HEADER)


def test_a_nan_loss_fails_the_round_and_not_the_next(start):
    batches = line_batches(2)
    site = Site(LineLearner(batches, optimizer=torch.optim.AdamW))
    good = batches[1]["image"].clone()
    batches[1]["image"][0, 0] = math.nan
    answer = site.do("train", start, 0)
    assert answer.get_return_code() == ReturnCode.EXECUTION_EXCEPTION
    assert "training loss became nan" in answer.get_header(REASON_HEADER)
    batches[1]["image"].copy_(good)
    answer = site.do("train", start, 1)
    assert answer.get_return_code() == ReturnCode.OK
    assert all(np.isfinite(value).all() for value in from_shareable(answer).data.values())


def test_a_metric_that_is_nan_is_not_reported_as_one(start, monkeypatch):
    site = Site(LineLearner(line_batches(1)))
    monkeypatch.setattr(site.learner, "evaluate", lambda should_stop: {"fit": math.nan})
    answer = site.do("validate", start)
    assert answer.get_return_code() == ReturnCode.EXECUTION_EXCEPTION
    assert "'fit': nan" in answer.get_header(REASON_HEADER)


@pytest.mark.parametrize("how", ["signal", "event"])
def test_abort_stops_within_a_step(start, how):
    site = Site(LineLearner(line_batches(50)))
    steps = []
    original = LocalTrainer._step

    def step(self, *args):
        steps.append(1)
        if len(steps) == 3:
            site.signal.trigger(True) if how == "signal" else site.event(EventType.ABORT_TASK)
        return original(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LocalTrainer, "_step", step)
        answer = site.do("train", start)
        assert answer.get_return_code() == ReturnCode.TASK_ABORTED
        assert len(steps) == 3
        if how == "event":  # only that task was aborted: the next one runs
            assert site.do("train", start).get_return_code() == ReturnCode.OK


def test_the_end_of_the_run_lets_go_of_data_and_model(start):
    site = Site(LineLearner(line_batches(1)))
    site.do("train", start)
    site.event(EventType.END_RUN)
    assert site.learner.trainer is None and site.learner.train_batches is None


# -- the prostate -----------------------------------------------------------------------------------------------------

TINY = {"voxel_spacing": [2, 2, 3], "field_of_view": [64, 64], "patch_size": [32, 32, 16], "threads": 1}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A converted data set of one site with tiny volumes: settings file, settings, items."""
    root = tmp_path_factory.mktemp("tiny data")
    entries = []
    for number in range(5):
        ball_case(root, f"c{number}", centre=(2.0 * number, -3.0, 1.5), scale=10.0**number, seed=number)
        entries.append({"image": f"c{number}.nii.gz", "label": f"c{number}_mask.nii.gz"})
    datalist = {"training": entries[:3], "validation": entries[3:4], "testing": entries[4:]}
    (root / "site-1.json").write_text(json.dumps(datalist))
    settings = read_settings(
        **TINY, dataset_base_dir=root, datalist_json_path=root, cache_dir=str(root / "cache"), fedproxloss_mu=0
    )
    items = {
        part: [{**{key: str(root / path) for key, path in entry.items()}, "site": "site-1"} for entry in listed]
        for part, listed in datalist.items()
    }
    return write_settings(root / "config.json", settings), settings, items


def test_the_learner_trains_like_local_training(tiny):
    """FedAvg of one site is that site's own training, with the real network, optimiser, schedule and augmentation."""
    config, settings, items = tiny
    site = Site(SupervisedMonaiProstateLearner(str(config), aggregation_epochs=1))
    weights = numpy_weights(new_model(settings.seed))
    for number in range(2):
        answer = site.do("train", weights, number, rounds=2)
        assert answer.get_return_code() == ReturnCode.OK, answer.get_header(REASON_HEADER)
        assert from_shareable(answer).meta[FLMetaKey.NUM_STEPS_CURRENT_ROUND] == 3
        change = average([answer]).params
        weights = {name: weights[name] + change[name] for name in weights}
    alone = local_training(items["training"], settings, epochs=2, name="site-1")
    assert alone.steps == 4 and len(alone.losses) == 2
    fresh = new_model(settings.seed).state_dict()
    for name, value in numpy_weights(alone.model).items():
        np.testing.assert_allclose(weights[name], value, atol=2e-4)
        assert value.size < 2 or not np.array_equal(value, fresh[name].numpy()), name
    metrics = from_shareable(site.do("validate", weights, 2)).data
    prepared = prepare(items["validation"], settings)
    assert metrics["val_dice"] == pytest.approx(np.mean(validate(alone.model, prepared, settings, "cpu")), abs=0.02)


def test_sites_alone_come_out_as_one_by_one(tiny):
    _, settings, items = tiny
    lists = {name: {"training": items["training"][:2]} for name in ("site-1", "site-2")}
    torch.set_num_threads(2)  # two sites at a time
    together = train_each_site_alone(lists, settings, epochs=1)
    assert torch.get_num_threads() == 2
    assert list(together) == ["site-1", "site-2"]
    for name, trained in together.items():
        alone = local_training(lists[name]["training"], settings, epochs=1, name=name)
        assert trained.losses == pytest.approx(alone.losses, rel=1e-3)
    assert together["site-1"].losses != together["site-2"].losses  # a seed of its own for each


def test_a_corrupt_case_is_answered_by_name(tmp_path):
    ball_case(tmp_path, "fine")
    (tmp_path / "broken.nii.gz").write_bytes((tmp_path / "fine.nii.gz").read_bytes()[:300])
    entry = {"image": "fine.nii.gz", "label": "fine_mask.nii.gz"}
    broken = {"image": "broken.nii.gz", "label": "fine_mask.nii.gz"}
    ball_case(tmp_path, "other")
    test = {"image": "other.nii.gz", "label": "other_mask.nii.gz"}
    (tmp_path / "site-9.json").write_text(json.dumps({"training": [entry], "validation": [broken], "testing": [test]}))
    own = read_settings(**TINY, dataset_base_dir=tmp_path, datalist_json_path=tmp_path, cache_dataset=False)
    config = write_settings(tmp_path / "config.json", own)
    site = Site(SupervisedMonaiProstateLearner(str(config)), name="site-9")
    answer = site.do("train", numpy_weights(new_model(0)))
    assert answer.get_return_code() == ReturnCode.EXECUTION_EXCEPTION
    assert "site-9: cannot read" in answer.get_header(REASON_HEADER)
    assert "broken.nii.gz" in answer.get_header(REASON_HEADER)


def test_the_configuration_is_found_by_name_in_the_job(tiny, tmp_path):
    config, settings, _ = tiny
    (tmp_path / "custom").mkdir()
    (tmp_path / "custom" / "mine.json").write_text(config.read_text())
    site = Site(SupervisedMonaiProstateLearner("mine.json"), app_root=str(tmp_path))
    assert site.do("validate", numpy_weights(new_model(0))).get_return_code() == ReturnCode.OK
    assert site.learner.settings == settings
    missing = Site(SupervisedMonaiProstateLearner("none.json"), app_root=str(tmp_path))
    reason = missing.do("validate", numpy_weights(new_model(0))).get_header(REASON_HEADER)
    assert "none.json" in reason and str(tmp_path / "custom") in reason


@pytest.mark.parametrize("loss", ["dice_ce", "dice_focal", "dice"])
def test_every_loss_prefers_the_right_mask_and_is_finite_without_a_gland(loss):
    function = make_loss(TrainSettings(loss=loss))
    label = torch.zeros(1, 1, 8, 8, 8)
    label[..., 2:6, 2:6, 2:6] = 1
    assert function(20 * label - 10, label) < function(10 - 20 * label, label)
    for logits in (torch.full_like(label, -10), torch.full_like(label, 10)):
        assert torch.isfinite(function(logits, torch.zeros_like(label)))


def test_the_head_takes_larger_steps_and_both_follow_the_schedule():
    settings = TrainSettings(learning_rate=0.01)
    trainer = make_trainer(new_model(0), settings, torch.device("cpu"))
    assert [group["lr"] for group in trainer.optimizer.param_groups] == [0.01, pytest.approx(0.1)]
    trainer._set_rate(0.5)
    assert [group["lr"] for group in trainer.optimizer.param_groups] == [pytest.approx(0.005), pytest.approx(0.05)]
    steady = make_trainer(new_model(0), TrainSettings(lr_schedule="constant"), torch.device("cpu"))
    assert steady.schedule is constant


def test_every_case_is_in_every_epoch(tiny):
    _, settings, items = tiny
    loader = train_loader(prepare(items["training"], settings), settings, seed=0)
    sizes = [len(batch["image"]) for batch in loader]
    assert sizes == [2, 1]


def test_seeds_differ_between_sites_and_not_between_runs():
    assert site_seed(0, "site-1") == site_seed(0, "site-1") != site_seed(0, "site-2")
    one, other = new_model(3).state_dict(), new_model(3).state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)
    before = torch.random.get_rng_state()
    new_model(5)
    assert torch.equal(before, torch.random.get_rng_state())


class Bright(torch.nn.Module):
    """Calls a voxel gland if it is bright: right for the ball, whatever the grid."""

    def forward(self, image):
        return 20 * (image - 1.0)


@pytest.mark.parametrize(
    ("codes", "spacing", "shape"), [("RAS", (1, 1, 3), (80, 80, 20)), ("PIL", (0.8, 0.8, 2), (96, 96, 32))]
)
def test_cases_are_judged_on_their_own_grid(tmp_path, codes, spacing, shape):
    settings = read_settings(**TINY, cache_dataset=False)
    item = ball_case(tmp_path, codes=codes, spacing=spacing, shape=shape)
    mask = predict_case(Bright(), item, settings)
    import nibabel as nib

    label = nib.load(item["label"])
    assert mask.shape == label.shape and mask.dtype == np.uint8
    table = evaluate_cases(Bright(), [item], settings)
    assert list(table.columns) == ["case", "site", "dice", "hd95_mm"]
    assert table.loc[0, "case"] == "case" and table.loc[0, "site"] == "site-x"
    truth = np.asarray(label.dataobj) > 0
    assert table.loc[0, "dice"] == pytest.approx(2 * (mask & truth).sum() / (mask.sum() + truth.sum()), abs=1e-6)
    assert table.loc[0, "dice"] > 0.93
    assert table.loc[0, "hd95_mm"] <= 3.0


def test_distance_is_in_millimetres_of_the_grid():
    one, other = torch.zeros(1, 20, 20, 10), torch.zeros(1, 20, 20, 10)
    one[:, 5:10, 5:10, 3] = 1
    other[:, 5:10, 5:10, 5] = 1
    assert hausdorff95(one, other, (0.5, 0.5, 4.0)) == pytest.approx(8.0)


def test_empty_masks_have_a_score():
    empty, full = torch.zeros(1, 8, 8, 8), torch.ones(1, 8, 8, 8)
    assert (dice(empty, empty), dice(full, empty), dice(empty, full), dice(full, full)) == (1, 0, 0, 1)
    assert hausdorff95(empty, empty, (1, 1, 1)) == 0
    assert math.isnan(hausdorff95(full, empty, (1, 1, 1)))


def test_only_the_largest_piece_is_kept():
    mask = np.zeros((10, 10, 10), bool)
    mask[:2, :2, :2] = True
    mask[5:9, 5:9, 5:9] = True
    kept = largest_piece(mask)
    assert kept.sum() == 64 and kept[6, 6, 6] == 1
    assert largest_piece(np.zeros((3, 3, 3), bool)).sum() == 0


def test_an_empty_validation_mask_does_not_poison_the_mean(tmp_path):
    settings = read_settings(**TINY, cache_dataset=False)
    items = [ball_case(tmp_path, "with"), ball_case(tmp_path, "without", radius=0)]
    with pytest.warns(UserWarning, match="the mask of without is empty"):
        prepared = prepare(items, settings)
    scores = validate(Bright(), prepared, settings, torch.device("cpu"))
    assert scores[0] > 0.9 and scores[1] in (0.0, 1.0)


def test_peak_memory_is_in_megabytes():
    assert 100 < supervised_learner._peak_memory_mb() < 100_000
