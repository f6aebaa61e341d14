"""The one trainer: its learning rate, FedProx, what a broken loss does, and how many threads it takes."""

import copy
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ignite.engine import Events

from src.common import engine
from src.common.engine import FedProx, IdleCores, cosine, make_trainer, train_for

CPU = torch.device("cpu")


def line_batches(count, seed=0, size=4):
    draw = torch.Generator().manual_seed(seed)
    return [
        {"image": torch.randn(size, 3, generator=draw), "label": torch.randn(size, 1, generator=draw)}
        for _ in range(count)
    ]


def line_trainer(batches, rate=0.1, optimizer=torch.optim.SGD, epochs=4, **options):
    """A trainer of one linear map: small enough to follow by hand."""
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 1)
    loss = torch.nn.functional.mse_loss
    return make_trainer(model, batches, optimizer(model.parameters(), lr=rate), loss, CPU, epochs=epochs, **options)


def weights(trainer):
    return copy.deepcopy(trainer.network.state_dict())


def count_steps(trainer):
    steps = []
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda _: steps.append(1))
    return steps


# -- the learning rate -------------------------------------------------------------------------------------------------


def test_the_cosine_falls_from_one_to_zero():
    assert [round(cosine(progress), 6) for progress in (-1, 0, 0.5, 1, 2)] == [1, 1, 0.5, 0, 0]


def test_the_rate_falls_over_the_whole_training_not_over_the_round():
    trainer, rates = line_trainer(line_batches(2), epochs=4), []
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED, lambda _: rates.append(trainer.optimizer.param_groups[0]["lr"])
    )
    train_for(trainer, 2)
    train_for(trainer, 2)
    np.testing.assert_allclose(rates, [0.1 * cosine(step / 8) for step in range(8)])


def test_every_group_keeps_its_own_rate():
    model = torch.nn.Linear(3, 1)
    optimizer = torch.optim.SGD([{"params": model.weight, "lr": 1.0}, {"params": model.bias, "lr": 10.0}])
    trainer = make_trainer(model, line_batches(1), optimizer, torch.nn.functional.mse_loss, CPU, epochs=2)
    train_for(trainer, 2)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.5, 5.0])


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW])
def test_training_in_rounds_is_training_at_once(optimizer):
    batches = line_batches(3)
    whole, rounds = (line_trainer(batches, optimizer=optimizer, rate=0.01) for _ in range(2))
    at_once = train_for(whole, 4)
    last = [train_for(rounds, epochs) for epochs in (2, 1, 1)][-1]
    assert last == at_once
    for one, other in zip(whole.network.parameters(), rounds.network.parameters(), strict=True):
        assert torch.equal(one, other)
    assert (rounds.state.epoch, rounds.state.iteration) == (4, 12)


def test_the_mean_loss_is_that_of_the_last_pass():
    batches = line_batches(3)
    trainer = line_trainer(batches, rate=0.0)  # nothing moves: each pass has the loss of the first
    alone = [torch.nn.functional.mse_loss(trainer.network(b["image"]), b["label"]).item() for b in batches]
    assert train_for(trainer, 2) == pytest.approx(np.mean(alone), rel=1e-5)


# -- FedProx -----------------------------------------------------------------------------------------------------------


