"""What a round costs on slow lines: ``python -m benchmarks.lines [--out FILE]``.

Every site of a real federation reaches the server through a line of its own, whose speed is limited in both directions: a small
proxy, since limiting the loopback itself (``tc``) needs root and would slow down everybody on this machine. The kept report is
``benchmarks/results/federation/lines.json``. FLARE's filters need ``pip install --editable '.[lines]'``.
"""

import argparse
import asyncio
import contextlib
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from nvflare.fuel.utils.network_utils import get_open_ports

from benchmarks.__main__ import machine
from benchmarks.half_precision import send_half_precision
from data_scripts.mednist_sites import share_out
from data_scripts.phantoms.mednist import write
from data_scripts.together import pooled, read_sites
from deploy.federation import Federation
from deploy.kits import SERVER
from src.common.files import write_json
from src.federation.recipes import client_recipe
from src.federation.run import Run
from src.mednist.card import Settings
from src.mednist.evaluation import TASK

REPORT = Path(__file__).with_name("results") / "federation" / "lines.json"
SITES = ("site-1", "site-2")
MEGABIT = 1e6 / 8
LINES = {"no limit": None, "100 Mbit/s": 100 * MEGABIT, "10 Mbit/s": 10 * MEGABIT}
"""Bytes a second in each direction."""

WAYS = {
    "weights": {"transfer": "FULL", "half": False},
    "weights, half precision": {"transfer": "FULL", "half": True},
    "differences": {"transfer": "DIFF", "half": False},
    "differences, half precision": {"transfer": "DIFF", "half": True},
}
CHUNK = 1 << 14


class SlowLine:
    """A port of this machine through which another one is reached at a limited speed; a context manager.

    Args:
        port: to be reached.
        speed: bytes a second in each direction, over all connections; None for no limit.

    Attributes:
        port: to call.
        up: bytes that were sent to the other port so far.
        down: bytes that came from it.
    """

    def __init__(self, port: int, speed: float | None):
        self._target, self.speed, self.port = port, speed, get_open_ports(1)[0]
        self.up = self.down = 0
        self._free = {"up": 0.0, "down": 0.0}
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)

    def __enter__(self):
        self._thread.start()
        if not self._ready.wait(10):
            raise RuntimeError(f"no line to port {self._target}")
        return self

    def __exit__(self, *_) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(10)  # it has nothing left to do

    async def _serve(self) -> None:
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._connect, "127.0.0.1", self.port)
        self._ready.set()
        await self._end.wait()
        server.close()

    async def _connect(self, reader, writer) -> None:
        with contextlib.suppress(OSError, asyncio.CancelledError):
            other_reader, other_writer = await asyncio.open_connection("127.0.0.1", self._target)
            await asyncio.gather(self._pass(reader, other_writer, "up"), self._pass(other_reader, writer, "down"))

    async def _pass(self, reader, writer, way: str) -> None:
        try:
            while chunk := await reader.read(CHUNK):
                if self.speed:
                    # The line is taken for as long as this chunk needs, from when it is next free.
                    start = max(time.monotonic(), self._free[way])
                    self._free[way] = start + len(chunk) / self.speed
                    await asyncio.sleep(max(0.0, self._free[way] - time.monotonic()))
                setattr(self, way, getattr(self, way) + len(chunk))
                writer.write(chunk)
                await writer.drain()
        except OSError:
            pass  # one of the two has hung up
        finally:
            writer.close()


def way(name: str, rounds: int):
    """MedNIST's recipe, with one way to send models."""
    how = WAYS[name]
    made = client_recipe(TASK, len(SITES), Settings(data="lines", rounds=rounds), transfer=how["transfer"])
    if how["half"]:
        send_half_precision(made)
    return made


@contextlib.contextmanager
def federation(folder: Path, speed: float | None) -> Iterator[tuple[Federation, list[SlowLine]]]:
    """A running federation whose sites have such lines."""
    told = {site: {"COURSE_DATA": os.environ["COURSE_DATA"]} for site in SITES}
    with contextlib.ExitStack() as stack:
        hospitals = stack.enter_context(Federation(folder, told, silence=600.0))
        lines = [stack.enter_context(SlowLine(hospitals.port, speed)) for _ in SITES]
        for site, line in zip(SITES, lines, strict=True):
            file = hospitals.kits[site] / "startup" / "fed_client.json"
            file.write_text(file.read_text().replace(f"localhost:{hospitals.port}", f"localhost:{line.port}"))
        hospitals.start(SERVER)
        hospitals.start(*SITES)
        yield hospitals, lines


def measure(hospitals: Federation, lines: list[SlowLine], name: str, rounds: int, folder: Path) -> dict:
    """One run: bytes and seconds of its second round, and the final model's accuracy."""
    job = way(name, rounds).execute(hospitals.environment()).get_job_id()
    sent = []
    for number in (0, 1):  # after the answers of a round nothing is sent until the server has averaged them
        hospitals.wait_for(job, "all answers in", round=number)
        sent.append([(line.up, line.down) for line in lines])
    run = Run(hospitals.fetch(job, folder, timeout=1800))
    times = {entry["event"]: entry["time"] for entry in run.record if entry["round"] == 1}
    work = run.metrics[(run.metrics.step == 1) & run.metrics.tag.str.startswith("seconds_")]
    up, down = (
        sum(after[way] - before[way] for before, after in zip(*sent, strict=True)) / len(lines) for way in (0, 1)
    )
    model = TASK.load_model(run.weights(run.final_model))
    test = TASK.evaluate_cases(model, pooled(read_sites("lines"))["testing"], Settings(data="lines"))
    return {
        "bytes_up": round(up),
        "bytes_down": round(down),
        "round_seconds": round(times["all answers in"] - times["round started"], 2),
        "training_and_validation_seconds": round(float(work.groupby("site")["value"].sum().max()), 2),
        "rounds": rounds,
        "test_images": len(test),
        "test_accuracy": float(test["accuracy"].mean()),
    }


def main(arguments: list[str] | None = None) -> int:
    """Run all and write the report."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lines", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=REPORT, help="file for the report")
    parser.add_argument("--per-class", type=int, default=100, help="images of each class")
    options = parser.parse_args(arguments)
    report = {
        "machine": machine(),
        "data": "generated",
        "sites": len(SITES),
        "images": 6 * options.per_class,
        "runs": {},
    }
    with tempfile.TemporaryDirectory(prefix="course-lines-") as temporary:
        root = Path(temporary)
        os.environ["COURSE_DATA"] = str(root / "data")
        (root / "MedNIST").mkdir()
        write(root / "MedNIST", per_class=options.per_class, seed=0)
        share_out(list(SITES), how="even", data="lines", folder=root / "MedNIST")
        for line, speed in LINES.items():
            with federation(root / line.replace(" ", "-").replace("/", "-"), speed) as (hospitals, lines):
                for name in WAYS:
                    # Accuracy is that of the fast line's run; the slow ones need no more than a second round.
                    rounds = 5 if speed is None else 2
                    found = measure(hospitals, lines, name, rounds, root / "results")
                    report["runs"].setdefault(name, {})[line] = found
                    print(f"{name}, {line}: {found}", flush=True)
                    options.out.parent.mkdir(parents=True, exist_ok=True)
                    write_json(options.out, report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
