"""Every picture in figs/ has its command, which draws it again alike and from drawn data alone."""

import os
from pathlib import Path
from xml.etree import ElementTree

import matplotlib.pyplot as plt
import pytest

from book import figs
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
    settings = {name: value for name, value in os.environ.items() if name.startswith("COURSE_")}
    work = {"COURSE_DATA": f"{tmp_path}/work/data", "COURSE_RUNS": f"{tmp_path}/work/runs"}
    assert settings == {**work, "COURSE_DATA_SOURCE": "generated"}, "a run for a picture would use what the reader uses"
