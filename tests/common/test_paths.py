"""Where data and runs live: every place a reader may start from, and what stands in the way of a run folder."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from src.common import paths
from src.common.errors import CourseError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def no_settings(monkeypatch):
    for name in ("COURSE_DATA", "COURSE_RUNS", "COURSE_DATA_SOURCE"):
        monkeypatch.delenv(name, raising=False)


def test_defaults_lie_in_the_checkout_wherever_one_stands(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert paths.data_root() == ROOT / "data"
    assert paths.runs_root() == ROOT / "runs"


@pytest.fixture
def installed_copy(monkeypatch, tmp_path):
    """The module as it is after ``pip install -r requirements.txt``: in a folder without a checkout around it."""
    monkeypatch.setattr(paths, "__file__", str(tmp_path / "site-packages" / "src" / "common" / "paths.py"))
    return tmp_path


def test_copy_finds_the_checkout_from_its_notebooks(monkeypatch, installed_copy):
    checkout = installed_copy / "my course"
    for folder in ("src/common", "notebooks"):
        (checkout / folder).mkdir(parents=True)
    (checkout / "pyproject.toml").touch()
    (checkout / "src" / "common" / "paths.py").touch()
    monkeypatch.chdir(checkout / "notebooks")
    assert paths.data_root() == checkout / "data"


def test_copy_without_checkout_uses_the_reader_s_folder(monkeypatch, installed_copy):
    (installed_copy / "pyproject.toml").touch()  # some other project's
    (installed_copy / "work").mkdir()
    monkeypatch.chdir(installed_copy / "work")
    assert paths.data_root() == installed_copy / "work" / "data"


def test_environment_variables_with_home_and_spaces(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("COURSE_DATA", "~/my images")
    monkeypatch.setenv("COURSE_RUNS", str(tmp_path / "my runs"))
    assert paths.data_root() == tmp_path / "my images"
    assert paths.sites_folder("mednist") == tmp_path / "my images" / "sites" / "mednist"
    assert paths.new_run_folder("fedavg").parent == tmp_path / "my runs" / "fedavg"


@pytest.mark.parametrize(("value", "source"), [(None, "generated"), ("", "generated"), ("real", "real")])
def test_data_source(monkeypatch, value, source):
    if value is not None:
        monkeypatch.setenv("COURSE_DATA_SOURCE", value)
    assert paths.data_source() == source
    assert paths.data_source("real") == "real", "an argument goes before the environment"


def test_unknown_data_source_names_the_choice(monkeypatch):
    monkeypatch.setenv("COURSE_DATA_SOURCE", "Real")
    with pytest.raises(CourseError, match=r"'Real'.*'generated'.*'real'"):
        paths.data_source()
    with pytest.raises(CourseError, match="'both'"):
        paths.raw_folder("MedNIST", "both")


def test_drawings_lie_apart_from_real_data(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_DATA", str(tmp_path))
    assert paths.raw_folder("MedNIST") == tmp_path / "generated" / "MedNIST"
    assert paths.raw_folder("MedNIST", "real") == tmp_path / "MedNIST"
    assert paths.raw_folder("MedNIST", "real", tmp_path / "else") == tmp_path / "else" / "MedNIST"


def test_runs_at_once_never_share_a_folder(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: paths.new_run_folder("fedavg", tmp_path), range(32)))
    assert len(set(folders)) == 32
    assert all(folder.is_dir() and not any(folder.iterdir()) for folder in folders)


def test_half_written_run_is_left_alone(tmp_path):
    first = paths.new_run_folder("fedavg", tmp_path)
    (first / "half").write_text("cut off")
    second = paths.new_run_folder("fedavg", tmp_path)
    assert second != first
    assert (first / "half").read_text() == "cut off"


def test_file_in_the_way_of_the_runs_folder(tmp_path):
    (tmp_path / "runs").write_text("I am a file")
    with pytest.raises(CourseError, match=r"Cannot write \S+/runs/fedavg: Not a directory"):
        paths.new_run_folder("fedavg", tmp_path / "runs")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere; the test above covers the message")
def test_read_only_runs_folder(tmp_path):
    tmp_path.chmod(0o555)
    with pytest.raises(CourseError, match="Permission denied"):
        paths.new_run_folder("fedavg", tmp_path)
