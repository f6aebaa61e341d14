"""Tasks are found by looking, and all hold the same functions."""

import inspect
import shutil
from pathlib import Path

import pytest

import src.tasks
from src.common.task import Task
from src.tasks import tasks
from tests.training_support import same

SRC = Path(src.tasks.__file__).parent
FUNCTIONS = ("prepare", "batches", "to_device", "make_trainer", "evaluate", "evaluate_cases")
NETWORKS = [pytest.param(task, name, id=f"{task.name} {name}") for task in tasks().values() for name in task.networks]


def test_every_folder_with_a_card_is_a_task(tmp_path, monkeypatch):
    found = tasks()
    assert list(found) == sorted(file.parent.name for file in SRC.glob("*/card.py"))
    assert {"mednist", "prostate"} <= set(found)
    shutil.copytree(SRC / "mednist", tmp_path / "mednist")
    (tmp_path / "not_a_task").mkdir()
    monkeypatch.setattr(src.tasks, "__file__", str(tmp_path / "tasks.py"))
    assert tasks() == {"mednist": found["mednist"]}


@pytest.mark.parametrize("task", tasks().values(), ids=tasks())
def test_a_task_says_and_holds_what_all_need(task, tmp_path):
    assert isinstance(task, Task) and tasks()[task.name] is task
    assert task.key_metric.startswith("val_") and (SRC / task.client).is_file()
    assert task.validation > 0 and task.testing > 0 and task.validation + task.testing < 1
    assert all(text.strip() for text in (task.title, task.source, task.licence))
    settings = task.settings()
    assert settings.data == task.name and settings.network in task.networks
    assert task.settings.read(settings.write(tmp_path / "settings.json")) == settings
    for function in FUNCTIONS:
        own, first = (inspect.signature(getattr(one, function)).parameters for one in (task, tasks()["mednist"]))
        assert [*own] == [*first], function


@pytest.mark.parametrize(("task", "network"), NETWORKS)
def test_first_weights_depend_on_the_seed_alone_and_load_ready_to_predict(task, network):
    one, again, other = (task.new_model(seed, network) for seed in (3, 3, 4))
    assert same(one, again) and not same(one, other) and type(one) is task.networks[network]
    loaded = task.load_model(one.state_dict(), network)
    assert same(loaded, one) and not loaded.training
