"""Training without a federation: as much as the settings say, the last model, and a stream of chance for every site."""

from dataclasses import replace

import pytest
import torch

from benchmarks.local import train_each_site_alone, train_locally
from src.common.errors import CourseError
from src.common.seeds import seeded, site_seed
from tests.training_support import LINE, LineSettings, line_batches, same


def parts(items=3):
    return {"training": line_batches(items), "validation": line_batches(1)}


@pytest.mark.parametrize(("rounds", "local_epochs"), [(5, 1), (2, 3), (1, 2)])
def test_it_trains_as_many_epochs_as_the_federation_and_keeps_the_last_model(rounds, local_epochs):
    trained = train_locally(LINE, parts(), LineSettings(rounds=rounds, local_epochs=local_epochs))
    assert (trained.epochs, trained.steps) == (rounds * local_epochs, rounds * local_epochs * 3)
    assert [entry["epoch"] for entry in trained.history] == [local_epochs * (i + 1) for i in range(rounds)]
    assert all(set(entry) == {"epoch", "train_loss", "val_fit"} for entry in trained.history)
    assert len({entry["val_fit"] for entry in trained.history}) == rounds
    assert trained.history[-1]["val_fit"] == pytest.approx(float(-trained.model.weight.detach().abs().sum()))
    assert trained.seconds > 0


def test_without_validation_it_is_the_same_model_and_the_cache_reaches_both_parts(tmp_path):
    quick, watched = (train_locally(LINE, parts(), LineSettings(), validate=asked) for asked in (False, True))
    assert same(quick.model, watched.model)
    assert quick.history == [{key: entry[key] for key in ("epoch", "train_loss")} for entry in watched.history]
    caches = []
    task = replace(LINE, prepare=lambda items, settings, cache: caches.append(cache) or items)
    train_locally(task, parts(), LineSettings(rounds=1), cache=tmp_path)
    assert caches == [tmp_path, tmp_path]


def test_it_starts_from_the_settings_seed_or_from_given_weights_and_heeds_no_federated_method():
    still = LineSettings(rounds=1, learning_rate=1e-30, seed=7)
    assert same(train_locally(LINE, parts(), still).model, LINE.new_model(7))
    given, moves = LINE.new_model(8), LineSettings(rounds=1)
    assert same(train_locally(LINE, parts(), still, weights=given.state_dict()).model, given)
    train_locally(LINE, parts(), moves, weights=given.state_dict())
    assert same(given, LINE.new_model(8)), "the given weights are the caller's"
    with pytest.raises(CourseError, match=r"method='scaffold' would not be heeded\. Give settings.changed\(method='fe"):
        train_locally(LINE, parts(), LineSettings(method="scaffold"))


def test_every_site_draws_its_own_augmentation_and_draws_it_again():
    settings = LineSettings(seed=3, noise=1.0)
    north, again, south = (train_locally(LINE, parts(), settings, site).model for site in ("north", "north", "south"))
    assert same(north, again) and not same(north, south)
    seeds = {site_seed(seed, f"site-{number}") for seed in (0, 1) for number in range(1, 17)}
    assert len(seeds) == 32 and site_seed(1, "site-1") == site_seed(0, "site-1") + 1


def test_first_weights_leave_the_state_of_chance_alone():
    before = torch.random.get_rng_state()
    assert same(LINE.new_model(3), LINE.new_model(3)) and torch.equal(torch.random.get_rng_state(), before)
    with seeded(None):
        torch.randn(1)
    assert not torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.usefixtures("one_thread")  # which puts the number of threads back
@pytest.mark.parametrize("side_by_side", [False, True])
def test_each_site_alone_comes_out_as_one_by_one(side_by_side):
    settings, datalists = LineSettings(rounds=2, noise=1.0), {"north": parts(2), "south": parts(4), "west": parts(3)}
    torch.set_num_threads(2)
    together = train_each_site_alone(LINE, datalists, settings, side_by_side=side_by_side)
    assert torch.get_num_threads() == 2
    assert {site: trained.steps for site, trained in together.items()} == {"north": 4, "south": 8, "west": 6}
    for site, trained in together.items():
        alone = train_locally(LINE, datalists[site], settings, site)
        torch.testing.assert_close(trained.model.weight, alone.model.weight)
