"""Tasks are found by looking, and all have the same rooms with the same functions."""

import importlib
import inspect
from pathlib import Path

import pytest

from src.common import task as task_module
from src.common.task import Card, tasks

SRC = Path(task_module.__file__).parents[1]
ROOMS = {
    "data": ("find_or_make", "describe", "share_out", "prepare"),
    "transforms": ("preparation", "augmentation", "prepare", "batches"),
    "training": ("new_model", "load_model", "to_device", "make_trainer", "evaluate", "predict", "evaluate_cases"),
    "recipe": ("recipe",),
}


def test_every_folder_with_a_card_is_a_task():
    found = tasks()
    assert list(found) == sorted(file.parent.name for file in SRC.glob("*/card.py"))
    assert {"mednist", "prostate"} <= set(found)
    for name, card in found.items():
        assert isinstance(card, Card) and card.name == name


@pytest.mark.parametrize("name", tasks())
def test_a_card_fits_its_task(name):
    card = tasks()[name]
    settings = card.room("card").Settings()
    assert settings.data == name
    assert card.key_metric.startswith("val_")
    assert card.validation > 0 and card.testing > 0 and card.validation + card.testing < 1
    assert (SRC / card.client).is_file()
    for text in (card.title, card.source, card.licence):
        assert text.strip()


@pytest.mark.parametrize("room", ROOMS)
def test_the_rooms_of_all_tasks_have_the_same_doors(room):
    """Same functions, and the same names for what every task's function takes."""
    first, *others = [card.room(room) for card in tasks().values()]
    for name in ROOMS[room]:
        expected = list(inspect.signature(getattr(first, name)).parameters)
        for other in others:
            found = list(inspect.signature(getattr(other, name)).parameters)
            shared = [parameter for parameter in found if parameter in expected]
            assert shared == [parameter for parameter in expected if parameter in found], (room, name)
            if room != "data":
                assert found == expected, (other.__name__, name)


def test_a_copied_folder_becomes_a_task(tmp_path, monkeypatch):
    (tmp_path / "common").mkdir()
    (tmp_path / "xray").mkdir()
    (tmp_path / "xray" / "card.py").touch()
    (tmp_path / "not_a_task").mkdir()
    monkeypatch.setattr(task_module, "__file__", str(tmp_path / "common" / "task.py"))
    asked = []

    def import_module(name):
        asked.append(name)
        return type("module", (), {"CARD": f"the card of {name}"})

    monkeypatch.setattr(importlib, "import_module", import_module)
    assert tasks() == {"xray": "the card of src.xray.card"}
    assert asked == ["src.xray.card"]
