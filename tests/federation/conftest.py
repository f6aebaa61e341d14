"""A simulator for runs in which it does not matter how a process starts."""

import pytest

from benchmarks.warm import warm_python
from src.federation.simulator import CourseSimEnv


@pytest.fixture(scope="session")
def quick():
    """``quick(sites, name)``: an environment whose processes are forked by one that has imported everything."""
    with warm_python() as python:

        def environment(sites, name: str = "simulation") -> CourseSimEnv:
            env = CourseSimEnv(sites, name)
            env.python = python
            return env

        yield environment
