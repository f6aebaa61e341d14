"""Every picture in figs/ has its command, which draws it again alike and from drawn data alone."""

import os
from pathlib import Path
from types import SimpleNamespace

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from book import figs as figures
from src.common.paths import data_root, data_source, runs_root
from src.common.task import tasks

FIGS = Path(__file__).resolve().parents[2] / "figs"


@pytest.fixture(autouse=True)
def settings_of_a_reader(monkeypatch, tmp_path):
    """A reader who works with real data; what the command changes for itself is put back after each test."""
    monkeypatch.setenv("COURSE_DATA_SOURCE", "real")
    monkeypatch.setenv("COURSE_DATA", str(tmp_path / "own data"))
    monkeypatch.setenv("COURSE_RUNS", str(tmp_path / "own runs"))
    monkeypatch.setenv("COURSE_MEDNIST_PER_CLASS", "7")
    monkeypatch.setattr(figures, "WORK", tmp_path / "work")
    with plt.rc_context():
        yield
    plt.close("all")


def test_each_picture_of_the_repository_can_be_drawn_by_name():
    assert set(figures.PICTURES) == {path.name for path in FIGS.iterdir()}
    assert {f"{name}_curves.svg" for name in tasks()} <= set(figures.PICTURES)


def test_pictures_are_drawn_again_alike_from_drawings_in_a_place_of_their_own(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(figures.mednist_data, "DRAWN_PER_CLASS", 20)
    names = ["fedavg_flow.svg", "mednist_classes.png", "mednist_partition.svg"]
    for folder in ("a", "b"):
        assert figures.main([*names, "--out", str(tmp_path / folder)]) == 0
    for name in names:
        first, second = ((tmp_path / folder / name).read_bytes() for folder in ("a", "b"))
        assert first == second and len(first) > 10_000
    assert [line.split("/")[-1] for line in capsys.readouterr().out.splitlines()] == names * 2
    assert (tmp_path / "work" / "data" / "generated" / "MedNIST").is_dir()
    assert not (tmp_path / "own data").exists()


def test_a_run_for_a_picture_uses_drawings_whatever_the_reader_uses(tmp_path, monkeypatch):
    """Nothing is trained: the rooms of a task and the environment are played."""
    asked = {}

    def prepare():
        asked["prepare"] = (
            data_source(),
            data_root(),
            sorted(name for name in os.environ if name.startswith("COURSE")),
        )
        return "third"

    def recipe(sites):
        asked["recipe"] = sites
        return SimpleNamespace(execute=execute)

    def execute(environment):
        asked["execute"] = (data_source(), runs_root(), environment.clients)
        return SimpleNamespace(get_result=lambda: str(environment.run_folder))

    rooms = {"data": SimpleNamespace(prepare=prepare), "recipe": SimpleNamespace(recipe=recipe)}
    card = SimpleNamespace(name="third", key_metric="val_f1", room=rooms.get)
    curve = pd.DataFrame({"BIDMC": [0.1, 0.2], "HK": [0.3, 0.4]})
    monkeypatch.setattr(figures, "sites_of", lambda data: ["BIDMC", "HK"])
    monkeypatch.setattr(figures, "Run", lambda folder: SimpleNamespace(curve=lambda metric: curve))
    monkeypatch.setitem(figures.PICTURES, "third_curves.svg", lambda: figures.curves(card))
    assert figures.main(["third_curves.svg", "--out", str(tmp_path)]) == 0
    work = tmp_path / "work"
    own = ["COURSE_DATA", "COURSE_DATA_SOURCE", "COURSE_RUNS"]
    assert asked["prepare"] == ("generated", work / "data", own)
    assert asked["recipe"] == 2
    assert asked["execute"] == ("generated", work / "runs", ["BIDMC", "HK"])
    assert (tmp_path / "third_curves.svg").read_text().count("<svg") == 1


def test_an_unknown_picture_is_refused_with_the_names_of_all(capsys):
    with pytest.raises(SystemExit):
        figures.main(["mednist.svg"])
    assert "there is no picture mednist.svg; choose from mednist_classes.png" in capsys.readouterr().err
