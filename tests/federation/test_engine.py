"""The one trainer: its learning rate, the proximal term, and what a broken loss does."""

import copy
import math
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from ignite.engine import Events
from nvflare.app_opt.pt.fedproxloss import PTFedProxLoss

from src.federation.engine import ProximalTerm, cosine, make_trainer, train_for
from tests.training_support import CPU, line_batches, line_trainer, same


def watched(trainer, note=lambda trainer: copy.deepcopy(trainer.network)):
    """A list that grows in each step, by default by a copy of the network."""
    steps = []
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda _: steps.append(note(trainer)))
    return steps


def test_the_rate_falls_along_half_a_cosine_over_the_whole_training_not_over_the_round():
    assert [round(cosine(progress), 6) for progress in (-1, 0, 0.5, 1, 2)] == [1, 1, 0.5, 0, 0]
    model = torch.nn.Linear(3, 1)
    optimizer = torch.optim.SGD([{"params": model.weight, "lr": 1.0}, {"params": model.bias, "lr": 10.0}])
    trainer = make_trainer(model, line_batches(2), optimizer, torch.nn.functional.mse_loss, CPU, epochs=4)
    rates = watched(trainer, lambda _: [group["lr"] for group in optimizer.param_groups])
    for _ in range(2):
        train_for(trainer, 2)
    np.testing.assert_allclose(rates, [[cosine(step / 8), 10 * cosine(step / 8)] for step in range(8)])


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW])
def test_training_in_rounds_is_training_at_once_and_the_loss_that_of_the_last_pass(optimizer):
    whole, rounds = (line_trainer(line_batches(3), optimizer=optimizer, rate=0.01) for _ in range(2))
    assert train_for(whole, 4) == [train_for(rounds, epochs) for epochs in (2, 1, 1)][-1]
    assert same(whole.network, rounds.network) and (rounds.state.epoch, rounds.state.iteration) == (4, 12)


@pytest.mark.parametrize(("optimizer", "exact"), [(torch.optim.SGD, True), (torch.optim.Adam, False)])
def test_the_mean_of_two_sites_single_steps_is_the_pooled_step_for_plain_gradient_steps_alone(optimizer, exact):
    one, other = line_batches(2)
    both = {key: torch.cat([one[key], other[key]]) for key in one}
    trainers = [line_trainer([batch], optimizer=optimizer, epochs=1) for batch in (one, other, both)]
    for trainer in trainers:
        train_for(trainer, 1)
    first, second, pooled = (trainer.network.weight.detach() for trainer in trainers)
    assert torch.allclose((first + second) / 2, pooled, atol=1e-6) == exact


@pytest.mark.parametrize("other", [None, torch.nn.Linear(3, 1)], ids=["what it received", "another network"])
def test_the_proximal_term_is_that_of_flares_loss(other):
    """Steps by hand with FLARE's loss, in which one weight is not trained and has no gradient to add to."""
    batches, mu, rate = line_batches(3), 0.7, 0.1
    trainer = line_trainer(batches, rate, epochs=1)
    trainer.network.bias.requires_grad_(False)
    by_hand, reference = copy.deepcopy(trainer.network), other or copy.deepcopy(trainer.network)
    ProximalTerm(mu, other).attach(trainer)
    plain, loss = [], train_for(trainer, 1)
    for step, batch in enumerate(batches):
        by_hand.zero_grad()
        error = torch.nn.functional.mse_loss(by_hand(batch["image"]), batch["label"])
        (error + PTFedProxLoss(mu)(by_hand, reference)).backward()
        plain.append(error.item())
        with torch.no_grad():
            by_hand.weight -= rate * cosine(step / 3) * by_hand.weight.grad
    torch.testing.assert_close(trainer.network.state_dict(), by_hand.state_dict())
    assert loss == pytest.approx(np.mean(plain))  # without the term: comparable with plain FedAvg


def test_the_proximal_term_pulls_towards_what_this_round_received():
    """The second round starts elsewhere: with all other gradients zero, the model stays where that round put it."""
    trainer = line_trainer([{"image": torch.zeros(2, 3), "label": torch.zeros(2, 1)}], epochs=4)
    ProximalTerm(1.0).attach(trainer)
    torch.nn.init.zeros_(trainer.network.bias)
    for number in (1.0, 2.0):
        torch.nn.init.constant_(trainer.network.weight, number)
        train_for(trainer, 2)
        assert trainer.network.weight.tolist() == [[number] * 3]


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_broken_loss_stops_before_it_reaches_the_weights_and_the_next_round_starts_its_optimizer_anew(poison):
    batches = line_batches(4)
    good, batches[1]["image"] = batches[1]["image"], batches[1]["image"] * poison
    trainer = line_trainer(batches, optimizer=torch.optim.AdamW, epochs=3)
    steps = watched(trainer)
    with pytest.raises(FloatingPointError, match=r"the training loss became (nan|inf) at step 2; lower the learning"):
        train_for(trainer, 1)
    assert len(steps) == 1 and same(trainer.network, steps[0]) and not trainer.optimizer.state
    batches[1]["image"] = good
    assert math.isfinite(train_for(trainer, 1))
    assert len(steps) == 1 + 4, "a whole pass"
    assert (trainer.state.epoch, trainer.state.iteration) == (2, 8) and not same(trainer.network, steps[0])


def test_weights_that_overflow_are_found():
    huge = [{key: 1e17 * value for key, value in line_batches(1)[0].items()}]  # a loss of 1e34 still is a number
    said = r"2 tensors of the model hold NaN or infinity after .*first 'weight'; lower"
    with pytest.raises(FloatingPointError, match=said):
        train_for(line_trainer(huge, rate=1e25), 1)


def test_it_stops_within_a_step_and_can_be_asked_again_also_after_an_error_of_a_handler():
    trainer, interrupt = line_trainer(line_batches(10), epochs=8), Mock(side_effect=KeyboardInterrupt)
    steps = watched(trainer)
    train_for(trainer, 5, should_stop=lambda: len(steps) == 13)
    assert len(steps) == 13
    with trainer.add_event_handler(Events.ITERATION_COMPLETED, interrupt), pytest.raises(KeyboardInterrupt):
        train_for(trainer, 1)
    assert len(steps) == 14
    train_for(trainer, 1)
    assert len(steps) == 24, "the next round is a whole pass"
