"""What grows with the number of sites, and how: ``python -m benchmarks.scale [--sites 2 4 8 16] [--out FILE]``.

Each number of sites is one run of MedNIST in the course's simulator, with so few images a site that all else shows: start-up,
transfer, averaging, memory. Run again, the command goes on where it stopped: a number of sites that the report has, of the same
settings and machine, is not measured again. Straight lines through the measured points then say how many sites a machine can
hold, and what one round of a hundred and of a thousand sites would cost on a server's line. ``--table`` prints what is there;
``--page`` renews ``docs/scale.md``. The kept report is ``benchmarks/results/federation/scale.json``.
"""

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, floor
from pathlib import Path
from statistics import fmean, median

import numpy as np
import psutil
from nvflare.apis.fl_constant import FLMetaKey
from nvflare.app_common.abstract.fl_model import FLModel

from benchmarks.__main__ import machine, versions
from benchmarks.costs import megabytes_per_round
from benchmarks.measure import TOGETHER, Watch
from benchmarks.table import with_table
from data_scripts import mednist_sites as data
from deploy.simulator import CourseSimEnv, Forker
from src.common.errors import CourseError
from src.common.files import read_json, write_file, write_json
from src.federation.aggregation import SampleWeightedMean
from src.federation.recipes import client_recipe
from src.federation.run import Run
from src.mednist.card import Settings
from src.mednist.training import TASK

REPORT = Path(__file__).with_name("results") / "federation" / "scale.json"
PAGE = Path(__file__).resolve().parents[1] / "docs" / "scale.md"
SITES = (2, 4, 8, 16)
ROUNDS = 3
PER_CLASS = 6
"""Images of each class that a site gets: enough for a training, a validation and a testing part."""

LINE = 100e6 / 8
"""Bytes a second of each node's line in each direction: 100 Mbit/s."""

FAN_OUT = 32
"""Sites, or aggregators, that one aggregator serves."""

LARGE = (100, 1000)
GIBIBYTE = 2**30
COPIES_IN_TIME = 4
"""Models that averaging in time holds, however many sites answer: the global one, the sum in double precision (two), one answer."""

QUANTITIES = {
    "wall_seconds": ("wall time of the run", "s", 1.0),
    "start_up_seconds": ("start-up, until the first round starts", "s", 1.0),
    "first_round_seconds": ("the first round, in which the sites start", "s", 1.0),
    "round_seconds": ("a round, median after the first", "s", 1.0),
    "tear_down_seconds": ("tear-down", "s", 1.0),
    "aggregation_seconds": ("averaging of a round's answers alone", "s", 1.0),
    "server_bytes": ("peak memory of the server (RSS)", "MB", 1e6),
    "site_bytes_max": ("peak memory of the largest site (RSS)", "MB", 1e6),
    "site_bytes_mean": ("peak memory of a site, mean (RSS)", "MB", 1e6),
    "together_bytes": ("peak memory of all together", "MB", 1e6),
    "round_bytes": ("weights that the server sends and receives in a round, computed", "MB", 1e6),
    "round_bytes_loopback": ("bytes over the loopback interface in a round, measured", "MB", 1e6),
}
"""Key of a row → title, unit, and what to divide by for that unit."""


@dataclass(frozen=True)
class Fit:
    """A straight line, ``a + b · n``.

    Attributes:
        a: value at no site, in the unit of the quantity.
        b: growth with each site, in the same unit.
        residual: largest distance between a measured value and the line, as a share of the measured value.
    """

    a: float
    b: float
    residual: float


def fit(sites: Sequence[int], values: Sequence[float]) -> Fit | None:
    """The line of least squares through the values at these numbers of sites; None of fewer than two different numbers."""
    if len(set(sites)) < 2:
        return None
    slope, start = (float(value) for value in np.polyfit(sites, values, 1))
    away = (
        abs(start + slope * n - value) / abs(value) if value else 0.0 for n, value in zip(sites, values, strict=True)
    )
    return Fit(start, slope, max(away))


def capacity(line: Fit, memory: float) -> int | None:
    """How many sites fit into ``memory`` bytes by the line of the memory of all together; None if it does not rise."""
    return max(0, floor((memory - line.a) / line.b)) if line.b > 0 else None


def levels(sites: int, fan_out: int | None = None) -> list[int]:
    """How many nodes the busiest node of each level serves, the server first.

    Args:
        sites: how many train.
        fan_out: how many nodes one serves at most; by default the server serves all sites itself.

    Raises:
        ValueError: for a fan-out that builds no tree.
    """
    if fan_out is not None and fan_out < 2:
        raise ValueError(f"fan_out is {fan_out}; a node of a tree serves at least 2.")
    below: list[int] = []
    while fan_out and sites > fan_out:
        below.insert(0, fan_out)
        sites = ceil(sites / fan_out)
    return [sites, *below]


