"""One trainer for all trainings of the course: at a site of a federation, at a site alone, and on pooled data.

It is MONAI's ``SupervisedTrainer`` with handlers: https://docs.monai.io/en/stable/engines.html#supervisedtrainer
"""

# ruff: noqa: E402
import math
import os
import time
from collections.abc import Callable, Iterable, Sequence

from src.common.lean import import_monai

import_monai()  # before anything else imports it

import psutil
import torch
from ignite.engine import Engine, Events
from monai.engines import IterationEvents, SupervisedTrainer
from monai.engines.utils import CommonKeys
from monai.inferers import SimpleInferer


def pick_device() -> torch.device:
    """The first GPU when there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def cosine(progress: float) -> float:
    """Factor on the learning rate that falls from 1 to 0 along half a cosine (Loshchilov and Hutter, *SGDR*, ICLR 2017)."""
    return 0.5 * (1 + math.cos(math.pi * min(max(progress, 0.0), 1.0)))


def make_trainer(
    model: torch.nn.Module,
    batches: Iterable,
    optimizer: torch.optim.Optimizer,
    loss: Callable,
    device: torch.device,
    epochs: int,
    fedprox_mu: float = 0.0,
    amp: bool = False,
    handlers: Sequence = (),
) -> SupervisedTrainer:
    """MONAI's trainer, with a learning rate that falls over the whole training and a stop before a NaN does harm.

    The optimiser's state stays with the trainer, so that one that runs again goes on where it stopped: in a federation that state
    stays at its site and is never sent.

    Args:
        model: on ``device``.
        batches: yields dictionaries with ``image`` and ``label``; has a length.
        optimizer: the learning rates that it comes with are those at the start.
        loss: ``loss(outputs, labels)``, a scalar.
        device: where the model is.
        epochs: passes over the batches in all runs together, over which the learning rate falls to 0.
        fedprox_mu: weight of the proximal term of FedProx (Li et al., *Federated Optimization in Heterogeneous Networks*, MLSys
            2020), ``mu / 2 * |w - w_received|^2``, which holds a site near the model that it received.
        amp: mixed precision on a GPU that computes in bfloat16, which has the range of float32 and needs no scaled gradients.
        handlers: MONAI or Ignite handlers to attach.

    Returns:
        The trainer. ``trainer.run()`` trains all epochs, :func:`train_for` some.
    """
    half = amp and device.type == "cuda" and torch.cuda.is_bf16_supported()
    trainer = SupervisedTrainer(
        device=device,
        max_epochs=epochs,
        train_data_loader=batches,
        network=model,
        optimizer=optimizer,
        loss_function=loss,
        inferer=HalfPrecision() if half else SimpleInferer(),
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
    if fedprox_mu:
        FedProx(fedprox_mu).attach(trainer)
    if device.type == "cpu":
        IdleCores().attach(trainer)
    return trainer


class HalfPrecision(SimpleInferer):
    """Runs the network in mixed precision, bfloat16, on a GPU."""

    def __call__(self, inputs: torch.Tensor, network: Callable, *args, **kwargs) -> torch.Tensor:
        """The network's output."""
        with torch.autocast("cuda", dtype=torch.bfloat16):
            return super().__call__(inputs, network, *args, **kwargs)


def stop_on_broken_loss(engine: Engine) -> None:
    """Handler for MONAI's ``LOSS_COMPLETED``: stops before a NaN reaches the weights.

    Raises:
        FloatingPointError: names the loss and the step. The optimiser's state is forgotten.
    """
    loss = engine.state.output[CommonKeys.LOSS].item()
    if not math.isfinite(loss):
        _give_up(engine, f"the training loss became {loss} at step {engine.state.iteration}")


def _give_up(engine: Engine, what: str) -> None:
    engine.optimizer.state.clear()  # its running means would carry the fault into whatever is trained next
    raise FloatingPointError(f"{what}; lower the learning rate, or look at the images and labels of this site")


