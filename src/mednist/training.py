"""MedNIST: the pieces of training the classifier, evaluating it and predicting with it."""

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from ignite.metrics import Accuracy, Loss
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.engines.utils import CommonKeys
from monai.inferers import SimpleInferer

from src.common.engine import make_trainer as make_any_trainer
from src.common.engine import pick_device
from src.densenet import CompactDenseNet, DenseNet121
from src.mednist.card import CARD, Settings
from src.mednist.transforms import batches, prepare

NETWORKS = {network.__name__: network for network in (DenseNet121, CompactDenseNet)}


def new_model(seed: int, network: str = DenseNet121.__name__) -> DenseNet121:
    """A fresh network whose weights depend on ``seed`` alone."""
    return NETWORKS[network](seed=seed)


def load_model(weights: Mapping[str, torch.Tensor], network: str = DenseNet121.__name__) -> DenseNet121:
    """The network with given weights, for example ``run.weights(run.final_model)``, ready to predict."""
    model = new_model(0, network)
    model.load_state_dict(weights)
    return model.eval()


def to_device(model: torch.nn.Module, device: torch.device) -> torch.nn.Module:
    """Move a 2D network to the device, with its weights in ``channels_last`` order.

    oneDNN and cuDNN both convolve faster when the channels of a pixel lie side by side; the numbers stay the same.
    https://docs.pytorch.org/tutorials/intermediate/memory_format_tutorial.html
    """
    return model.to(device, memory_format=torch.channels_last)


def make_trainer(
    model: torch.nn.Module, loader: Iterable, settings: Settings, device: torch.device, handlers: Sequence = ()
) -> SupervisedTrainer:
    """Adam on the cross-entropy of ``(batch, classes)`` logits, in MONAI's trainer; see :func:`src.common.engine.make_trainer`."""
    return make_any_trainer(
        model,
        loader,
        torch.optim.Adam(model.parameters(), lr=settings.learning_rate),
        torch.nn.CrossEntropyLoss(),
        device,
        epochs=settings.epochs,
        fedprox_mu=settings.fedproxloss_mu,
        handlers=handlers,
    )


def make_evaluator(
    model: torch.nn.Module, loader: Iterable, device: torch.device, handlers: Sequence = ()
) -> SupervisedEvaluator:
    """MONAI's ``SupervisedEvaluator`` for an image classifier: ``val_accuracy`` (key metric) and cross-entropy ``val_loss``.

    After ``evaluator.run()`` both are in ``evaluator.state.metrics``.
    """

    def pred_and_label(output: Mapping) -> tuple:
        return output[CommonKeys.PRED], output[CommonKeys.LABEL]

    return SupervisedEvaluator(
        device=device,
        val_data_loader=loader,
        network=model,
        inferer=SimpleInferer(),
        key_val_metric={CARD.key_metric: Accuracy(output_transform=pred_and_label)},
        additional_metrics={"val_loss": Loss(torch.nn.CrossEntropyLoss(), output_transform=pred_and_label)},
        decollate=False,
        val_handlers=list(handlers),
    )


def evaluate(
    model: torch.nn.Module,
    prepared: Sequence[dict],
    settings: Settings,
    device: torch.device,
    should_stop: Callable[[], bool] = lambda: False,
) -> dict[str, float]:
    """``val_accuracy`` and ``val_loss`` on prepared images; empty without images: a site may have nothing to validate on."""
    if not prepared:
        return {}
    evaluator = make_evaluator(model, batches(prepared, settings, train=False), device)
    evaluator.run()
    return {name: float(value) for name, value in evaluator.state.metrics.items()}


@torch.inference_mode()
def predict(
    model: torch.nn.Module, items: Sequence[dict], settings: Settings, device: torch.device | None = None
) -> torch.Tensor:
    """Class probabilities ``(images, classes)`` of items, in their order, on the CPU."""
    device = device or pick_device()
    model = to_device(model, device).eval()
    loader = batches(prepare(items, settings), settings, train=False)
    return torch.cat([model(batch["image"].to(device)).softmax(dim=1).cpu() for batch in loader])


def evaluate_cases(
    model: torch.nn.Module, items: Sequence[dict], settings: Settings, device: torch.device | None = None
):
    """What the network says of each image.

    Returns:
        pandas.DataFrame: a row an item with ``case`` (class and file name), ``site``, ``label`` and ``predicted`` (numbers of
        classes), ``confidence`` (probability of the prediction), ``accuracy`` (1 if it is right, else 0).
    """
    import pandas as pd

    probabilities = predict(model, items, settings, device)
    table = pd.DataFrame({"case": ["/".join(item["image"].split("/")[-2:]) for item in items]})
    table["site"] = [item.get("site", "") for item in items]
    table["label"] = [item["label"] for item in items]
    table["predicted"] = probabilities.argmax(dim=1).numpy()
    table["confidence"] = probabilities.amax(dim=1).numpy()
    table["accuracy"] = (table["label"] == table["predicted"]).astype(float)
    return table