@dataclass(frozen=True)
class PaperRound:
    """One round that was computed, not run; without the sites' training.

    Attributes:
        line_bytes: over the server's line, in each of the two directions.
        send_seconds: until the last site has the model.
        receive_seconds: until the server has the last answer, when all are ready at once.
        averaging_seconds: of all answers on their way, one after the other.
        held_bytes: memory of the busiest node's models if it holds all answers at once.
        in_time_bytes: the same if each answer is added to a sum as it comes.
    """

    line_bytes: float
    send_seconds: float
    receive_seconds: float
    averaging_seconds: float
    held_bytes: float
    in_time_bytes: float


def paper_round(
    sites: int,
    model_bytes: float,
    averaging_seconds: float,
    share: float = 1.0,
    fan_out: int | None = None,
    line: float = LINE,
) -> PaperRound:
    """A round with the server and every aggregator on a line of its own.

    An aggregator passes on a model that it has as a whole, and answers when it has averaged all of its own answers, so levels add
    up. Answers are averaged in full precision, whatever they are sent in.

    Args:
        sites: how many train.
        model_bytes: of the model in memory.
        averaging_seconds: that one answer costs the node that averages it.
        share: bytes on the line for a byte in memory; 0.5 for half precision.
        fan_out: see :func:`levels`.
        line: bytes a second of a node's line in each direction.
    """
    served = levels(sites, fan_out)
    seconds = sum(served) * model_bytes * share / line
    return PaperRound(
        line_bytes=served[0] * model_bytes * share,
        send_seconds=seconds,
        receive_seconds=seconds,
        averaging_seconds=sum(served) * averaging_seconds,
        held_bytes=(1 + max(served)) * model_bytes,
        in_time_bytes=COPIES_IN_TIME * model_bytes,
    )


WAYS = {
    "flat, full weights": {},
    "flat, half precision": {"share": 0.5},
    f"aggregators for {FAN_OUT} each, full weights": {"fan_out": FAN_OUT},
}


def timings(about: Mapping, record: Sequence[Mapping]) -> dict[str, float]:
    """Where a run's time went, by its record, in seconds.

    Args:
        about: of :class:`src.federation.run.Run`.
        record: of the same run, with all of its rounds.
    """
    start = {entry["round"]: entry["time"] for entry in record if entry["event"] == "round started"}
    saved = {entry["round"]: entry["time"] for entry in record if entry["event"] == "model saved"}
    rounds = [saved[number] - start[number] for number in sorted(start)]
    ended = next(entry["time"] for entry in record if entry["event"] == "run ended")
    return {
        "start_up_seconds": start[0] - about["started"],
        "first_round_seconds": rounds[0],
        "round_seconds": median(rounds[1:] or rounds),
        "tear_down_seconds": about["started"] + about["seconds"] - ended,
    }


def loopback_of_a_round(traffic: Sequence[tuple[float, int]], record: Sequence[Mapping]) -> float | None:
    """Bytes that went over the loopback interface in a round, median after the first; None where the system does not tell.

    Every program of the machine counts, so this holds only where nothing else runs.

    Args:
        traffic: of :class:`benchmarks.measure.Watch`.
        record: see :func:`timings`.
    """
    if not traffic:
        return None
    at = {
        event: {e["round"]: e["time"] for e in record if e["event"] == event}
        for event in ("round started", "model saved")
    }
    edges = np.array([[at["round started"][n], at["model saved"][n]] for n in sorted(at["round started"])])
    before, after = np.interp(edges, *zip(*traffic, strict=True)).T
    rounds = list(after - before)
    return float(median(rounds[1:] or rounds))


def aggregation_seconds(weights: Mapping, answers: int, tries: int = 3) -> float:
    """Seconds in which the course's average takes in so many answers and makes one model of them; the fastest of the tries.

    Args:
        weights: a model, tensor by name.
        answers: how many sites answer with it.
        tries: how often.
    """
    params = {name: np.asarray(tensor) for name, tensor in weights.items()}
    mean, seconds = SampleWeightedMean(), []
    for _ in range(tries):
        started = time.perf_counter()
        mean.reset_stats()
        for number in range(answers):
            meta = {"client_name": f"site-{number + 1}", FLMetaKey.NUM_STEPS_CURRENT_ROUND: 1}
            mean.accept_model(FLModel(params=params, meta=meta))
        mean.aggregate_model()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def settings(sites: int, rounds: int = ROUNDS) -> Settings:
    """Settings of the run with so many sites; the drawings of each are data of their own."""
    return Settings(data=f"scale-{sites}", rounds=rounds)


