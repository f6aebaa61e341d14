"""The processes of a simulation: one imports everything, then forks FLARE's simulator for each run, and that forks its sites.

A site spends four seconds on imports, more than on a small study. :class:`deploy.simulator.Simulated` starts
``python -m deploy.simulated``, with one end of a socket as standard input. Through it come runs, each with a socket for its exit
status; closing that ends the run. Where processes cannot be forked safely (macOS) it is the simulator of one run, and starts its
sites one by one."""

import contextlib
import ctypes
import gc
import importlib
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from importlib.machinery import PathFinder
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import recv_handle
from pathlib import Path

from setproctitle import getproctitle, setproctitle

from deploy.flare_2_9 import EVERYTHING, SIMULATOR, WORKER, run_simulator, run_site
from deploy.guard import LOOK_SECONDS

FORKS, STALE = sys.platform == "linux", "stale"
DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of <sys/prctl.h>


def main() -> None:
    """Serve the process that holds the other end, and end with it, however it ends."""
    if sys.argv[1:]:  # a site that was not forked
        _be(WORKER, sys.argv[1:])
    owner, control = os.getppid(), Connection(os.dup(0))
    getproctitle()  # it looks for its place in memory now; once the environment has changed it would not find it
    if not FORKS:
        request, status = control.recv(), Connection(recv_handle(control))
        threading.Thread(target=lambda: wait([status]) and os._exit(1), daemon=True).start()
        _simulate(request)
    sys.orig_argv = [sys.executable, "-m", WORKER]  # it loads what a site would
    for name in ("src.federation.lean", *EVERYTHING):
        importlib.import_module(name)
    gc.freeze()  # a child that collects garbage would copy all pages of what was imported
    modules, runs = [*sys.modules], {}
    before = on_disk(modules)
    # What the owner has forked holds the other end of the socket too, and may outlive it.
    while os.getppid() == owner:
        ready = wait([control, *runs, *(run.sentinel for run in runs.values())], LOOK_SECONDS)
        for status in [one for one, run in runs.items() if one in ready or run.sentinel in ready]:
            run = runs.pop(status)
            if status in ready:  # the owner has closed it
                run.kill()
            with status, contextlib.suppress(BrokenPipeError):
                status.send(run.wait())
        if control in ready:
            try:
                request, status = control.recv(), Connection(recv_handle(control))
            except EOFError:
                break
            if on_disk(modules) != before:
                status.send(STALE)
            else:
                runs[status] = Forked(target=_simulate, args=[request])
                runs[status].start()
    os._exit(0)  # and all runs with it


def on_disk(modules: Sequence[str]) -> list:
    """All that decides what an import of these loaded modules would bring now: their files, what is found by their names, and what
    is installed, for a package may do without another."""
    importlib.invalidate_caches()
    found = [PathFinder.find_spec(name) for name in sorted({name.partition(".")[0] for name in modules})]
    files = [file for name in modules if (file := getattr(sys.modules[name], "__file__", None))]
    places = map(Path, [*files, *(place for place in sys.path if place.endswith("site-packages"))])
    times = [(place, place.stat().st_mtime_ns if place.exists() else None) for place in places]
    return [*times, *((one.origin, list(one.submodule_search_locations or ())) for one in found if one)]


class Forked(multiprocessing.get_context("fork").Process):
    """A forked process, with as much of ``subprocess.Popen`` as FLARE uses. It is killed when its parent's main thread ends."""

    def run(self):
        ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL)
        if os.getppid() != multiprocessing.parent_process().pid:
            os._exit(1)
        import numpy as np
        import torch
        from monai.transforms import Randomizable

        for seed in (np.random.seed, torch.seed, Randomizable.R.seed):  # as if just imported; Python sees to its own
            seed()
        super().run()

    def poll(self) -> int | None:
        return self.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self.join(timeout)
        if self.exitcode is None:
            raise subprocess.TimeoutExpired(self.name, timeout)
        return self.exitcode

    returncode = property(poll)


def _simulate(request: dict) -> None:
    """Be FLARE's simulator, which starts its sites by command lines: processes that wait are given them."""
    for target in (1, 2):
        os.dup2(os.open(request["console"], os.O_WRONLY | os.O_APPEND), target)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.executable = request["python"]
    waiting = []
    for _ in range(request["sites"] if FORKS else 0):  # now, for later this process has threads
        theirs, ours = multiprocessing.Pipe(duplex=False)
        waiting.append((Forked(target=_wait_to_be_a_site, args=[theirs]), ours))
        waiting[-1][0].start()

    def start_site(command: list[str], env: dict, **_):
        if not waiting:
            return subprocess.Popen([*command[:2], __spec__.name, *command[3:]], env=env, start_new_session=True)
        process, orders = waiting.pop()
        orders.send((command[3:], env))
        return process

    _be(SIMULATOR, request["arguments"], start_site)


def _wait_to_be_a_site(orders: Connection) -> None:
    os.setsid()
    arguments, environment = orders.recv()
    os.environ.clear()
    os.environ.update(environment)
    _be(WORKER, arguments)


def _be(program: str, arguments: list[str], *more) -> None:
    """Run one of FLARE's programs under its own name, by which the course and :mod:`deploy.processes` know it."""
    sys.orig_argv = [sys.executable, "-m", program, *arguments]
    setproctitle(" ".join(sys.orig_argv))
    sys.exit({SIMULATOR: run_simulator, WORKER: run_site}[program](arguments, *more))


if __name__ == "__main__":
    main()