class FedProx:
    """Adds the gradient of FedProx's proximal term, ``mu * (w - w_received)``, to that of the loss.

    The same as adding FLARE's ``PTFedProxLoss`` to the loss, without a second pass of autograd through all weights, which takes
    a quarter of a step of a small network on a CPU.

    Args:
        mu: weight of the term.
        towards: the network whose weights, as each run of the trainer finds them, are the reference; by default the trainer's own.
    """

    def __init__(self, mu: float, towards: torch.nn.Module | None = None):
        self.mu, self.towards = mu, towards
        self.received: list[torch.Tensor] = []

    def attach(self, engine: Engine) -> None:
        """Take the reference when the trainer starts, pull towards it in each step."""
        engine.add_event_handler(Events.STARTED, self.remember)
        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self.pull)

    def remember(self, engine: Engine) -> None:
        """Keep a copy of the reference, by default the weights that the training starts from."""
        self.received = [value.detach().clone() for value in (self.towards or engine.network).parameters()]

    @torch.no_grad()
    def pull(self, engine: Engine) -> None:
        """Add the proximal gradient."""
        pairs = [(w, r) for w, r in zip(engine.network.parameters(), self.received, strict=True) if w.grad is not None]
        away = torch._foreach_sub([weight for weight, _ in pairs], [origin for _, origin in pairs])
        torch._foreach_add_([weight.grad for weight, _ in pairs], away, alpha=self.mu)


class IdleCores:
    """Uses as many threads as there are idle cores, looked at every second.

    PyTorch's threads wait for one another after each layer by spinning. When another program takes one of their cores, all wait
    for the thread on that core, and the training falls to a third; on the cores that are left it keeps most of its speed.
    """

    EVERY_SECONDS = 1.0

    def __init__(self):
        self.most = torch.get_num_threads()
        self._seen = self._now()

    @staticmethod
    def _now() -> tuple[float, float, float]:
        """Time, and seconds of processor time that all programs and this one have used."""
        total = psutil.cpu_times()
        busy = sum(total) - total.idle - getattr(total, "iowait", 0) - getattr(total, "guest", 0)
        own = os.times()
        return time.monotonic(), busy, own.user + own.system

    def attach(self, engine: Engine) -> None:
        """Look when a trainer starts and after each step; with one thread there is nothing to share."""
        if self.most > 1:
            engine.add_event_handler(Events.STARTED, self)
            engine.add_event_handler(Events.ITERATION_COMPLETED, self)
            engine.add_event_handler(Events.COMPLETED, self.all)

    def __call__(self, engine: Engine | None = None) -> None:
        """Set the number of threads, if the last look was long enough ago."""
        now = self._now()
        seconds = now[0] - self._seen[0]
        if seconds >= self.EVERY_SECONDS:
            others = (now[1] - self._seen[1] - (now[2] - self._seen[2])) / seconds
            idle = (psutil.cpu_count() or 1) - others
            torch.set_num_threads(max(1, min(self.most, round(idle))))
            self._seen = now

    def all(self, engine: Engine | None = None) -> None:
        """Back to all threads."""
        torch.set_num_threads(self.most)


def train_for(trainer: SupervisedTrainer, epochs: int, should_stop: Callable[[], bool] = lambda: False) -> float:
    """Train for ``epochs`` more passes over the trainer's batches.

    Args:
        trainer: of :func:`make_trainer`.
        epochs: how many passes now.
        should_stop: asked after every step; true ends the training there.

    Returns:
        Mean loss of the last pass, without the proximal term.

    Raises:
        FloatingPointError: if the loss or a weight became NaN or infinite.
    """
    losses: list[float] = []
    failures: list[BaseException] = []

    def remember(engine: Engine) -> None:
        losses.append(engine.state.output[CommonKeys.LOSS].item())
        if should_stop():
            engine.terminate()

    def stop(engine: Engine, error: BaseException) -> None:
        # An Ignite engine that was left by an exception would train nothing when it runs again; one that was terminated does.
        failures.append(error)
        engine.terminate()

    with (
        trainer.add_event_handler(Events.ITERATION_COMPLETED, remember),
        trainer.add_event_handler(Events.EXCEPTION_RAISED, stop),
    ):
        # A pass that was broken off counts as a whole one; else the next would be as much shorter.
        trainer.state.iteration = trainer.state.epoch * trainer.state.epoch_length
        trainer.state.max_epochs = trainer.state.epoch + epochs
        trainer.run()
    if failures:
        raise failures[0]
    broken = [name for name, value in trainer.network.state_dict().items() if not torch.isfinite(value).all()]
    if broken:
        _give_up(
            trainer, f"{len(broken)} tensors of the model hold NaN or infinity after training, first {broken[0]!r}"
        )
    last = losses[-trainer.state.epoch_length :]
    return sum(last) / max(1, len(last))
