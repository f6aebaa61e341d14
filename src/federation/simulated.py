"""FLARE's simulator, in which every site's process learns its own name: ``python -m src.federation.simulated JOB ...``.

FLARE 2.9 starts each site in a thread of its own, and on a busy machine two of them can cross, in two ways. Each looks for a free
port that its process opens seconds later: two may find the same, and since a process closes its port after the first connection,
each is then told the other's name and trains on the other's data. And all write the name of their site into one dictionary before
they send it. Here a port that was found is held until the run ends, and every thread has a dictionary of its own. All arguments
are FLARE's; give ``-t`` as many threads as there are sites.
"""

import copy
import functools
import runpy
import socket
from collections.abc import Callable

from nvflare.private.fed.app.deployer import simulator_deployer
from nvflare.private.fed.app.simulator import simulator_runner
from nvflare.private.fed.app.simulator.simulator_runner import SimulatorClientRunner

_held: list[socket.socket] = []


def hold_open_ports(number: int) -> list[int]:
    """Find so many free ports that the system will give to nobody else who asks for any free one.

    A socket holds each: it is bound and does not listen, so that another may listen that also allows the address to be reused
    (``SO_REUSEADDR``), as Python's listeners do.
    """
    found = []
    for _ in range(number):
        holder = socket.socket()
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("", 0))
        _held.append(holder)
        found.append(holder.getsockname()[1])
    return found


def each_its_own_name(start: Callable) -> Callable:
    """Let FLARE's method, which starts a site's process and gives it its name, work on a copy of what all sites share."""

    @functools.wraps(start)
    def do_one_task(runner: SimulatorClientRunner, *args: object, **options: object) -> object:
        own = copy.copy(runner)
        own.build_ctx = dict(runner.build_ctx)
        return start(own, *args, **options)

    return do_one_task


# At import: where processes are spawned, as on macOS, FLARE runs the sites' threads in a child that imports this module again.
SimulatorClientRunner.do_one_task = each_its_own_name(SimulatorClientRunner.do_one_task)
simulator_runner.get_open_ports = simulator_deployer.get_open_ports = hold_open_ports

if __name__ == "__main__":
    runpy.run_module("nvflare.private.fed.app.simulator.simulator", run_name="__main__")
