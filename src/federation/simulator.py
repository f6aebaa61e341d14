"""FLARE's simulator, in which every site's process learns its own name: ``python -m src.federation.simulator JOB ...``.

FLARE 2.9 starts each site in a thread of its own, and two of their steps can cross on a busy machine. All threads write the name
of their site into one dictionary before they send it to the process: a site may so be told the name of another, and trains on the
other's data. And each asks the system for a free port that its process opens seconds later: two may be given the same. Here every
thread has its own dictionary, and no port is given twice. All arguments are FLARE's; give ``-t`` as many threads as sites.
"""

import copy
import functools
import runpy
import threading
from collections.abc import Callable

from nvflare.private.fed.app.simulator import simulator_runner
from nvflare.private.fed.app.simulator.simulator_runner import SimulatorClientRunner


def each_its_own_name(start: Callable) -> Callable:
    """Let FLARE's method, which starts a site's process and gives it its name, work on a copy of what all sites share."""

    @functools.wraps(start)
    def do_one_task(runner: SimulatorClientRunner, *args: object, **options: object) -> object:
        own = copy.copy(runner)
        own.build_ctx = dict(runner.build_ctx)
        return start(own, *args, **options)

    return do_one_task


def none_twice(find: Callable[[int], list[int]]) -> Callable[[int], list[int]]:
    """Let FLARE's function, which finds so many free ports, find others than it has found before."""
    given: set[int] = set()
    one_at_a_time = threading.Lock()

    @functools.wraps(find)
    def get_open_ports(number: int) -> list[int]:
        with one_at_a_time:
            ports = find(number)
            while not given.isdisjoint(ports):
                ports = find(number)
            given.update(ports)
        return ports

    return get_open_ports


# At import: where processes are spawned, as on macOS, FLARE runs the sites' threads in a child that imports this module again.
SimulatorClientRunner.do_one_task = each_its_own_name(SimulatorClientRunner.do_one_task)
simulator_runner.get_open_ports = none_twice(simulator_runner.get_open_ports)

if __name__ == "__main__":
    runpy.run_module("nvflare.private.fed.app.simulator.simulator", run_name="__main__")