def measure(
    sites: int, rounds: int = ROUNDS, per_class: int = PER_CLASS, folder: Path | None = None
) -> dict[str, float | None]:
    """One run: a row of the report, with the keys of :data:`QUANTITIES`, and ``model_bytes``.

    Args:
        sites: how many take part, each as a process.
        rounds: of the run.
        per_class: images of each class at each site.
        folder: of the images, by default those of the course.

    Raises:
        CourseError: if a site's update is missing, for such a run has measured something else.
    """
    study = settings(sites, rounds)
    many = {"per_class": sites * per_class, "data": study.data, "folder": folder}
    data.share_out(sites, how="even", **many, say=lambda line: None)
    place = Path(tempfile.mkdtemp(prefix="course-scale-"))
    try:
        simulator = CourseSimEnv(sites, folder=place / "run")
        simulator.run_folder.mkdir()
        Forker.drop()  # as the first run of a notebook, each
        with Watch(together=True) as watch:
            run = Run(client_recipe(TASK, sites, study).execute(simulator).get_result())
        if not run.contributions["accepted"].all():
            raise CourseError(f"{sites} sites: an update is missing.\n{run.contributions}")
        weights, round_bytes = run.weights(run.final_model), 1e6 * megabytes_per_round(run)
        memory = [peak for name, peak in watch.peak_memory.items() if name != "server"]
        return {
            "wall_seconds": watch.seconds,
            **timings(run.about, run.record),
            "aggregation_seconds": aggregation_seconds(weights, sites),
            "server_bytes": watch.peak_memory["server"],
            "site_bytes_max": max(memory),
            "site_bytes_mean": fmean(memory),
            "together_bytes": watch.peak_together,
            "round_bytes": round_bytes,
            "round_bytes_loopback": loopback_of_a_round(watch.traffic, run.record),
            "model_bytes": round_bytes / (2 * sites),
        }
    finally:
        shutil.rmtree(place)


def conditions(rounds: int, per_class: int) -> dict[str, object]:
    """What must be the same for two rows to stand on one line: machine, versions and settings."""
    study = settings(1, rounds).model_dump(mode="json", exclude={"data"})
    memory = {"memory_gib": round(psutil.virtual_memory().total / GIBIBYTE)}  # the exact number changes with the kernel
    return {
        "machine": machine() | memory,
        "versions": versions(),
        "settings": study | {"per_class_and_site": per_class},
        "memory_of_all_together": TOGETHER,
    }


def with_fits(report: Mapping) -> dict:
    """A report with what its rows say: ``fits``, quantity by quantity; ``holds``; ``paper``, the computed rounds."""
    numbers = sorted(map(int, report["rows"]))
    rows = [report["rows"][str(n)] for n in numbers]
    fits = {key: _fit_of(key, numbers, rows) for key in QUANTITIES}
    together, averaging = fits["together_bytes"], fits["aggregation_seconds"]
    model = rows[-1]["model_bytes"] if rows else None
    return {
        **report,
        "fits": {key: line and vars(line) for key, line in fits.items()},
        "holds": together and {name: capacity(together, memory) for name, memory in _memories(report).items()},
        "paper": averaging
        and {
            str(sites): {way: vars(paper_round(sites, model, averaging.b, **how)) for way, how in WAYS.items()}
            for sites in LARGE
        },
    }


def _memories(report: Mapping) -> dict[str, float]:
    return {"this machine": report["memory_bytes"], "16 GiB": 16 * GIBIBYTE}


def _fit_of(key: str, numbers: Sequence[int], rows: Sequence[Mapping]) -> Fit | None:
    known = [(n, row[key]) for n, row in zip(numbers, rows, strict=True) if row[key] is not None]
    return fit(*zip(*known, strict=True)) if known else None


NOTHING = "Not measured yet: no report is kept."
TOO_FEW = "Not computed yet: the report has fewer than two numbers of sites."


def _missing(report: Mapping, key: str) -> str | None:
    """What stands in a table's place as long as the report has no points, or too few for what is drawn out from them."""
    if not report.get("rows"):
        return NOTHING
    return None if report[key] else TOO_FEW


def _number(value: float | None, places: int = 3) -> str:
    """A value with so many places that count, without an exponent."""
    if value is None:
        return "–"
    if abs(value) < 1e-9:  # what rounding leaves of a line through zero
        return "0"
    digits = max(0, places - 1 - floor(np.log10(abs(value))))
    return f"{value:,.{digits}f}"


