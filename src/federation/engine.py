"""One trainer for all trainings of the course: https://docs.monai.io/en/stable/engines.html#supervisedtrainer with handlers."""

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from ignite.engine import Engine, Events
from torch.nn import Module

from src.federation.lean import monai

SupervisedTrainer, IterationEvents = monai.engines.SupervisedTrainer, monai.engines.IterationEvents


def pick_device() -> torch.device:
    """The first GPU when there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def cosine(progress: float) -> float:
    """Factor on the learning rate that falls from 1 to 0 along half a cosine (Loshchilov and Hutter, *SGDR*, ICLR 2017)."""
    return 0.5 * (1 + math.cos(math.pi * min(max(progress, 0.0), 1.0)))


def make_trainer(
    model: Module, batches: Iterable, optimizer, loss: Callable, device, epochs: int, amp=False, handlers: Sequence = ()
) -> SupervisedTrainer:
    """MONAI's trainer, with a learning rate that falls over the whole training and a stop before a NaN does harm.

    ``batches`` have a length and hold ``image`` and ``label``. The optimiser's rates fall to 0 over all ``epochs``; its state never
    leaves a site. ``trainer.run()`` trains all epochs, :func:`train_for` some. ``amp``: bfloat16, where the GPU has it."""
    half = amp and device.type == "cuda" and torch.cuda.is_bf16_supported()
    trainer = SupervisedTrainer(
        device=device,
        max_epochs=epochs,
        train_data_loader=batches,
        network=model,
        optimizer=optimizer,
        loss_function=loss,
        inferer=torch.autocast("cuda", dtype=torch.bfloat16)(monai.inferers.SimpleInferer()) if half else None,
        decollate=False,
        optim_set_to_none=True,
        train_handlers=list(handlers),
    )
    rates = [group["lr"] for group in optimizer.param_groups]
    total = max(1, epochs * len(batches))

    def set_rate(engine: Engine) -> None:
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * cosine((engine.state.iteration - 1) / total)

    trainer.add_event_handler(Events.ITERATION_STARTED, set_rate)
    trainer.add_event_handler(IterationEvents.LOSS_COMPLETED, stop_on_broken_loss)
    return trainer


def stop_on_broken_loss(engine: Engine) -> None:
    """Give up before a NaN reaches the weights."""
    loss = engine.state.output[monai.utils.CommonKeys.LOSS].item()
    if not math.isfinite(loss):
        give_up(engine, f"the training loss became {loss} at step {engine.state.iteration}")


def give_up(engine: Engine, what: str) -> None:
    """Raise a ``FloatingPointError``, and forget running means, which would carry the fault into whatever is trained next."""
    engine.optimizer.state.clear()
    raise FloatingPointError(f"{what}; lower the learning rate, or look at the images and labels of this site")


class ProximalTerm:
    """Holds a network near a reference: adds the gradient of ``mu / 2 * |w - reference|^2`` to that of the loss.

    As FLARE's ``PTFedProxLoss``, without a second pass of autograd, a quarter of a small network's step on a CPU. The reference is
    ``towards``, or the trainer's own network, as each run of the trainer finds it."""

    def __init__(self, mu: float, towards: Module | None = None):
        self.mu, self.towards = mu, towards

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self.remember)
        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self.pull)

    def remember(self, engine: Engine) -> None:
        self.reference = [value.detach().clone() for value in (self.towards or engine.network).parameters()]

    @torch.no_grad()
    def pull(self, engine: Engine) -> None:
        pairs = [(w, r) for w, r in zip(engine.network.parameters(), self.reference, strict=True) if w.grad is not None]
        away = torch._foreach_sub([weight for weight, _ in pairs], [origin for _, origin in pairs])
        torch._foreach_add_([weight.grad for weight, _ in pairs], away, alpha=self.mu)


def train_for(
    trainer: SupervisedTrainer, epochs: int, should_stop: Callable[[], bool] = lambda: False, done: int | None = None
) -> float:
    """Train for ``epochs`` more passes over the trainer's batches, or until ``should_stop``, asked after every step, is true.

    The learning rate is that after ``done`` passes, by default this trainer's: a site that was away goes on where the others are.
    Returns the mean loss of the last pass, without a proximal term; a ``FloatingPointError`` if it or a weight is not finite."""
    losses, failures = [], []
    trainer.state.epoch = trainer.state.epoch if done is None else done

    def remember(engine: Engine) -> None:
        losses.append(engine.state.output[monai.utils.CommonKeys.LOSS].item())
        if should_stop():
            engine.terminate()

    def stop(engine: Engine, error: BaseException) -> None:
        # An Ignite engine that was left by an exception would train nothing when it runs again; one that was terminated does.
        failures.append(error)
        engine.terminate()

    on = trainer.add_event_handler
    with on(Events.ITERATION_COMPLETED, remember), on(Events.EXCEPTION_RAISED, stop):
        # A pass that was broken off counts as a whole one; else the next would be as much shorter.
        trainer.state.iteration = trainer.state.epoch * trainer.state.epoch_length
        trainer.state.max_epochs = trainer.state.epoch + epochs
        trainer.run()
    if failures:
        raise failures[0]
    if bad := [name for name, value in trainer.network.state_dict().items() if not torch.isfinite(value).all()]:
        give_up(trainer, f"{len(bad)} tensors of the model hold NaN or infinity after training, first {bad[0]!r}")
    last = losses[-trainer.state.epoch_length :]
    return sum(last) / max(1, len(last))
