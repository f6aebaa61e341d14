"""One trainer for all trainings of the course: at a site of a federation, at a site alone, and on pooled data.

It is MONAI's ``SupervisedTrainer`` with handlers: https://docs.monai.io/en/stable/engines.html#supervisedtrainer
"""

# ruff: noqa: E402
import math
from collections.abc import Callable, Iterable, Sequence

from src.common.lean import import_monai

import_monai()  # before anything else imports it

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
    amp: bool = False,
    handlers: Sequence = (),
) -> SupervisedTrainer:
    """MONAI's trainer, with a learning rate that falls over the whole training and a stop before a NaN does harm.

    The optimiser's state stays with the trainer, so that one that runs again goes on where it stopped: in a federation that state
    stays at its site and is never sent. ``trainer.run()`` trains all epochs, :func:`train_for` some.

    Args:
        model: on ``device``.
        batches: yields dictionaries with ``image`` and ``label``; has a length.
        optimizer: the learning rates that it comes with are those at the start.
        loss: ``loss(outputs, labels)``, a scalar.
        device: where the model is.
        epochs: passes over the batches in all runs together, over which the learning rate falls to 0.
        amp: mixed precision, where the GPU has bfloat16: it has the range of float32, and its gradients need no scale.
        handlers: of MONAI or Ignite, to attach.
    """
    half = amp and device.type == "cuda" and torch.cuda.is_bf16_supported()
    trainer = SupervisedTrainer(
        device=device,
        max_epochs=epochs,
        train_data_loader=batches,
        network=model,
        optimizer=optimizer,
        loss_function=loss,
        inferer=MixedPrecision() if half else SimpleInferer(),
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


class MixedPrecision(SimpleInferer):
    """Runs the network in mixed precision, bfloat16, on a GPU."""

    def __call__(self, inputs: torch.Tensor, network: Callable, *args, **kwargs) -> torch.Tensor:
        with torch.autocast("cuda", dtype=torch.bfloat16):
            return super().__call__(inputs, network, *args, **kwargs)


def stop_on_broken_loss(engine: Engine) -> None:
    """Handler for MONAI's ``LOSS_COMPLETED``: a ``FloatingPointError`` that names the step, before a NaN reaches the weights."""
    loss = engine.state.output[CommonKeys.LOSS].item()
    if not math.isfinite(loss):
        _give_up(engine, f"the training loss became {loss} at step {engine.state.iteration}")


def _give_up(engine: Engine, what: str) -> None:
    engine.optimizer.state.clear()  # its running means would carry the fault into whatever is trained next
    raise FloatingPointError(f"{what}; lower the learning rate, or look at the images and labels of this site")


class ProximalTerm:
    """Holds a network near a reference: adds the gradient of ``mu / 2 * |w - reference|^2`` to that of the loss.

    FedProx (Li et al., *Federated Optimization in Heterogeneous Networks*, MLSys 2020) holds a site near the model it received.
    The same as adding FLARE's ``PTFedProxLoss`` to the loss, without a second pass of autograd through all weights, which takes a
    quarter of a step of a small network on a CPU. The reference is the weights of ``towards``, by default of the trainer's own
    network, as each run of the trainer finds them.
    """

    def __init__(self, mu: float, towards: torch.nn.Module | None = None):
        self.mu, self.towards = mu, towards
        self.received: list[torch.Tensor] = []

    def attach(self, engine: Engine) -> None:
        """Take the reference when the trainer starts, pull towards it in each step; as MONAI's handlers are attached."""
        engine.add_event_handler(Events.STARTED, self.remember)
        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self.pull)

    def remember(self, engine: Engine) -> None:
        """Keep a copy of the reference."""
        self.received = [value.detach().clone() for value in (self.towards or engine.network).parameters()]

    @torch.no_grad()
    def pull(self, engine: Engine) -> None:
        """Add the proximal gradient."""
        pairs = [(w, r) for w, r in zip(engine.network.parameters(), self.received, strict=True) if w.grad is not None]
        away = torch._foreach_sub([weight for weight, _ in pairs], [origin for _, origin in pairs])
        torch._foreach_add_([weight.grad for weight, _ in pairs], away, alpha=self.mu)


def train_for(trainer: SupervisedTrainer, epochs: int, should_stop: Callable[[], bool] = lambda: False) -> float:
    """Train for ``epochs`` more passes over the trainer's batches, or until ``should_stop``, asked after every step, is true.

    Returns the mean loss of the last pass, without a proximal term.

    Raises:
        FloatingPointError: if the loss or a weight became NaN or infinite. The optimiser's state is then forgotten.
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
        what = f"{len(broken)} tensors of the model hold NaN or infinity after training, first {broken[0]!r}"
        _give_up(trainer, what)
    last = losses[-trainer.state.epoch_length :]
    return sum(last) / max(1, len(last))
