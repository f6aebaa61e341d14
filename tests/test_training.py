"""Local training: it stops at a broken loss, goes on where it stopped, and two equal sites take the pooled step."""

import copy

import pytest
import torch
from nvflare.apis.fl_constant import FLMetaKey
from nvflare.app_common.abstract.fl_model import FLModel

from src import training
from src.aggregation import SampleWeightedMean

CPU = torch.device("cpu")


def batches(images: int, seed: int = 0, size: int = 8):
    """One batch of random images and labels, as a loader of one step."""
    draw = torch.Generator().manual_seed(seed)
    image = torch.rand(images, 1, 8, 8, generator=draw)
    return [
        {"image": image[i : i + size], "label": torch.arange(i, min(i + size, images)) % 3}
        for i in range(0, images, size)
    ]


def small_model(seed: int = 0):
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 16), torch.nn.Tanh(), torch.nn.Linear(16, 3))


def sgd_trainer(model, loader, rate=0.5):
    return training.classification_trainer(model, loader, torch.optim.SGD(model.parameters(), lr=rate), CPU)


def test_two_equal_sites_with_one_sgd_step_take_the_pooled_step():
    start = small_model()
    pooled_batch = batches(8)[0]
    halves = [{key: value[part] for key, value in pooled_batch.items()} for part in (slice(0, 4), slice(4, 8))]

    pooled = copy.deepcopy(start)
    training.train_for(sgd_trainer(pooled, [pooled_batch]), 1)

    aggregator = SampleWeightedMean()
    for site, half in enumerate(halves):
        local = copy.deepcopy(start)
        training.train_for(sgd_trainer(local, [half]), 1)
        params = {name: tensor.numpy() for name, tensor in local.state_dict().items()}
        meta = {"client_name": f"site-{site + 1}", FLMetaKey.NUM_STEPS_CURRENT_ROUND: 4}
        aggregator.accept_model(FLModel(params=params, meta=meta, current_round=0))
    mean = aggregator.aggregate_model().params

    for name, tensor in pooled.state_dict().items():
        assert not torch.equal(tensor, start.state_dict()[name]), f"{name} was not trained"
        torch.testing.assert_close(torch.from_numpy(mean[name]), tensor, rtol=1e-5, atol=1e-7)


def test_training_in_parts_is_training_at_once():
    results = []
    for parts in ((3,), (1, 1, 1)):
        model = small_model()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        trainer = training.classification_trainer(model, batches(24), optimizer, CPU)
        loss = [training.train_for(trainer, epochs) for epochs in parts][-1]
        results.append((loss, model.state_dict()))
    (loss_once, once), (loss_parts, in_parts) = results
    assert loss_once == pytest.approx(loss_parts)
    for name in once:
        torch.testing.assert_close(once[name], in_parts[name], rtol=0, atol=0)


def test_the_mean_loss_is_that_of_the_last_epoch():
    model = small_model()
    trainer = sgd_trainer(model, batches(24), rate=0.0)  # nothing moves: each epoch has the loss of the first
    expected = torch.stack(
        [torch.nn.functional.cross_entropy(model(b["image"]), b["label"]) for b in batches(24)]
    ).mean()
    assert training.train_for(trainer, 2) == pytest.approx(expected.item(), rel=1e-5)


def test_a_broken_loss_stops_before_it_reaches_the_weights():
    model = small_model()
    before = copy.deepcopy(model.state_dict())
    loader = batches(8)
    loader[0]["image"][0, 0, 0, 0] = float("nan")
    with pytest.raises(FloatingPointError, match=r"loss became nan at step 1.*learning rate"):
        training.train_for(sgd_trainer(model, loader), 1)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_evaluation_equals_its_definition():
    model, loader = small_model(), batches(20)
    logits = torch.cat([model(batch["image"]) for batch in loader])
    labels = torch.cat([batch["label"] for batch in loader])
    metrics = training.evaluate(model, loader, CPU)
    assert metrics["accuracy"] == pytest.approx((logits.argmax(1) == labels).float().mean().item())
    assert metrics["loss"] == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), rel=1e-5)
    probabilities, same_labels = training.predict(model, loader, CPU)
    torch.testing.assert_close(probabilities, logits.softmax(1))
    assert torch.equal(same_labels, labels)


def test_nothing_to_validate_gives_no_metrics():
    assert training.evaluate(small_model(), [], CPU) == {}
