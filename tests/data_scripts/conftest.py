"""A data folder of the test's own, for all tests of data preparation."""

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> Path:
    """It does not exist yet, and has a blank in its name; servers of the test are reached without any proxy."""
    for name in ("COURSE_DATA_SOURCE", "COURSE_MEDNIST_PER_CLASS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COURSE_DATA", str(tmp_path / "my data"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return tmp_path / "my data"