def test_the_proximal_term_is_fedproxs():
    mu, rate, batches = 0.7, 0.1, line_batches(3)
    trainer = line_trainer(batches, rate, epochs=1, fedprox_mu=mu)
    received, by_hand = copy.deepcopy(trainer.network), copy.deepcopy(trainer.network)
    loss = train_for(trainer, 1)
    plain = []
    for step, batch in enumerate(batches):
        by_hand.zero_grad()
        error = torch.nn.functional.mse_loss(by_hand(batch["image"]), batch["label"])
        error.backward()
        plain.append(error.item())
        with torch.no_grad():
            for value, start in zip(by_hand.parameters(), received.parameters(), strict=True):
                value -= rate * cosine(step / 3) * (value.grad + mu * (value - start))
    for one, other in zip(trainer.network.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(one, other)
    assert loss == pytest.approx(np.mean(plain))  # without the term: comparable with plain FedAvg


def test_the_proximal_gradient_is_that_of_flares_loss():
    from nvflare.app_opt.pt.fedproxloss import PTFedProxLoss

    torch.manual_seed(1)
    network = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 1))
    network[0].bias.requires_grad_(False)  # a weight that is not trained has no gradient to add to
    term, trainer = FedProx(0.3), SimpleNamespace(network=network, scaler=None)
    term.remember(trainer)
    received = copy.deepcopy(network)
    with torch.no_grad():
        for value in network.parameters():
            value += torch.randn_like(value)
    PTFedProxLoss(mu=0.3)(network, received).backward()
    expected = [value.grad for value in network.parameters()]
    for value in network.parameters():
        value.grad = torch.zeros_like(value) if value.requires_grad else None
    term.pull(trainer)
    for value, gradient in zip(network.parameters(), expected, strict=True):
        if value.requires_grad:
            torch.testing.assert_close(value.grad, gradient)


def test_the_proximal_term_pulls_towards_what_this_round_received():
    """The second round starts elsewhere: with all other gradients zero, the model stays where that round put it."""
    zero = [{"image": torch.zeros(2, 3), "label": torch.zeros(2, 1)}]
    trainer = line_trainer(zero, fedprox_mu=1.0, epochs=4)
    with torch.no_grad():
        trainer.network.bias.zero_()
    for number in (1.0, 2.0):
        with torch.no_grad():
            trainer.network.weight.fill_(number)
        train_for(trainer, 2)
        assert trainer.network.weight.tolist() == [[number] * 3]


def test_the_proximal_term_holds_the_model_back():
    moved = {}
    for mu in (0.0, 5.0):
        trainer = line_trainer(line_batches(20), fedprox_mu=mu, epochs=1)
        start = weights(trainer)
        train_for(trainer, 1)
        moved[mu] = sum(float((value - start[name]).square().sum()) for name, value in weights(trainer).items())
    assert 0 < moved[5.0] < 0.5 * moved[0.0]


# -- stopping ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_broken_loss_stops_before_it_reaches_the_weights(poison):
    batches = line_batches(2)
    batches[0]["label"][0, 0] = poison
    trainer = line_trainer(batches)
    before, steps = weights(trainer), count_steps(trainer)
    with pytest.raises(FloatingPointError, match=r"the training loss became (nan|inf) at step 1; lower the learning"):
        train_for(trainer, 1)
    assert steps == []
    for name, value in weights(trainer).items():
        assert torch.equal(value, before[name])


def test_after_a_broken_loss_the_next_round_trains_as_if_it_were_the_first_of_its_optimizer():
    batches = line_batches(4)
    good, batches[1]["image"] = batches[1]["image"], batches[1]["image"] * math.nan
    trainer = line_trainer(batches, optimizer=torch.optim.AdamW, epochs=3)
    start = weights(trainer)
    with pytest.raises(FloatingPointError, match="at step 2"):
        train_for(trainer, 1)
    assert not trainer.optimizer.state
    batches[1]["image"] = good
    trainer.network.load_state_dict(start)
    steps = count_steps(trainer)
    assert math.isfinite(train_for(trainer, 1))
    assert len(steps) == 4, "a whole pass"
    assert (trainer.state.epoch, trainer.state.iteration) == (2, 8)
    assert not torch.equal(trainer.network.weight, start["weight"])


def test_weights_that_overflow_are_found():
    (batch,) = line_batches(1)
    huge = [{key: 1e17 * value for key, value in batch.items()}]  # a loss of 1e34 still is a number
    with pytest.raises(
        FloatingPointError, match=r"2 tensors of the model hold NaN or infinity after .*first 'weight'; lower"
    ):
        train_for(line_trainer(huge, rate=1e25), 1)


