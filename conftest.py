"""What all tests share: their order, a thread for small work, and a look into the logs of what a notebook ran.

Files whose tests take seconds come first, then the notebooks, then the files that start FLARE, the longest ones first: so two
processes that take a file at a time end at about the same time.
"""

from collections import Counter
from pathlib import Path

import pytest
import torch

from src.common.paths import runs_root
from src.federation.run import RUN
from tests.runs_support import complaints

FAULTS_ON_PURPOSE = "real_federation"
"""The runs of notebook 06 that a site or the server leaves."""


@pytest.fixture
def one_thread():
    """Work this small is faster on one thread, most of all where other work runs beside the tests."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pytest_collection_modifyitems(items):
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))

    def turn(item) -> tuple:
        kind = 1 if item.path.suffix == ".ipynb" else 2 if slow[item.path] else 0
        return kind, -slow[item.path], str(item.path), item.get_closest_marker("slow") is not None

    items.sort(key=turn)


def _finished_runs() -> set[Path]:
    return {file.parent for file in runs_root().glob(f"*/*/{RUN}") if file.parent.parent.name != FAULTS_ON_PURPOSE}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """A notebook may look well while its runs complain in their logs."""
    before = _finished_runs()
    result = yield
    if item.path.suffix == ".ipynb":
        noisy = {str(folder): found for folder in _finished_runs() - before if (found := complaints(folder))}
        assert not noisy, f"{item.path.name} ends well, but its runs have logged: {noisy}"
    return result
