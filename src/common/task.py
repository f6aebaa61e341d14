"""What a task is: what it says about itself, and the functions by which a site trains for it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from src.common.errors import CourseError


@dataclass(frozen=True)
class Card:
    """What a stranger asks first, and what sharing out needs to know. It loads nothing but this file."""

    name: str  # folder in src, name of the job, and start of the names of its shared-out data
    title: str  # for tables and figures
    labels: tuple[str, ...]  # of the classes, in the order of their numbers; or the structures that are outlined
    key_metric: str  # by which models are compared; higher is better
    client: str  # file in src that a site runs, by the Client API
    validation: float  # share of a site's items on which it validates received models
    testing: float  # share of a site's items that is kept for the end
    source: str  # who made the data, and where they are described
    licence: str  # of the data
    outlines: bool = field(default=False, kw_only=True)  # a label is a file, in which structures are outlined

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, where a label is the number of one; none where it is a file."""
        return () if self.outlines else self.labels


@dataclass(frozen=True)
class Task(Card):
    """A task as one plain object that holds its functions: ``TASK`` in its ``training.py``, and whole in ``evaluation.py``."""

    settings: type  # class of its study's settings
    networks: Mapping[str, type]  # name in the settings → class, the usual one first; each takes a seed
    prepare: Callable  # (items, settings, cache): from files to what is kept in memory, an entry an item
    batches: Callable  # (prepared, settings, train, seed): an iterable of batches, with a length
    make_trainer: Callable  # (model, batches, settings, device, handlers): a trainer of src.federation.engine
    evaluate: Callable  # (model, prepared, settings, device, should_stop): {"val_…": value}
    to_device: Callable = lambda model, device: model.to(device)
    evaluate_cases: Callable | None = None  # (model, items, settings): a table with a row an item; not at a site

    def new_model(self, seed: int = 0, network: str | None = None):
        """A fresh network, by default the usual one, whose weights depend on ``seed`` alone; a ``CourseError`` where it is none."""
        if (name := network or next(iter(self.networks))) not in self.networks:
            raise CourseError(f"There is no network {name!r}; choose {' or '.join(self.networks)}.")
        return self.networks[name](seed=seed)

    def load_model(self, weights: Mapping, network: str | None = None):
        """The network with weights, as ``run.weights(run.final_model)``, ready to predict; a ``CourseError`` if they do not fit."""
        model, held = self.new_model(network=network), weights if isinstance(weights, Mapping) else {"": weights}
        odd = [f"there is a {type(one).__name__}, not a tensor" for one in held.values() if not hasattr(one, "detach")]
        if said := next(iter(odd), None) or unlike(held, shapes(model.state_dict()), "this network"):
            due = f"{said}. Give a state_dict, for example run.weights(run.final_model)."
            raise CourseError(f"This cannot be the weights of {type(model).__name__}: {due}")
        model.load_state_dict(weights)
        return model.eval()


def unlike(params: Mapping, due: Mapping[str, tuple], whose: str) -> str | None:
    """What is wrong with arrays or tensors that should be finite and of the shapes ``due``, by name; None where nothing is."""
    found = shapes(params)
    if found != due:
        odd = sorted((name for name in found.keys() | due.keys() if found.get(name) != due.get(name)), key=str)
        said = f"{len(odd)} of its tensors are not those of {whose}, the first is {odd[0]!r}"
        return f"{said}: {found.get(odd[0], 'missing')} instead of {due.get(odd[0], 'none')}"
    plain = {key: one.detach().float().cpu().numpy() if hasattr(one, "detach") else one for key, one in params.items()}
    if broken := [name for name, value in plain.items() if not np.isfinite(value).all()]:
        return f"{len(broken)} of {len(params)} tensors hold NaN or infinity, the first is {broken[0]!r}"
    return None


def shapes(tensors: Mapping[str, object], but: Sequence[str] = ()) -> dict[str, tuple]:
    return {name: tuple(np.shape(value)) for name, value in tensors.items() if name not in but}
