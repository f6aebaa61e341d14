"""What all tests share: their order, a thread for small work, and a look into the logs of what a notebook ran.

Files whose tests take seconds come first, then the notebooks, then the files that start FLARE, the longest ones first: so two
processes that take a file at a time end at about the same time.
"""

from collections import Counter

import pytest
import torch

from src.common.paths import runs_root
from tests.runs_support import finished_runs, noisy


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
