"""What PyTorch's threads lose beside other programs, by how long they spin while they wait: ``python -m benchmarks.threads``.

A thread that has ended its part of a layer waits for the others by spinning, and keeps a core that another program, or the slower
thread itself, could use. ``GOMP_SPINCOUNT`` says how long (``KMP_BLOCKTIME`` on macOS). It is read when PyTorch loads, so each row
is measured by a process of its own.
"""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from benchmarks.limits import limited
from src.densenet import DenseNet121

PROGRAM = "from benchmarks.threads import images_a_second; print(images_a_second())"
CHOSEN = {"GOMP_SPINCOUNT": "600"}
"""What ``make``, the notebooks' kernels, the tests and the simulator set."""
ROW_SECONDS = 900  # at most, for a measurement of 6 s
ROWS = {
    "two threads": {"OMP_NUM_THREADS": "2"},
    "two threads, GOMP_SPINCOUNT=3000": {"OMP_NUM_THREADS": "2", "GOMP_SPINCOUNT": "3000"},
    "two threads, GOMP_SPINCOUNT=600": {"OMP_NUM_THREADS": "2", "GOMP_SPINCOUNT": "600"},
    "two threads, GOMP_SPINCOUNT=300": {"OMP_NUM_THREADS": "2", "GOMP_SPINCOUNT": "300"},
    "two threads, GOMP_SPINCOUNT=0": {"OMP_NUM_THREADS": "2", "GOMP_SPINCOUNT": "0"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}


def images_a_second(seconds: float = 6.0) -> float:
    """How many 64×64 images a second DenseNet121 trains on, in batches of 16."""
    model, loss = DenseNet121(seed=0).train(), torch.nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters())
    images, labels = torch.rand(16, 1, 64, 64), torch.arange(16) % 6
    count, started = -1, time.perf_counter()
    while (now := time.perf_counter()) - started < seconds:
        optimizer.zero_grad(set_to_none=True)
        loss(model(images), labels).backward()
        optimizer.step()
        count += 1
        if not count:  # the first step also plans the memory
            started = time.perf_counter()
    return count * len(images) / (now - started)


@contextlib.contextmanager
def busy_programs(count: int) -> Iterator[None]:
    """So many programs that each keep a core busy, as long as the block lasts."""
    programs = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for program in programs:
            program.kill()
            with limited("a killed program", ROW_SECONDS) as seconds:
                program.wait(seconds)


def measure(variables: dict[str, str], busy: int = 0) -> float:
    """:func:`images_a_second` in a process with these environment variables, beside so many busy programs."""
    environment = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"} | variables
    how = {"cwd": Path(__file__).parents[1], "env": environment, "stdout": subprocess.PIPE, "text": True}
    with busy_programs(busy), limited(f"{variables} beside {busy} busy programs", ROW_SECONDS) as seconds:
        done = subprocess.run([sys.executable, "-c", PROGRAM], check=True, timeout=seconds, **how)
    return float(done.stdout)


def main(busy: Sequence[int] = (0, 1, 8)) -> None:
    """Print a table: a row a setting, a column a number of busy programs beside."""
    print(f"{'images/s beside busy programs:':36}" + "".join(f"{count:>8}" for count in busy))
    for name, variables in ROWS.items():
        print(f"{name:36}" + "".join(f"{measure(variables, count):8.1f}" for count in busy), flush=True)


if __name__ == "__main__":
    main()
