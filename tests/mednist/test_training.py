"""Training the classifier: the pieces equal their definitions. That two sites take the pooled step: see the learner's tests."""

import copy

import pytest
import torch
from PIL import Image

from src.federation.engine import train_for
from src.mednist.evaluation import TASK, evaluate_cases
from src.mednist.training import evaluate, make_evaluator, make_trainer, to_device
from src.mednist.transforms import batches, prepare
from tests.training_support import CPU, same

SETTINGS = TASK.settings(batch_size=8, rounds=2)

pytestmark = pytest.mark.usefixtures("one_thread")


def images(number: int, seed: int = 0) -> list[dict]:
    """Prepared random pictures."""
    draw = torch.Generator().manual_seed(seed)
    return [{"image": torch.rand(1, 64, 64, generator=draw), "label": i % 6} for i in range(number)]


def small() -> torch.nn.Module:
    """A network of some thousand weights in place of DenseNet's seven million."""
    torch.manual_seed(0)
    layers = torch.nn.Linear(64, 16), torch.nn.Tanh(), torch.nn.Linear(16, 6)
    return torch.nn.Sequential(torch.nn.AvgPool2d(8), torch.nn.Flatten(), *layers)


def test_the_trainer_is_adam_on_cross_entropy_over_all_rounds_and_the_network_keeps_channels_last_as_is_quickest():
    model, items = small(), images(12)
    trainer = make_trainer(model, batches(items, SETTINGS, train=True), SETTINGS, CPU)
    assert isinstance(trainer.optimizer, torch.optim.Adam)
    assert isinstance(trainer.loss_function, torch.nn.CrossEntropyLoss)
    train_for(trainer, 2)
    assert (trainer.state.epoch, trainer.state.iteration) == (2, 4)
    # After the last step of all rounds the next rate would be 0.
    assert 0 < trainer.optimizer.param_groups[0]["lr"] < 0.2 * SETTINGS.learning_rate
    weights = dict(to_device(TASK.new_model(1), CPU).named_parameters())
    (weight,) = (value for name, value in weights.items() if "denseblock1.denselayer1.layers.conv2" in name)
    assert weight.is_contiguous(memory_format=torch.channels_last)


def test_evaluation_equals_its_definition_and_changes_nothing():
    model, items = small(), images(20)
    logits = torch.cat([model(one["image"][None]) for one in items])
    labels = torch.tensor([one["label"] for one in items])
    metrics = evaluate(model, items, SETTINGS, CPU)
    assert set(metrics) == {"val_accuracy", "val_loss"}
    assert metrics[TASK.key_metric] == pytest.approx((logits.argmax(1) == labels).float().mean().item())
    assert metrics["val_loss"] == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), rel=1e-5)
    evaluator = make_evaluator(model, batches(items, SETTINGS, train=False), CPU)
    evaluator.run()
    assert evaluator.state.metrics == pytest.approx(metrics) and evaluator.state.key_metric_name == TASK.key_metric
    assert evaluate(model, [], SETTINGS, CPU) == {}, "nothing to validate on gives no metrics"
    batchnorm = TASK.new_model(0)
    before = copy.deepcopy(batchnorm)
    evaluate(batchnorm, items[:3], SETTINGS, CPU)
    assert same(batchnorm, before)


def test_what_is_said_of_each_image_is_what_the_network_says(tmp_path):
    files = []
    for number, one in enumerate(images(10, seed=3)):
        file = tmp_path / f"Class{one['label']}" / f"{number:06d}.png"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray((255 * one["image"][0]).byte().numpy()).save(file)
        files.append({"image": str(file), "label": one["label"], "site": "north"})
    model = small().train()
    table = evaluate_cases(model, files, SETTINGS, CPU)
    probabilities = torch.cat([model(one["image"][None]) for one in prepare(files, SETTINGS)]).softmax(1).detach()
    assert list(table.columns) == ["case", "site", "label", "predicted", "confidence", "accuracy"]
    assert table["case"].tolist() == [f"Class{i % 6}/{i:06d}.png" for i in range(10)]
    assert set(table["site"]) == {"north"} and table["predicted"].tolist() == probabilities.argmax(1).tolist()
    assert table["confidence"].tolist() == pytest.approx(probabilities.amax(1).tolist())
    assert table["accuracy"].tolist() == [float(p == i % 6) for i, p in enumerate(table["predicted"])]
