"""Training the classifier: the pieces equal their definitions, and two equal sites take the pooled step."""

import copy

import pytest
import torch
from nvflare.apis.fl_constant import FLMetaKey
from nvflare.app_common.abstract.fl_model import FLModel
from PIL import Image

from src.common.engine import make_trainer as make_any_trainer
from src.common.engine import train_for
from src.federation.aggregation import SampleWeightedMean
from src.mednist.card import CARD, Settings
from src.mednist.training import (
    evaluate,
    evaluate_cases,
    load_model,
    make_evaluator,
    make_trainer,
    new_model,
    predict,
    to_device,
)
from src.mednist.transforms import batches, prepare

CPU = torch.device("cpu")
SETTINGS = Settings(batch_size=8, rounds=2)


pytestmark = pytest.mark.usefixtures("one_thread")


def images(number: int, seed: int = 0) -> list[dict]:
    """Prepared random pictures."""
    draw = torch.Generator().manual_seed(seed)
    return [{"image": torch.rand(1, 64, 64, generator=draw), "label": i % 6} for i in range(number)]


class Small(torch.nn.Sequential):
    """A network of some thousand weights in place of DenseNet's seven million."""

    def __init__(self, seed: int = 0):
        torch.manual_seed(seed)
        super().__init__(
            torch.nn.AvgPool2d(8), torch.nn.Flatten(), torch.nn.Linear(64, 16), torch.nn.Tanh(), torch.nn.Linear(16, 6)
        )


def sgd_step(model: torch.nn.Module, items: list[dict]) -> torch.nn.Module:
    """One step of SGD on all items at once."""
    batch = {"image": torch.stack([one["image"] for one in items]), "label": torch.tensor([i["label"] for i in items])}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    train_for(make_any_trainer(model, [batch], optimizer, torch.nn.CrossEntropyLoss(), CPU, epochs=1), 1)
    return model


def test_two_equal_sites_with_one_sgd_step_take_the_pooled_step():
    start, items = Small(), images(8)
    pooled = sgd_step(copy.deepcopy(start), items)
    aggregator = SampleWeightedMean()
    for number, half in enumerate((items[:4], items[4:]), start=1):
        local = sgd_step(copy.deepcopy(start), half)
        params = {name: tensor.numpy() for name, tensor in local.state_dict().items()}
        meta = {"client_name": f"site-{number}", FLMetaKey.NUM_STEPS_CURRENT_ROUND: 4}
        aggregator.accept_model(FLModel(params=params, meta=meta, current_round=0))
    mean = aggregator.aggregate_model().params
    for name, tensor in pooled.state_dict().items():
        assert not torch.equal(tensor, start.state_dict()[name]), f"{name} was not trained"
        torch.testing.assert_close(torch.from_numpy(mean[name]), tensor, rtol=1e-5, atol=1e-7)


def test_the_trainer_is_adam_on_cross_entropy_over_all_rounds():
    model, items = Small(), images(12)
    trainer = make_trainer(model, batches(items, SETTINGS, train=True), SETTINGS, CPU)
    assert isinstance(trainer.optimizer, torch.optim.Adam)
    train_for(trainer, 2)
    assert (trainer.state.epoch, trainer.state.iteration) == (2, 4)
    # After the last step of all rounds the next rate would be 0.
    assert 0 < trainer.optimizer.param_groups[0]["lr"] < 0.2 * SETTINGS.learning_rate


def test_the_settings_proximal_term_holds_the_classifier_back():
    moved = []
    for mu in (0.0, 100.0):
        model, settings = Small(), SETTINGS.changed(fedproxloss_mu=mu, learning_rate=0.01)
        start = copy.deepcopy(model.state_dict())
        train_for(make_trainer(model, batches(images(24), settings, train=True), settings, CPU), 2)
        moved.append(sum(float((value - start[name]).abs().sum()) for name, value in model.state_dict().items()))
    assert moved[1] < 0.7 * moved[0]


def test_a_single_image_trains_the_network():
    model = to_device(new_model(0), CPU)
    before = copy.deepcopy(model.state_dict())
    trainer = make_trainer(model, batches(images(1), SETTINGS, train=True), SETTINGS, CPU)
    assert train_for(trainer, 1) > 0
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())
    assert any(not torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_evaluation_equals_its_definition():
    model, items = Small(), images(20)
    logits = torch.cat([model(one["image"][None]) for one in items])
    labels = torch.tensor([one["label"] for one in items])
    metrics = evaluate(model, items, SETTINGS, CPU)
    assert set(metrics) == {"val_accuracy", "val_loss"}
    assert metrics[CARD.key_metric] == pytest.approx((logits.argmax(1) == labels).float().mean().item())
    assert metrics["val_loss"] == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), rel=1e-5)
    evaluator = make_evaluator(model, batches(items, SETTINGS, train=False), CPU)
    evaluator.run()
    assert evaluator.state.metrics == pytest.approx(metrics)
    assert evaluator.state.key_metric_name == CARD.key_metric


def test_nothing_to_validate_gives_no_metrics():
    assert evaluate(Small(), [], SETTINGS, CPU) == {}


def test_evaluation_changes_nothing():
    model = new_model(0)
    before = copy.deepcopy(model.state_dict())
    evaluate(model, images(3), SETTINGS, CPU)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.fixture
def files(tmp_path) -> list[dict]:
    items = []
    for number, one in enumerate(images(10, seed=3)):
        file = tmp_path / f"Class{one['label']}" / f"{number:06d}.png"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray((255 * one["image"][0]).byte().numpy()).save(file)
        items.append({"image": str(file), "label": one["label"], "site": "north"})
    return items


def test_predictions_are_probabilities_in_the_order_of_the_items(files):
    model = Small().train()
    probabilities = predict(model, files, SETTINGS, CPU)
    assert probabilities.shape == (10, 6) and not probabilities.requires_grad
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(10))
    expected = torch.cat([model(one["image"][None]) for one in prepare(files, SETTINGS)]).softmax(1)
    torch.testing.assert_close(probabilities, expected)


def test_the_table_says_of_each_image_what_the_network_says(files):
    model = Small()
    table, probabilities = evaluate_cases(model, files, SETTINGS, CPU), predict(model, files, SETTINGS, CPU)
    assert list(table.columns) == ["case", "site", "label", "predicted", "confidence", "accuracy"]
    assert table["case"].tolist() == [f"Class{i % 6}/{i:06d}.png" for i in range(10)]
    assert set(table["site"]) == {"north"}
    assert table["predicted"].tolist() == probabilities.argmax(1).tolist()
    assert table["confidence"].tolist() == pytest.approx(probabilities.amax(1).tolist())
    assert table["accuracy"].tolist() == [float(p == i % 6) for i, p in enumerate(table["predicted"])]


def test_a_loaded_model_is_the_saved_one_ready_to_predict():
    weights = new_model(4).state_dict()
    model = load_model(weights)
    assert not model.training
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_channels_last_changes_no_number():
    image = torch.rand(2, 1, 64, 64)
    with torch.inference_mode():
        plain, last = new_model(1).eval(), to_device(new_model(1), CPU).eval()
        assert last.features.denseblock1.denselayer1.layers.conv2.weight.is_contiguous(
            memory_format=torch.channels_last
        )
        torch.testing.assert_close(plain(image), last(image), rtol=1e-4, atol=1e-4)
