"""MedNIST: how a site trains the classifier and validates it."""

from collections.abc import Iterable, Sequence

import torch
from ignite.metrics import Accuracy, Loss
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.engines.utils import CommonKeys
from monai.handlers import from_engine
from torch.nn import Module

from src.common.task import Task
from src.densenet import CompactDenseNet, DenseNet121, SmallNet
from src.federation.engine import make_trainer as make_any_trainer
from src.mednist.card import CARD, Settings
from src.mednist.transforms import batches, prepare


def to_device(model: Module, device: torch.device) -> Module:
    """Move the network to the device, the channels of a pixel side by side, which oneDNN and cuDNN convolve faster."""
    return model.to(device, memory_format=torch.channels_last)


def make_trainer(model: Module, loader: Iterable, settings: Settings, device, handlers=()) -> SupervisedTrainer:
    """Adam on the cross-entropy of ``(batch, classes)`` logits; see :func:`src.federation.engine.make_trainer`."""
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.learning_rate)
    loss = torch.nn.CrossEntropyLoss()
    return make_any_trainer(model, loader, optimizer, loss, device, epochs=settings.epochs, handlers=handlers)


def make_evaluator(model: Module, loader: Iterable, device: torch.device, handlers=()) -> SupervisedEvaluator:
    """MONAI's evaluator: ``run()`` leaves ``val_accuracy`` and the cross-entropy ``val_loss`` in ``evaluator.state.metrics``."""
    pred_and_label = from_engine([CommonKeys.PRED, CommonKeys.LABEL])
    return SupervisedEvaluator(
        device=device,
        val_data_loader=loader,
        network=model,
        key_val_metric={CARD.key_metric: Accuracy(output_transform=pred_and_label)},
        additional_metrics={"val_loss": Loss(torch.nn.CrossEntropyLoss(), output_transform=pred_and_label)},
        decollate=False,
        val_handlers=list(handlers),
    )


def evaluate(model: Module, prepared: Sequence[dict], settings: Settings, device, should_stop=None) -> dict[str, float]:
    """``val_accuracy`` and ``val_loss`` on prepared images; empty without images: a site may have nothing to validate on."""
    if not prepared:
        return {}
    evaluator = make_evaluator(model, batches(prepared, settings, train=False), device)
    evaluator.run()
    return {name: float(value) for name, value in evaluator.state.metrics.items()}


TASK = Task(
    **vars(CARD),
    settings=Settings,
    networks={"DenseNet121": DenseNet121, "CompactDenseNet": CompactDenseNet, "SmallNet": SmallNet},
    prepare=prepare,
    batches=batches,
    to_device=to_device,
    make_trainer=make_trainer,
    evaluate=evaluate,
)