def test_it_stops_within_a_step_and_can_be_asked_again():
    trainer = line_trainer(line_batches(10), epochs=8)
    steps = count_steps(trainer)
    train_for(trainer, 5, should_stop=lambda: len(steps) == 13)
    assert len(steps) == 13
    train_for(trainer, 1)
    assert len(steps) == 23, "the next round is a whole pass"


def test_an_error_of_a_handler_comes_out_as_it_is():
    trainer = line_trainer(line_batches(2))

    def interrupt(_):
        raise KeyboardInterrupt

    with trainer.add_event_handler(Events.ITERATION_COMPLETED, interrupt), pytest.raises(KeyboardInterrupt):
        train_for(trainer, 1)
    steps = count_steps(trainer)
    train_for(trainer, 1)
    assert len(steps) == 2


# -- threads by load ---------------------------------------------------------------------------------------------------


class Machine:
    """A clock and the processor seconds that this program and all others have used, moved by hand."""

    def __init__(self, monkeypatch, cores=4, threads=4):
        self.time = self.own = self.others = 0.0
        self.threads = threads
        monkeypatch.setattr(engine.time, "monotonic", lambda: self.time)
        monkeypatch.setattr(engine.os, "times", lambda: SimpleNamespace(user=0.75 * self.own, system=0.25 * self.own))
        monkeypatch.setattr(engine.psutil, "cpu_times", self.cpu_times)
        monkeypatch.setattr(engine.psutil, "cpu_count", lambda: cores)
        monkeypatch.setattr(engine.torch, "get_num_threads", lambda: self.threads)
        monkeypatch.setattr(engine.torch, "set_num_threads", self.set)
        self.asked = []

    def cpu_times(self):
        from collections import namedtuple

        used = self.own + self.others
        # Waiting for a disk is no work, and what guests do is counted in user already.
        return namedtuple("times", "user idle iowait guest")(used + 7, 100 * self.time, 3 * self.time, 7)

    def set(self, number):
        self.threads = number
        self.asked.append(number)

    def run(self, seconds, own, others):
        self.time += seconds
        self.own += own * seconds
        self.others += others * seconds


def test_other_programs_take_threads_and_give_them_back(monkeypatch):
    machine = Machine(monkeypatch)
    cores = IdleCores()
    for own, others, threads in ((4, 0, 4), (3, 1, 3), (2, 2, 2), (1, 3.9, 1), (1, 8, 1), (1, 0.2, 4)):
        machine.run(2.0, own, others)
        cores()
        assert machine.threads == threads, (own, others)


def test_it_looks_no_more_often_than_once_a_second(monkeypatch):
    machine = Machine(monkeypatch)
    cores = IdleCores()
    for _ in range(30):
        machine.run(0.1, own=3, others=1)
        cores()
    assert len(machine.asked) == pytest.approx(3, abs=1)
    assert set(machine.asked) == {3}


def test_it_never_takes_more_threads_than_it_was_given(monkeypatch):
    machine = Machine(monkeypatch, cores=16, threads=2)
    cores = IdleCores()
    machine.run(2.0, own=2, others=0)
    cores()
    assert machine.threads == 2


def test_a_training_beside_another_program_ends_with_all_its_threads(monkeypatch):
    machine = Machine(monkeypatch)
    seen = []
    trainer = line_trainer(line_batches(3))

    def one_step_of_two_seconds(_):
        machine.run(2.0, own=3, others=1)

    with trainer.add_event_handler(Events.ITERATION_STARTED, one_step_of_two_seconds):
        trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda _: seen.append(machine.threads))
        train_for(trainer, 1)
    assert seen == [3, 3, 3]
    assert machine.threads == 4


def test_with_one_thread_there_is_nothing_to_share(monkeypatch):
    machine = Machine(monkeypatch, threads=1)
    train_for(line_trainer(line_batches(3)), 1)
    assert machine.asked == []
