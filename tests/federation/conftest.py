"""A Python that has imported everything, for runs in which it does not matter how a process starts."""

import pytest

from benchmarks.warm import warm_python


@pytest.fixture(scope="session")
def python():
    with warm_python() as program:
        yield program
