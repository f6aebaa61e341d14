"""Starts FLARE's processes by forking one that has imported everything, so that a small federated run takes seconds.

A simulated site spends four seconds of processor time on imports, which is more than its share of a small experiment. Here one
process imports once and then waits. A program that stands in for Python hands it each command line of FLARE's simulator; it
forks, and its child runs that module. Server and sites are processes of their own as ever, and what they compute is the same.

    with warm_python() as python:
        simulator = CourseSimEnv(3)
        simulator.python = python
"""

import contextlib
import gc
import json
import os
import runpy
import select
import shlex
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

PRELOAD = (
    "nvflare.app_opt.pt.recipes",
    "nvflare.app_opt.tracking.tb.tb_receiver",
    "nvflare.client.tracking",
    "src.federation.methods",
    "src.federation.recipes",
    "src.mednist.training",
    "src.prostate.training",
)

READY_SECONDS, END_SECONDS = 600, 60  # at most, for imports of some 15 s, and for the end of what was killed


@contextlib.contextmanager
def warm_python() -> Iterator[Path]:
    """Yield the path of a program to use as Python for ``python -m MODULE ...``, as long as the block lasts."""
    folder = Path(tempfile.mkdtemp(prefix="course-warm-"))
    program = folder / "bin" / "python"
    program.parent.mkdir()
    here = shlex.join([sys.executable, "-S", str(Path(__file__).resolve()), "ask", str(folder / "socket")])
    program.write_text(f'#!/bin/sh\nexec {here} "$@"\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    # One thread a site, as in any simulation with more sites than cores; both are read when a process starts.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
    command = [sys.executable, "-m", "benchmarks.warm", "serve", str(folder / "socket"), str(program)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    server = subprocess.Popen(command, cwd=Path(__file__).parents[1], env=environment, text=True, **pipes)
    try:
        ready, _, _ = select.select([server.stdout], [], [], READY_SECONDS)
        if not ready or server.stdout.readline().strip() != "ready":
            from src.common.errors import CourseError  # not above: whoever asks runs this file without any package

            said = f"has ended, or was not ready after {READY_SECONDS} s. Run this again on a quiet machine."
            raise CourseError(f"The process that imports everything {said}")
        yield program
    finally:
        server.kill()
        server.wait(END_SECONDS)
        shutil.rmtree(folder)


def serve(address: str, program: str) -> None:
    """Import, then fork a child for each connection; end by SIGTERM, or with the process that holds the other end of stdin."""
    from src.federation.flare_2_9 import PROGRAMS  # not above: whoever asks runs this file without any package

    for name in (*(name for name, kind in PROGRAMS.items() if kind == "simulated site"), *PRELOAD):
        __import__(name)
    gc.freeze()  # a child that collects garbage would copy all pages of what was imported
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the one who asked waits for the child, not this process
    sys.executable = program  # by which FLARE's server starts its sites
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen(64)
        print("ready", flush=True)
        while True:
            ready, _, _ = select.select([listener, sys.stdin], [], [])
            if sys.stdin in ready:  # whoever started this process has ended
                return
            connection, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                _become(connection)
            connection.close()


def _become(connection: socket.socket) -> None:
    """Be the Python process that was asked for, and answer with its exit status; end at once when the asker is gone."""
    message, descriptors, _, _ = socket.recv_fds(connection, 1 << 20, 3)
    asked = json.loads(message)
    for target, descriptor in enumerate(descriptors):
        os.dup2(descriptor, target)
        os.close(descriptor)
    os.setsid()
    os.chdir(asked["folder"])
    os.environ.clear()
    os.environ.update(asked["environment"])
    module, sys.argv = asked["arguments"][1], asked["arguments"][1:]
    sys.orig_argv = [sys.executable, *asked["arguments"]]  # by which the course knows which process this is
    sys.modules.pop(module, None)  # what it imports is there already; it itself is run anew
    sys.path[:0] = [entry for entry in asked["environment"].get("PYTHONPATH", "").split(os.pathsep) if entry]
    threading.Thread(target=lambda: connection.recv(1) or os._exit(1), daemon=True).start()
    status = 1
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        status = 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    sys.stdout.flush()
    sys.stderr.flush()
    with contextlib.suppress(OSError):
        connection.sendall(bytes([status & 255]))
    os._exit(status)


def ask(address: str, arguments: list[str]) -> int:
    """Have a command run by the process that listens at ``address``, with this one's streams; returns its exit status."""
    asked = {"arguments": arguments, "folder": str(Path.cwd()), "environment": dict(os.environ)}
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        socket.send_fds(connection, [json.dumps(asked).encode()], [0, 1, 2])
        answer = connection.recv(1)
    return answer[0] if answer else 1


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(*sys.argv[2:4])
    else:
        sys.exit(ask(sys.argv[2], sys.argv[3:]))
