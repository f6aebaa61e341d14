"""What more than one test of training needs: a linear map in place of a network, small enough to follow by hand."""

import torch

from src.common.seeds import seeded
from src.common.settings import Count, DataName, NotNegative, Positive, StudySettings
from src.common.task import Task
from src.federation.engine import make_trainer
from src.mednist.card import CARD

CPU = torch.device("cpu")


def line_batches(count, seed=0, size=4):
    """So many batches of random numbers."""
    draw = torch.Generator().manual_seed(seed)
    shapes = {"image": (size, 3), "label": (size, 1)}
    return [{key: torch.randn(*shape, generator=draw) for key, shape in shapes.items()} for _ in range(count)]


def line_trainer(batches, rate=0.1, optimizer=torch.optim.SGD, epochs=4, model=None):
    """The course's trainer of a linear map, by default one with the same first weights each time."""
    model, loss = model or Line(0), torch.nn.functional.mse_loss
    return make_trainer(model, batches, optimizer(model.parameters(), lr=rate), loss, CPU, epochs=epochs)


def same(one, other):
    """Whether two networks have the same weights, bit for bit."""
    weights = other.state_dict()
    return all(torch.equal(value, weights[name]) for name, value in one.state_dict().items())


class LineSettings(StudySettings):
    data: DataName = "line"
    rounds: Count = 3
    local_epochs: Count = 1
    batch_size: Count = 4
    learning_rate: Positive = 0.1
    network: str = "Line"
    noise: NotNegative = 0.0  # of the "augmentation"


class Line(torch.nn.Linear):
    def __init__(self, seed):
        with seeded(seed):
            super().__init__(3, 1)


def momentum(parameters, lr):
    """An optimiser with a state, whose first step is a plain one."""
    return torch.optim.SGD(parameters, lr=lr, momentum=0.9)


def noisy(prepared, settings, train, seed=0):
    """The batches themselves, or with noise of the loader's own seed."""
    draw = torch.Generator().manual_seed(seed)
    shaken = [{**one, "image": one["image"] + settings.noise * torch.randn(3, generator=draw)} for one in prepared]
    return shaken if settings.noise else prepared


def fit(model, prepared, settings, device, should_stop=lambda: False):
    """A number that tells one model from another."""
    return {"val_fit": float(-model.weight.detach().abs().sum())} if prepared else {}


LINE = Task(
    **{**vars(CARD), "name": "line", "key_metric": "val_fit"},
    settings=LineSettings,
    networks={"Line": Line},
    prepare=lambda items, settings, cache=None: items,
    batches=noisy,
    to_device=lambda model, device: model,
    make_trainer=lambda model, loader, settings, device, handlers=(): line_trainer(
        loader, settings.learning_rate, momentum, settings.epochs, model
    ),
    evaluate=fit,
)
