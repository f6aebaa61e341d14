"""What a benchmark measures: memory and traffic while a run goes on, where its time went, and what a plain loop needs."""

import multiprocessing
import os
import threading
import time
from dataclasses import dataclass, field

import psutil
import torch

from benchmarks.limits import limited
from deploy.flare_2_9 import SIMULATOR
from src.common.datalists import PARTS
from src.common.settings import StudySettings
from src.federation.site import Site
from src.tasks import tasks

SAMPLE_SECONDS = 0.25
TOGETHER_SECONDS = 2.0
SIDE_SECONDS, END_SECONDS = 3600, 60  # at most: for a plain loop by all cores, and for what has nothing left to do
TOGETHER = "PSS" if psutil.LINUX else "RSS"
"""How memory of several processes is added up: a page that k of them share counts 1/k at each, or, outside of Linux, k times."""


@dataclass
class Watch:
    """Watches this process's children while a ``with`` block runs.

    Attributes:
        peak_memory: largest resident memory of each process in bytes: the sites by name, and ``server``.
        loopback_bytes: bytes that went over the loopback interface meanwhile; None where the system does not tell.
        seconds: wall time of the block.
        together: measure ``peak_together`` too; off by default, for the system then walks through every page of each process.
        peak_together: largest memory of all children at one moment in bytes; a page that several share counts once
            (:data:`TOGETHER`). Looked at every ``TOGETHER_SECONDS``.
        traffic: bytes over the loopback interface so far at each look, as pairs of seconds since the epoch and bytes.
    """

    peak_memory: dict[str, int] = field(default_factory=dict)
    loopback_bytes: int | None = None
    seconds: float = 0.0
    together: bool = False
    peak_together: int = 0
    traffic: list[tuple[float, int]] = field(default_factory=list)

    def __enter__(self):
        self._stop = threading.Event()
        self._traffic = _loopback_bytes()
        self._started = time.time()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self.seconds = time.time() - self._started
        self._stop.set()
        self._thread.join(END_SECONDS)  # in the midst of a sample
        after = _loopback_bytes()
        self.loopback_bytes = None if after is None or self._traffic is None else after - self._traffic

    def _sample(self):
        me, next_together = psutil.Process(), 0.0
        while not self._stop.wait(SAMPLE_SECONDS):
            children = me.children(recursive=True)
            for process in children:
                try:
                    name, memory = _role(process.cmdline()), process.memory_info().rss
                except psutil.Error:  # ended between the listing and the look
                    continue
                if name:
                    self.peak_memory[name] = max(memory, self.peak_memory.get(name, 0))
            if (loopback := _loopback_bytes()) is not None:
                self.traffic.append((time.time(), loopback))
            if self.together and time.monotonic() >= next_together:
                self.peak_together = max(self.peak_together, sum(map(_share, children)))
                next_together = time.monotonic() + TOGETHER_SECONDS


def _share(process: psutil.Process) -> int:
    """What a process adds to the memory in use, in bytes; 0 if it has ended."""
    try:
        memory = process.memory_full_info()
    except psutil.Error:
        return 0
    return getattr(memory, "pss", memory.rss)


def _role(command: list[str]) -> str | None:
    if "--client" in command:
        return command[command.index("--client") + 1]
    return "server" if SIMULATOR in command else None


def _loopback_bytes() -> int | None:
    counters = psutil.net_io_counters(pernic=True)
    return next((c.bytes_sent for name, c in counters.items() if name.startswith(("lo", "Loopback"))), None)


def plain_seconds(task: str, items: list, settings: StudySettings, epochs: int) -> tuple[float, float]:
    """Seconds for one epoch of a plain PyTorch loop, data prepared and in memory: without and with the augmentation.

    No handler, no validation, no copy of the data: optimiser, loss and network are the task's. The first step is not counted.
    """
    site = Site(tasks()[task], settings, {**dict.fromkeys(PARTS, ()), "training": items}, "pooled")
    model, device, loader = site.model, site.device, site.trainer.data_loader
    optimizer, loss = site.trainer.optimizer, site.trainer.loss_function

    def step(batch) -> None:
        optimizer.zero_grad(set_to_none=True)
        loss(model(batch["image"].to(device)), batch["label"].to(device)).backward()
        optimizer.step()

    model.train()
    drawn = list(loader)
    step(drawn[0])  # the first step also plans the memory
    started = _now(device)
    for _ in range(epochs):
        for batch in drawn:
            step(batch)
    bare = (_now(device) - started) / epochs
    started = _now(device)
    for _ in range(epochs):
        for _ in loader:
            pass
    return bare, bare + (_now(device) - started) / epochs


def _now(device: torch.device) -> float:
    """Seconds on a clock, when all that was asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def plain_seconds_side_by_side(task: str, items: list, settings: StudySettings, epochs: int) -> tuple[float, float]:
    """As :func:`plain_seconds`, by one process a core with one thread each, which share the items; the slowest counts."""
    count = len(os.sched_getaffinity(0))
    context = multiprocessing.get_context("spawn")
    barrier, answers = context.Barrier(count), context.Queue()
    workers = [
        context.Process(
            target=_one_of_many, args=(task, items[i::count], settings, epochs, barrier, answers), daemon=True
        )
        for i in range(count)
    ]
    for worker in workers:
        worker.start()
    with limited(f"{count} processes that each train on their part of the items", SIDE_SECONDS) as seconds:
        measured = [answers.get(timeout=seconds) for _ in workers]
    for worker in workers:
        worker.join(END_SECONDS)  # it has answered
    return max(bare for bare, _ in measured), max(whole for _, whole in measured)


def _one_of_many(task, items, settings, epochs, barrier, answers) -> None:
    torch.set_num_threads(1)
    plain_seconds(task, items[: settings.batch_size], settings, 1)  # imports and first steps, before all start together
    barrier.wait(SIDE_SECONDS)
    answers.put(plain_seconds(task, items, settings, epochs))