def growth_table(report: Mapping) -> str:
    """What was measured with each number of sites, and the lines through it, as Markdown."""
    numbers = sorted(map(int, report.get("rows", {})))
    if not numbers:
        return NOTHING
    lines = [
        f"| on {report['machine']['cores']} CPU cores, {report['machine']['memory_gib']} GiB "
        f"| {' | '.join(f'{n} sites' for n in numbers)} | with n sites | largest residual |",
        "|---|" + "--:|" * (len(numbers) + 2),
    ]
    for key, (title, unit, divisor) in QUANTITIES.items():
        values = [report["rows"][str(n)][key] for n in numbers]
        cells = [_number(None if value is None else value / divisor) for value in values]
        line = report["fits"][key]
        sign = "−" if line and line["b"] < 0 else "+"
        grows = f"{_number(line['a'] / divisor)} {sign} {_number(abs(line['b']) / divisor)} n" if line else "–"
        away = f"{100 * line['residual']:.0f} %" if line else "–"
        kind = f" ({report['memory_of_all_together']})" if key == "together_bytes" else ""
        lines.append(f"| {title}{kind}, {unit} | {' | '.join(cells)} | {grows} | {away} |")
    return "\n".join(lines)


def holding_table(report: Mapping) -> str:
    """How many sites the simulator can hold, and what a site adds to the server's memory, as Markdown."""
    if missing := _missing(report, "holds"):
        return missing
    lines = ["| memory | sites that it holds, by the line |", "|---|--:|"]
    for name, sites in report["holds"].items():
        size = f" ({_memories(report)[name] / GIBIBYTE:.1f} GiB)" if name == "this machine" else ""
        lines.append(f"| {name}{size} | {'–' if sites is None else sites} |")
    model = report["rows"][max(report["rows"], key=int)]["model_bytes"]
    server = report["fits"]["server_bytes"]["b"]
    lines += [
        "",
        f"The model has {_number(model / 1e6)} MB. With each site the server's peak grows by {_number(server / 1e6)} MB, "
        f"{_number(server / model, 2)} models. Most sites measured: {max(map(int, report['rows']))}; "
        "beyond that the line is a forecast.",
    ]
    return "\n".join(lines)


def paper_table(report: Mapping) -> str:
    """The computed rounds, as Markdown."""
    if missing := _missing(report, "paper"):
        return missing
    lines = [
        "| sites | how | over the server's line, each way | sending | receiving | averaging | all answers held | in time |",
        "|--:|---|--:|--:|--:|--:|--:|--:|",
    ]
    for sites, ways in report["paper"].items():
        for way, one in ways.items():
            seconds = " | ".join(f"{_number(one[f'{key}_seconds'])} s" for key in ("send", "receive", "averaging"))
            sizes = " | ".join(f"{_number(one[f'{key}_bytes'] / 1e6)} MB" for key in ("held", "in_time"))
            lines.append(f"| {sites} | {way} | {_number(one['line_bytes'] / 1e6)} MB | {seconds} | {sizes} |")
    return "\n".join(lines)


TABLES = {"growth": growth_table, "holding": holding_table, "paper": paper_table}


def with_tables(text: str, report: Mapping) -> str:
    """``text`` with what stands between the marks of each table renewed."""
    for name, make in TABLES.items():
        marks = f"<!-- {name}: made by python -m benchmarks.scale --page -->", f"<!-- end of {name} -->"
        text = with_table(text, make(report), marks)
    return text


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what is missing, then print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__.splitlines()[0])
    parser.add_argument("--sites", type=int, nargs="+", default=SITES, metavar="N", help="numbers of sites to measure")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of each run (default: %(default)s)")
    parser.add_argument("--per-class", type=int, default=PER_CLASS, help="images of each class at each site")
    parser.add_argument("--out", type=Path, default=REPORT, help="file of the report (default: %(default)s)")
    parser.add_argument("--table", action="store_true", help="measure nothing, print what is there")
    parser.add_argument("--page", action="store_true", help="measure nothing, renew docs/scale.md")
    options = parser.parse_args(arguments)
    if min(options.sites) < 1 or max(options.sites) * options.per_class > data.DRAWN_PER_CLASS:
        parser.error(
            f"at least one site, and at most {data.DRAWN_PER_CLASS} images of each class at all sites together"
        )
    report = read_json(options.out) or {}
    if not (options.table or options.page):
        os.environ["COURSE_DATA_SOURCE"] = "generated"
        same = conditions(options.rounds, options.per_class)
        if {key: report.get(key) for key in same} != same:
            report = {**same, "rows": {}}  # lines through points of two machines say nothing
        for sites in sorted(set(options.sites)):
            if str(sites) in report["rows"]:
                continue
            report["rows"][str(sites)] = measure(sites, options.rounds, options.per_class)
            report["memory_bytes"] = psutil.virtual_memory().total
            report["command"] = "python -m benchmarks.scale"
            report = with_fits(report)
            options.out.parent.mkdir(parents=True, exist_ok=True)
            write_json(options.out, report)
            print(f"{sites} sites: {report['rows'][str(sites)]['wall_seconds']:.0f} s", flush=True)
    if options.page:
        write_file(PAGE, with_tables(PAGE.read_text(encoding="utf-8"), report))
    else:
        print("\n\n".join(make(report) for make in TABLES.values()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
