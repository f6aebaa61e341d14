"""A grid of cells, each measured once and kept as a JSON file under its name: what the commands of all grids have in common."""

import argparse
import datetime
import fnmatch
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import astuple
from pathlib import Path

from benchmarks.__main__ import versions
from src.common.files import write_json


class Named:
    """What a cell's dataclass inherits: its name, and that of its report, is its fields, joined."""

    def __str__(self) -> str:
        return "-".join(map(str, astuple(self)))


def made_by(command: str) -> dict[str, object]:
    """What every report says of its making: the day, the versions, and the command that makes it again."""
    return {"date": datetime.date.today().isoformat(), "versions": versions(), "command": f"python -m {command}"}


def fitting(cells: Iterable, patterns: Sequence[str], parser: argparse.ArgumentParser) -> list:
    """The cells whose names fit one of the patterns, all without any; the parser's error where none does."""
    cells = [*cells]
    found = [cell for cell in cells if any(fnmatch.fnmatch(str(cell), one) for one in patterns or ["*"])]
    if not found:
        parser.error(f"no cell fits {list(patterns)}; a name is like {cells[0]}")
    return found


def measure_missing(
    cells: Iterable, folder: Path, measure: Callable[[list], Iterable[dict]], again: bool = False
) -> Iterator[tuple[str, dict]]:
    """Keep the reports of cells that are not in the folder; yields, for each, which of how many it is, and its report."""
    missing = [cell for cell in cells if again or not (folder / f"{cell}.json").exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for number, (cell, report) in enumerate(zip(missing, measure(missing), strict=True), start=1):
        write_json(folder / f"{cell}.json", report)
        yield f"{number} of {len(missing)}: {cell}", report
