"""What all tests share: their order, and a thread for small work. What fails in seconds is reported before the minutes begin."""

import pytest
import torch


@pytest.fixture
def one_thread():
    """Work this small is faster on one thread, most of all where other work runs beside the tests."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pytest_collection_modifyitems(items):
    def minutes(item) -> int:
        return 2 if item.path.suffix == ".ipynb" else 1 if item.get_closest_marker("slow") else 0

    items.sort(key=minutes)
