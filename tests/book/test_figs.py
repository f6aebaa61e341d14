"""Every picture in figs/ has its command, which draws it again alike and from drawn data alone."""

import os
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from book import figs
from data_scripts.folders import data_source
from src.common.paths import data_root, runs_root
from src.tasks import tasks

FIGS = Path(__file__).resolve().parents[2] / "figs"


@pytest.fixture(autouse=True)
def settings_of_a_reader(monkeypatch, tmp_path):
    """A reader who works with real data; what the command changes for itself is put back after each test."""
    for name, value in {"DATA": tmp_path / "own data", "RUNS": tmp_path, "DATA_SOURCE": "real", "OTHER": "7"}.items():
        monkeypatch.setenv(f"COURSE_{name}", str(value))
    monkeypatch.setattr(figs, "WORK", tmp_path / "work")
    with plt.rc_context():
        yield
    plt.close("all")


def test_each_picture_of_the_repository_can_be_drawn_by_name(capsys):
    by_hand = {"fedavg_flow.svg", "federation_kits.svg"}
    assert set(figs.PICTURES) | by_hand == {path.name for path in FIGS.iterdir()}
    assert all(ElementTree.parse(FIGS / name).getroot().tag.endswith("}svg") for name in by_hand)
    assert {f"{name}_curves.svg" for name in tasks()} <= set(figs.PICTURES)
    with pytest.raises(SystemExit):
        figs.main(["mednist.svg"])
    assert "there is no picture mednist.svg; choose from mednist_classes.png" in capsys.readouterr().err


def test_pictures_are_drawn_again_alike_from_drawings_in_a_place_of_their_own(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(figs.mednist_sites, "DRAWN_PER_CLASS", 20)
    names = ["methods_mednist.svg", "mednist_classes.png", "mednist_partition.svg"]
    for folder in ("a", "b"):
        assert figs.main([*names, "--out", str(tmp_path / folder)]) == 0
    for name in names:
        first, second = ((tmp_path / folder / name).read_bytes() for folder in ("a", "b"))
        assert first == second and len(first) > 10_000
    assert [line.split("/")[-1] for line in capsys.readouterr().out.splitlines()] == names * 2
    assert (tmp_path / "work" / "data" / "generated" / "MedNIST").is_dir()
    assert not (tmp_path / "own data").exists()


def test_a_run_for_a_picture_uses_drawings_whatever_the_reader_uses(tmp_path, monkeypatch):
    """Nothing is trained: the recipe and its run are played."""
    asked, work = [], tmp_path / "work"
    set_here = ["COURSE_DATA", "COURSE_DATA_SOURCE", "COURSE_RUNS"]

    def prepare(name):
        assert sorted(name for name in os.environ if name.startswith("COURSE")) == set_here
        asked.append(("prepare", name, data_source(), data_root()))

    def execute(environment):
        asked.append(("execute", data_source(), runs_root(), environment.clients))
        return SimpleNamespace(get_result=lambda: str(environment.run_folder))

    curve = pd.DataFrame({"BIDMC": [0.1, 0.2], "HK": [0.3, 0.4]})
    monkeypatch.setattr(figs, "prepare", prepare)
    monkeypatch.setattr(figs, "sites_of", lambda data: ["BIDMC", "HK"])
    monkeypatch.setattr(figs, "client_recipe", lambda task, sites: SimpleNamespace(execute=execute))
    monkeypatch.setattr(figs, "Run", lambda folder: SimpleNamespace(curve=lambda metric: curve))
    assert figs.main(["mednist_curves.svg", "--out", str(tmp_path)]) == 0
    prepared, executed = ("generated", work / "data"), ("generated", work / "runs", ["BIDMC", "HK"])
    assert asked == [("prepare", "mednist", *prepared), ("execute", *executed)]
    assert (tmp_path / "mednist_curves.svg").read_text().count("<svg") == 1
