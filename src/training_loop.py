"""One loop for every training of a volume network: at a site of a federation, at a site alone, and on pooled data.

And the device, for every training of the course.
"""

import math
from collections.abc import Callable, Iterable

import torch
import torch._dynamo  # the first optimiser would import it, a second that belongs to the start and not to the training


def pick_device() -> torch.device:
    """The first GPU when there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def cosine(progress: float) -> float:
    """Factor on the learning rate that falls from 1 to 0 along half a cosine (Loshchilov and Hutter, *SGDR*, ICLR 2017)."""
    return 0.5 * (1 + math.cos(math.pi * min(max(progress, 0.0), 1.0)))


def constant(progress: float) -> float:
    """Factor 1 on the learning rate, always."""
    return 1.0


class LocalTrainer:
    """Trains a network on batches of ``image`` and ``label``, and can go on later where it stopped.

    The optimiser's state (AdamW's running means) stays from one call of :meth:`run` to the next: in a federation it stays at its
    site and is never sent. The learning rate follows the progress over *all* epochs of the training, so that the last round of a
    federation makes the same small steps as the end of a training without one.

    Args:
        model: maps ``(batch, channels, *space)`` images to logits of the labels' shape.
        optimizer: steps ``model``; the learning rate it comes with is the one at the start.
        loss: ``loss(logits, labels)``, a scalar.
        device: where the model is.
        schedule: maps progress, from 0 to 1, to a factor on the learning rate.
        amp: mixed precision, with scaled gradients; only does something on a GPU.
        fedprox_mu: weight of the proximal term of FedProx (Li et al., *Federated Optimization in Heterogeneous Networks*, MLSys
            2020), ``mu / 2 * |w - w_received|^2``, which holds a site near the model it received; 0 turns it off.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        device: torch.device,
        schedule: Callable[[float], float] = constant,
        amp: bool = False,
        fedprox_mu: float = 0.0,
    ):
        self.model = model
        self.optimizer = optimizer
        self.loss = loss
        self.device = torch.device(device)
        self.schedule = schedule
        self.amp = amp and self.device.type == "cuda"
        # bfloat16 has the range of float32 and cannot overflow; older GPUs have only float16, whose gradients need scaling.
        wide = self.device.type != "cuda" or torch.cuda.is_bf16_supported()
        self.low_precision = torch.bfloat16 if wide else torch.float16
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.amp and not wide)
        self.fedprox_mu = fedprox_mu
        self.base_rates = [group["lr"] for group in optimizer.param_groups]

    def run(
        self,
        batches: Iterable[dict],
        epochs: int,
        first_epoch: int,
        total_epochs: int,
        should_stop: Callable[[], bool] = lambda: False,
        after_step: Callable[[], None] = lambda: None,
    ) -> list[float]:
        """Train for ``epochs`` passes over ``batches``.

        Args:
            batches: has a length; iterating over it is one epoch.
            epochs: how many passes now.
            first_epoch: how many passes there were before.
            total_epochs: how many there will be in all; fixes the learning rate.
            should_stop: asked before every step; true ends the training there.
            after_step: called after every step.

        Returns:
            Mean loss of each epoch that was finished, without the proximal term.

        Raises:
            FloatingPointError: if the loss or a weight is NaN or infinite; the optimiser's state is then forgotten, so that
                the next call starts clean from whatever weights the model is given.
        """
        received = [value.detach().clone() for value in self.model.parameters()] if self.fedprox_mu else []
        means = []
        for epoch in range(first_epoch, first_epoch + epochs):
            losses = []
            self.model.train()
            for step, batch in enumerate(batches):
                if should_stop():
                    return means
                self._set_rate((epoch + step / len(batches)) / total_epochs)
                losses.append(self._step(batch, received))
                after_step()
                if not math.isfinite(losses[-1]):
                    self._give_up(f"the training loss became {losses[-1]} in epoch {epoch + 1}, step {step + 1}")
            means.append(sum(losses) / max(1, len(losses)))
        broken = [name for name, value in self.model.state_dict().items() if not torch.isfinite(value).all()]
        if broken:
            self._give_up(
                f"{len(broken)} tensors of the model hold NaN or infinity after training, first {broken[0]!r}"
            )
        return means

    def _step(self, batch: dict, received: list[torch.Tensor]) -> float:
        images, labels = batch["image"].to(self.device), batch["label"].to(self.device)
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, dtype=self.low_precision, enabled=self.amp):
            logits = self.model(images)
        loss = self.loss(logits.float(), labels.float())
        if not math.isfinite(loss.item()):
            return loss.item()  # before it reaches the weights
        self.scaler.scale(loss).backward()
        if received:
            self.scaler.unscale_(self.optimizer)
            self._pull_towards(received)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss.item()

    @torch.no_grad()
    def _pull_towards(self, received: list[torch.Tensor]) -> None:
        """Add the gradient of the proximal term, ``mu * (w - w_received)``.

        The same as adding the term to the loss, as FLARE's ``PTFedProxLoss`` does, without a second pass through all weights
        by autograd, which takes a quarter of a step of a network as small as this on a CPU.
        """
        pairs = [(w, r) for w, r in zip(self.model.parameters(), received, strict=True) if w.grad is not None]
        weights, origins = [weight for weight, _ in pairs], [origin for _, origin in pairs]
        away = torch._foreach_sub(weights, origins)
        torch._foreach_add_([weight.grad for weight in weights], away, alpha=self.fedprox_mu)

    def _set_rate(self, progress: float) -> None:
        for group, base in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            group["lr"] = base * self.schedule(progress)

    def _give_up(self, what: str) -> None:
        self.optimizer.state.clear()
        raise FloatingPointError(f"{what}; lower the learning rate, or look at the images and masks of this site")
