"""What both benchmarks measure in the same way: memory and traffic while a run goes on, its parts, and the report."""

import json
import platform
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from src.runs import Run
from src.simulation import cores

SAMPLE_SECONDS = 0.25


@dataclass
class Watch:
    """Watches this process's children while a ``with`` block runs.

    Attributes:
        peak_memory: largest resident memory of each process in bytes: ``site-1``, …, and ``server``.
        loopback_bytes: bytes that went over the loopback interface meanwhile; None where the system does not tell.
        seconds: wall time of the block.
    """

    peak_memory: dict[str, int] = field(default_factory=dict)
    loopback_bytes: int | None = None
    seconds: float = 0.0

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
        self._thread.join()
        after = _loopback_bytes()
        self.loopback_bytes = None if after is None or self._traffic is None else after - self._traffic

    def _sample(self):
        me = psutil.Process()
        while not self._stop.wait(SAMPLE_SECONDS):
            for process in me.children(recursive=True):
                try:
                    name, memory = _role(process.cmdline()), process.memory_info().rss
                except psutil.Error:  # ended between the listing and the look
                    continue
                if name:
                    self.peak_memory[name] = max(memory, self.peak_memory.get(name, 0))


def _role(command: list[str]) -> str | None:
    if "--client" in command:
        return command[command.index("--client") + 1]
    return "server" if any("simulator.simulator" in word for word in command) else None


def _loopback_bytes() -> int | None:
    counters = psutil.net_io_counters(pernic=True)
    return next((c.bytes_sent for name, c in counters.items() if name.startswith(("lo", "Loopback"))), None)


def parts_of(run: Run, started: float, seconds: float) -> dict:
    """Where the wall time of a run went, in seconds.

    Training and validation are what the slowest site of each round streamed; start-up ends when the first site has the
    model and begins to work; ``transfer and aggregation`` is what is left of the rounds.

    Args:
        run: a finished run.
        started: when ``simulate`` was called, seconds since the epoch.
        seconds: its wall time.
    """
    slowest = {tag: run.curve(tag).max(axis=1) for tag in ("seconds_validation", "seconds_training")}
    # Only what the slower site needs is waited for: the sum of both, per site, then the maximum.
    busy = run.curve("seconds_training").add(run.curve("seconds_validation"), fill_value=0)
    answers = [entry for entry in run.record if entry["event"] == "answer" and entry["round"] == 0]
    first_work = min(entry["time"] - busy.loc[0, entry["site"]] for entry in answers if entry["site"] in busy.columns)
    ended = next(entry["time"] for entry in run.record if entry["event"] == "run ended")
    rounds = ended - first_work
    return {
        "start_up": float(first_work - started),
        "rounds": float(rounds),
        "local_training": float(slowest["seconds_training"].sum()),
        "evaluation": float(slowest["seconds_validation"].sum()),
        "transfer_and_aggregation": float(rounds - busy.max(axis=1).sum()),
        "tear_down": started + seconds - ended,
    }


def model_bytes(run: Run) -> int:
    """Bytes of the weights that travel to one site, or back from it, in one round."""
    return sum(tensor.numpy().nbytes for tensor in run.weights(run.final_model).values())


def report(name: str, figures: dict, bars: dict[str, tuple[float, float]], out: Path) -> int:
    """Print the figures, save them as JSON, and say which bars were met.

    Args:
        name: title.
        figures: name to value, or to a dictionary of them.
        bars: what was measured and its limit; a negative limit means "at least".
        out: JSON file.

    Returns:
        0 if every bar was met, else 1: an exit status.
    """
    machine = {"cores": cores(), "processor": platform.machine(), "python": platform.python_version()}
    verdicts = {
        bar: {
            "measured": round(float(value), 3),
            "bar": abs(limit),
            "met": bool(value <= limit if limit > 0 else value >= -limit),
        }
        for bar, (value, limit) in bars.items()
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"machine": machine, **figures, "bars": verdicts}, indent=2) + "\n", encoding="utf-8")
    print(f"\n{name} on {machine['cores']} cores")
    for key, value in figures.items():
        for inner, number in value.items() if isinstance(value, dict) else [("", value)]:
            label = f"{key} {inner}".replace("_", " ").strip()
            print(f"  {label:<48} {number:>12,.3f}" if isinstance(number, float) else f"  {label:<48} {number!s:>12}")
    for bar, verdict in verdicts.items():
        sign = "≤" if bars[bar][1] > 0 else "≥"
        state = "met" if verdict["met"] else "MISSED"
        print(f"  {bar:<48} {verdict['measured']:>12,.3f} {sign} {verdict['bar']:g}  {state}")
    print(f"  saved: {out}")
    return 0 if all(verdict["met"] for verdict in verdicts.values()) else 1
