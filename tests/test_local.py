"""Training without a federation: as much as the settings say, the last model, and a stream of chance for every site."""

import importlib
import inspect
import re

import pytest
import torch

from src.common.engine import make_trainer
from src.common.seeds import seeded, site_seed
from src.common.task import tasks
from src.federation.local import train_each_site_alone, train_locally
from src.mednist.card import Settings


class LineTask:
    """A task as small as can be: its card and both of its rooms. The "augmentation" is noise of the loader's own seed."""

    key_metric = "val_fit"

    def __init__(self):
        self.seeds, self.validated, self.caches = [], [], []

    def room(self, name):
        return self

    def prepare(self, items, settings, cache=None):
        self.caches.append(cache)
        return items

    def batches(self, prepared, settings, train, seed=0):
        self.seeds.append(seed)
        draw = torch.Generator().manual_seed(seed)
        noise = [torch.randn(2, 3, generator=draw) for _ in prepared]
        return [{"image": item + own, "label": item[:, :1]} for item, own in zip(prepared, noise, strict=True)]

    def new_model(self, seed, network=""):
        with seeded(seed):
            return torch.nn.Linear(3, 1)

    def to_device(self, model, device):
        return model

    def make_trainer(self, model, loader, settings, device):
        optimizer = torch.optim.SGD(model.parameters(), lr=settings.learning_rate)
        return make_trainer(
            model, loader, optimizer, torch.nn.functional.mse_loss, torch.device("cpu"), epochs=settings.epochs
        )

    def evaluate(self, model, prepared, settings, device):
        if not prepared:
            return {}
        self.validated.append(model.weight.detach().clone())
        return {"val_fit": float(-model.weight.detach().abs().sum())}


def parts(items=3):
    draw = torch.Generator().manual_seed(0)
    return {"training": [torch.randn(2, 3, generator=draw) for _ in range(items)], "validation": ["a picture"]}


@pytest.fixture
def task():
    return LineTask()


@pytest.mark.parametrize(("rounds", "local_epochs"), [(5, 1), (2, 3), (1, 2), (3, 2)])
def test_it_trains_as_many_epochs_as_the_federation(task, rounds, local_epochs):
    settings = Settings(rounds=rounds, local_epochs=local_epochs)
    trained = train_locally(task, parts(), settings)
    assert trained.epochs == rounds * local_epochs
    assert trained.steps == rounds * local_epochs * 3
    assert [entry["epoch"] for entry in trained.history] == [local_epochs * (i + 1) for i in range(rounds)]
    assert all(set(entry) == {"epoch", "train_loss", "val_fit"} for entry in trained.history)
    assert trained.seconds > 0


def test_it_keeps_the_last_model(task):
    trained = train_locally(task, parts(), Settings(rounds=3, learning_rate=0.1))
    assert len(task.validated) == 3
    assert torch.equal(trained.model.weight, task.validated[-1])
    assert not torch.equal(task.validated[0], task.validated[-1])
    assert trained.history[-1]["val_fit"] == pytest.approx(float(-trained.model.weight.detach().abs().sum()))


def test_without_validation_it_is_the_same_model(task):
    settings = Settings(rounds=3, learning_rate=0.1)
    quick, watched = (train_locally(task, parts(), settings, validate=asked) for asked in (False, True))
    assert len(task.validated) == settings.rounds, "those of the second training alone"
    assert torch.equal(quick.model.weight, watched.model.weight)
    assert all(set(entry) == {"epoch", "train_loss"} for entry in quick.history)
    assert [entry["train_loss"] for entry in quick.history] == [entry["train_loss"] for entry in watched.history]


def test_it_starts_from_the_settings_seed_or_from_given_weights(task):
    still = Settings(rounds=1, learning_rate=1e-30, seed=7)
    torch.testing.assert_close(train_locally(task, parts(), still).model.weight, task.new_model(7).weight)
    given = task.new_model(8).state_dict()
    before = given["weight"].clone()
    torch.testing.assert_close(train_locally(task, parts(), still, initial_weights=given).model.weight, before)
    train_locally(task, parts(), Settings(rounds=1, learning_rate=0.1), initial_weights=given)
    assert torch.equal(given["weight"], before), "the given weights are the caller's"


def test_every_site_draws_its_own_augmentation_and_draws_it_again(task):
    settings = Settings(rounds=1, learning_rate=0.1, seed=3)
    weights = {
        site: [train_locally(task, parts(), settings, site).model.weight for _ in range(2)]
        for site in ("site-1", "site-2")
    }
    for once, again in weights.values():
        assert torch.equal(once, again)
    assert not torch.equal(weights["site-1"][0], weights["site-2"][0])
    assert len(set(task.seeds)) == 2


def test_the_seeds_of_sites_differ_and_follow_the_studys():
    seeds = {site_seed(seed, f"site-{number}") for seed in (0, 1) for number in range(1, 17)}
    assert len(seeds) == 32
    assert site_seed(1, "site-1") == site_seed(0, "site-1") + 1


def test_first_weights_leave_the_state_of_chance_alone():
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    with seeded(3):
        one = torch.randn(4)
    assert torch.equal(torch.random.get_rng_state(), before)
    with seeded(3):
        assert torch.equal(torch.randn(4), one)
    with seeded(None):
        torch.randn(1)
    assert not torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("side_by_side", [False, True])
def test_each_site_alone_comes_out_as_one_by_one(task, side_by_side):
    settings, before = Settings(rounds=2, learning_rate=0.1), torch.get_num_threads()
    datalists = {"north": parts(2), "south": parts(4), "west": parts(3)}
    torch.set_num_threads(2)
    try:
        together = train_each_site_alone(task, datalists, settings, side_by_side=side_by_side)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert list(together) == ["north", "south", "west"]
    assert [trained.steps for trained in together.values()] == [4, 8, 6]
    for site, trained in together.items():
        alone = train_locally(task, datalists[site], settings, site)
        torch.testing.assert_close(trained.model.weight, alone.model.weight)


def test_the_cache_folder_reaches_both_parts(task, tmp_path):
    train_locally(task, parts(), Settings(rounds=1), cache=tmp_path)
    assert task.caches == [tmp_path, tmp_path]


@pytest.mark.parametrize("card", tasks().values(), ids=lambda card: card.name)
def test_a_sites_script_makes_the_same_calls(card):
    """Notebook 02 shows the two side by side and says so."""
    lines = [
        [line.strip() for line in inspect.getsource(function).splitlines()]
        for function in (train_locally, importlib.import_module(f"src.{card.client.removesuffix('.py')}").main)
    ]
    calls = [line for line in lines[0] if re.match(r"(training, validation|loader|model|trainer|metrics) = ", line)]
    assert len(calls) == 5
    assert [call for call in calls if call not in lines[1]] == []
