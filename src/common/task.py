"""What a task says about itself, and how all tasks are found: by looking for ``src/<name>/card.py``."""

import importlib
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType


@dataclass(frozen=True)
class Card:
    """What a stranger asks first.

    Attributes:
        name: folder in ``src``, name of the job, and start of the names of its shared-out data.
        title: for tables and figures.
        labels: names of the classes, in the order of their numbers; for a segmentation the structures that are outlined.
        channels: of the images.
        key_metric: metric by which models are compared; higher is better.
        client: file in ``src`` that a site runs, by the Client API.
        validation: share of a site's items on which it validates received models.
        testing: share of a site's items that is kept for the end.
        source: who made the data, and where they are described.
        licence: of the data.
    """

    name: str
    title: str
    labels: tuple[str, ...]
    channels: tuple[str, ...]
    key_metric: str
    client: str
    validation: float
    testing: float
    source: str
    licence: str

    def room(self, name: str) -> ModuleType:
        """One module of this task: ``card``, ``data``, ``transforms``, ``training`` or ``recipe``."""
        return importlib.import_module(f"src.{self.name}.{name}")


def tasks() -> dict[str, Card]:
    """All tasks of this course by name. A folder that is copied becomes a task; nothing needs to be registered."""
    names = sorted(file.parent.name for file in Path(__file__).parents[1].glob("*/card.py"))
    return {name: importlib.import_module(f"src.{name}.card").CARD for name in names}
