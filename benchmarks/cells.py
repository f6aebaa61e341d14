"""A grid of cells, each measured once and kept as a JSON file under its name: what the commands of all grids have in common."""

import argparse
import fnmatch
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from src.common.files import write_json


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
