"""Local training and evaluation of an image classifier by MONAI's engines: one code for notebooks and clients."""

# ruff: noqa: E402
import copy
import math

from src.site_imports import import_monai

import_monai()  # before anything else imports it

import torch
from ignite.engine import Engine
from ignite.metrics import Accuracy, Loss
from monai.engines import IterationEvents, SupervisedEvaluator, SupervisedTrainer
from monai.engines.utils import CommonKeys
from monai.inferers import SimpleInferer

from src.training_loop import pick_device


def prepare_model(model: torch.nn.Module, device: torch.device) -> torch.nn.Module:
    """Move a 2D network to the device, with its weights in ``channels_last`` order.

    oneDNN and cuDNN both convolve faster when the channels of a pixel lie side by side; the numbers stay the same.
    https://docs.pytorch.org/tutorials/intermediate/memory_format_tutorial.html
    """
    return model.to(device, memory_format=torch.channels_last)


def stop_on_broken_loss(engine: Engine) -> None:
    """Handler for MONAI's ``LOSS_COMPLETED``: stops before a NaN reaches the weights.

    Raises:
        FloatingPointError: names the loss and the step.
    """
    loss = engine.state.output[CommonKeys.LOSS].item()
    if not math.isfinite(loss):
        raise FloatingPointError(
            f"the training loss became {loss} at step {engine.state.iteration}; "
            "lower the learning rate, or look at the images and labels of this site"
        )


def classification_trainer(model, loader, optimizer, device, max_epochs=1, handlers=None) -> SupervisedTrainer:
    """MONAI's ``SupervisedTrainer`` for an image classifier with cross-entropy loss.

    Args:
        model: maps ``(batch, 1, height, width)`` images to ``(batch, classes)`` logits.
        loader: yields dictionaries with ``image`` and ``label`` ``(batch,)``.
        optimizer: its state stays with the trainer, so a trainer that runs again goes on where it stopped.
        device: where the model is.
        max_epochs: passes over the loader.
        handlers: MONAI or Ignite handlers to attach.

    Returns:
        The trainer; ``trainer.run()`` trains.
    """
    trainer = SupervisedTrainer(
        device=device,
        max_epochs=max_epochs,
        train_data_loader=loader,
        network=model,
        optimizer=optimizer,
        loss_function=torch.nn.CrossEntropyLoss(),
        inferer=SimpleInferer(),
        decollate=False,
        train_handlers=handlers,
    )
    trainer.add_event_handler(IterationEvents.LOSS_COMPLETED, stop_on_broken_loss)
    return trainer


def train_for(trainer: SupervisedTrainer, epochs: int) -> float:
    """Train for ``epochs`` more passes over the trainer's images and return the mean loss of the last pass.

    The optimiser keeps its state from the passes before.
    """
    losses: list[float] = []

    def remember(engine):
        losses.append(engine.state.output[CommonKeys.LOSS].item())

    with trainer.add_event_handler(IterationEvents.LOSS_COMPLETED, remember):
        trainer.state.max_epochs = trainer.state.epoch + epochs
        trainer.run()
    steps = max(1, len(losses) // epochs)
    return sum(losses[-steps:]) / steps


def classification_evaluator(model, loader, device, handlers=None) -> SupervisedEvaluator:
    """MONAI's ``SupervisedEvaluator`` for an image classifier: accuracy (key metric) and cross-entropy ``loss``.

    After ``evaluator.run()`` both are in ``evaluator.state.metrics``.
    """

    def pred_and_label(output):
        return output[CommonKeys.PRED], output[CommonKeys.LABEL]

    return SupervisedEvaluator(
        device=device,
        val_data_loader=loader,
        network=model,
        inferer=SimpleInferer(),
        key_val_metric={"accuracy": Accuracy(output_transform=pred_and_label)},
        additional_metrics={"loss": Loss(torch.nn.CrossEntropyLoss(), output_transform=pred_and_label)},
        decollate=False,
        val_handlers=handlers,
    )


def evaluate(model, loader, device) -> dict[str, float]:
    """Accuracy and cross-entropy loss of a classifier on all images of a loader, as ``{"accuracy", "loss"}``.

    Empty for a loader without images: a site with a single image has nothing to validate on.
    """
    if len(loader) == 0:
        return {}
    evaluator = classification_evaluator(model, loader, device)
    evaluator.run()
    return {name: float(value) for name, value in evaluator.state.metrics.items()}


@torch.inference_mode()
def predict(model, loader, device) -> tuple[torch.Tensor, torch.Tensor]:
    """Class probabilities ``(images, classes)`` and labels ``(images,)`` of a loader, in its order, on the CPU."""
    model.eval()
    probabilities, labels = [], []
    for batch in loader:
        probabilities.append(model(batch["image"].to(device)).softmax(dim=1).cpu())
        labels.append(batch["label"].cpu())
    return torch.cat(probabilities), torch.cat(labels)


def train_locally(
    datalist: dict[str, list],
    epochs: int,
    batch_size: int = 32,
    learning_rate: float = 1e-3,
    seed: int = 0,
    epochs_per_round: int = 1,
    keep_best: bool = True,
) -> tuple[torch.nn.Module, list[dict]]:
    """Train DenseNet121 on the images of one place, without any federation.

    This is the yardstick of a federated run with the same settings: the same first model, optimiser, learning rates and
    order of images, and the same rule to keep the best model, its accuracy on the validation part. The learning rate
    falls along a cosine from round to round (Loshchilov and Hutter, *SGDR*, ICLR 2017).

    Args:
        datalist: ``training`` and ``validation`` items.
        epochs: passes over the training items.
        batch_size: images a step.
        learning_rate: of Adam, at the start.
        seed: of the first model and of the order of the images.
        epochs_per_round: validate, and lower the learning rate, each time that this many epochs have passed.
        keep_best: return the weights of the best validation, not the last ones. Without a validation part the last
            ones are returned.

    Returns:
        The model, and the history: for each validation a dictionary with
        ``epoch``, ``train_loss``, ``accuracy`` and ``loss``.
    """
    from src import mednist
    from src.densenet import DenseNet121

    torch.manual_seed(seed)
    device = pick_device()

    train_loader = mednist.loader(datalist["training"], batch_size=batch_size, train=True, seed=seed)
    val_loader = mednist.loader(datalist["validation"], batch_size=batch_size, train=False)

    model = prepare_model(DenseNet121(), device)
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs / epochs_per_round)
    trainer = classification_trainer(model, train_loader, optimizer, device)

    best_accuracy, best_weights, history = -1.0, None, []
    while trainer.state.epoch < epochs:
        loss = train_for(trainer, epochs_per_round)
        schedule.step()
        metrics = evaluate(model, val_loader, device)
        history.append({"epoch": trainer.state.epoch, "train_loss": loss, **metrics})
        if keep_best and metrics.get("accuracy", -1.0) > best_accuracy:
            best_accuracy, best_weights = metrics["accuracy"], copy.deepcopy(model.state_dict())
    if best_weights:
        model.load_state_dict(best_weights)
    return model, history
