"""Where data and runs live: every place a reader may start from, and what stands in the way of a run folder."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from data_scripts.folders import data_source, raw_folder
from src.common import paths
from tests.tests_support import course_error

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def no_settings(monkeypatch):
    for name in ("COURSE_DATA", "COURSE_RUNS", "COURSE_DATA_SOURCE"):
        monkeypatch.delenv(name, raising=False)


def test_data_and_runs_lie_in_the_checkout_or_in_that_around_the_reader_or_beside_the_reader(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert (paths.data_root(), paths.runs_root()) == (ROOT / "data", ROOT / "runs")
    # Of an installed copy:
    monkeypatch.setattr(paths, "__file__", str(tmp_path / "site-packages" / "src" / "common" / "paths.py"))
    checkout, elsewhere = tmp_path / "my course", tmp_path / "work"
    for folder in (checkout / "src/common", checkout / "notebooks", elsewhere):
        folder.mkdir(parents=True)
    for file in (checkout / "pyproject.toml", checkout / "src/common/paths.py", tmp_path / "pyproject.toml"):
        file.touch()  # the last one is some other project's
    for folder, found in {checkout / "notebooks": checkout, elsewhere: elsewhere}.items():
        monkeypatch.chdir(folder)
        assert paths.data_root() == found / "data"
    # Or where the environment says, with home and spaces.
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("COURSE_DATA", "~/my images")
    monkeypatch.setenv("COURSE_RUNS", str(tmp_path / "my runs"))
    assert paths.data_root() == tmp_path / "my images"
    assert paths.sites_folder("mednist") == tmp_path / "my images" / "sites" / "mednist"
    assert paths.new_run_folder("fedavg").parent == tmp_path / "my runs" / "fedavg"


def test_drawings_lie_apart_from_real_data(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_DATA", str(tmp_path))
    assert raw_folder("MedNIST") == tmp_path / "generated" / "MedNIST"
    assert raw_folder("MedNIST", "real") == tmp_path / "MedNIST"
    assert raw_folder("MedNIST", "real", tmp_path / "else") == tmp_path / "else" / "MedNIST"
    for word, source in {"": "generated", "real": "real"}.items():
        monkeypatch.setenv("COURSE_DATA_SOURCE", word)
        assert (data_source(), data_source("real")) == (source, "real"), "an argument goes before the environment"
    monkeypatch.setenv("COURSE_DATA_SOURCE", "Real")
    course_error(r"'Real'.*'generated'.*'real'", data_source)
    course_error("'both'", raw_folder, "MedNIST", "both")


def test_runs_at_once_never_share_a_folder_and_leave_a_half_written_one_alone(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: paths.new_run_folder("fedavg", tmp_path), range(32)))
    assert len(set(folders)) == 32 and all(folder.is_dir() and not any(folder.iterdir()) for folder in folders)
    (folders[0] / "half").write_text("cut off")
    assert paths.new_run_folder("fedavg", tmp_path) not in folders and (folders[0] / "half").read_text() == "cut off"
