"""What all tests share: their order, a thread for small work, and a look into the logs of what a notebook ran."""

import os
from collections import Counter

# PyTorch's threads wait by spinning, which is read when PyTorch loads: see benchmarks/threads.py.
os.environ.setdefault("GOMP_SPINCOUNT", "600")
os.environ.setdefault("KMP_BLOCKTIME", "1")

import pytest
import torch

from src.common.paths import runs_root
from tests.runs_support import finished_runs, noisy


@pytest.fixture
def one_thread():
    """Work this small is faster on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pytest_collection_modifyitems(items):
    """Quick files, then notebooks, then files that start FLARE, the longest first: two processes end at about the same time."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    # The order within a file, too: what is slow comes last.
    items.sort(key=lambda item: item.get_closest_marker("slow") is not None)
    items.sort(key=lambda item: (slow[item.path] > 0, item.path.suffix == ".ipynb", -slow[item.path], str(item.path)))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """A notebook may look well while its runs complain in their logs; another one may run beside it."""
    if item.path.suffix != ".ipynb":
        return (yield)
    before = finished_runs(runs_root())
    result = yield
    found = noisy(finished_runs(runs_root()) - before)
    assert not found, f"While {item.path.name} ran well, runs of the simulator have logged: {found}"
    return result
