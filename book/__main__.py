"""Run every notebook and leave pages to read: ``python -m book [NAME ...]``, which is what ``make course`` calls.

The build folder gets the executed notebooks, a page for each, ``index.html`` and ``summary.json``.
"""

import argparse
import ast
import shutil
import signal
import sys
import time
from pathlib import Path

from nbformat import NotebookNode

from book.kernel import count_cells, execute
from book.pages import duration, figures, write_pages
from book.tidy import notebook_text, read_notebook
from src.common.errors import CourseError
from src.common.files import read_json, write_file, write_json, writing

_PLAIN_TICK_SECONDS = 60  # how often a log without a terminal says that a long cell is still running


class _Progress:
    """One line for a notebook: rewritten in place on a terminal; in a log at its start, at its end and every minute."""

    def __init__(self, label: str, total: int):
        self.label, self.total, self.started, self.said = label, total, time.monotonic(), 0.0

    def show(self, cell: int) -> None:
        now = time.monotonic()
        line = f"{self.label}  cell {cell}/{self.total}  {duration(now - self.started)}"
        if sys.stdout.isatty():
            # A line that wraps cannot be rewritten in place.
            print(f"\r\033[K{line[: shutil.get_terminal_size().columns - 1]}", end="", flush=True)
        elif not self.said or now - self.said >= _PLAIN_TICK_SECONDS:
            self.said = now
            print(line, flush=True)

    def finish(self, outcome: str) -> None:
        start = "\r\033[K" if sys.stdout.isatty() else ""
        print(f"{start}{self.label}  {outcome}", flush=True)


def headlines(notebook: NotebookNode) -> dict[str, float | int | str]:
    """All numbers and texts that an executed notebook gave by ``headline`` or MyST-NB's ``glue``."""
    found = {}
    for output in (output for cell in notebook.cells for output in cell.get("outputs", ())):
        if scrap := output.get("metadata", {}).get("scrapbook"):
            try:
                value = ast.literal_eval(output["data"].get(f"{scrap['mime_prefix']}text/plain", ""))
            except (ValueError, SyntaxError):  # a table or a figure
                continue
            found[scrap["name"]] = value
    return {name: value for name, value in found.items() if isinstance(value, (int, float, str))}


def _run(notebook: NotebookNode, folder: Path, label: str) -> dict:
    """Run one notebook in its own folder, in place, and return its entry for the summary."""
    total = count_cells(notebook)
    progress = _Progress(label, total)
    progress.show(0)
    error = execute(notebook, folder, progress.show)
    entry = {"seconds": round(time.monotonic() - progress.started, 1), **headlines(notebook)}
    if error:
        entry["error"] = error.splitlines()[0]
    progress.finish(f"FAILED in {error}\n" if error else f"{total} cells  {duration(entry['seconds'])}")
    return entry


def _earlier(build: Path, names: dict[str, Path]) -> dict[str, dict]:
    """The entries that an earlier run left, as far as their notebooks are still there."""
    path = build / "summary.json"
    entries = read_json(path) if path.exists() else {}
    if entries is None:
        raise CourseError(f"{path} is damaged. Delete it and run all notebooks.")
    return {name: entry for name, entry in entries.items() if name in names and (build / f"{name}.ipynb").is_file()}


def run_course(notebooks: Path, build: Path, names: list[str] | None = None) -> dict[str, dict]:
    """Execute notebooks in order and write their pages, ``index.html`` and ``summary.json`` to the build folder.

    A notebook that fails does not keep the others from running; its page shows the cells that ran and the error.

    Args:
        notebooks: folder of the ``.ipynb`` files.
        build: folder to write to, made if needed.
        names: run only these (file name with or without ``.ipynb``); pages and entries of the others are kept.

    Returns:
        What ``summary.json`` holds: ``{"<name>": {"seconds": ..., "<headline>": ..., "error": <only if it failed>}}``.

    Raises:
        CourseError: if there is no notebook, none of a given name, or one that is no notebook; or if the build folder
            cannot be written to.
    """
    notebooks, build = Path(notebooks).resolve(), Path(build).resolve()
    found = {path.stem: path for path in sorted(notebooks.glob("*.ipynb"))}
    if not found:
        raise CourseError(f"There is no notebook in {notebooks}.")
    wanted = sorted({Path(name).name.removesuffix(".ipynb") for name in names or found})
    if missing := [name for name in wanted if name not in found]:
        raise CourseError(f"There is no notebook {missing[0]!r} in {notebooks}; there are: {', '.join(found)}.")
    read = {name: read_notebook(found[name]) for name in wanted}  # all are readable before one is run
    with writing(build):
        build.mkdir(parents=True, exist_ok=True)
    summary = _earlier(build, found) if names else {}
    for position, (name, notebook) in enumerate(read.items(), start=1):
        label = f"[{position}/{len(wanted)}] {name:<{max(map(len, wanted))}}"
        summary[name] = _run(notebook, notebooks, label)
        write_file(build / f"{name}.ipynb", notebook_text(notebook))
        write_json(build / "summary.json", dict(sorted(summary.items())))
    write_pages(build, notebooks, summary)
    return summary


def _interrupt(number: int, frame: object) -> None:
    """Ctrl-C and SIGTERM end the run, once: a second one would cut short the cleaning up that the first one began."""
    for every in (signal.SIGINT, signal.SIGTERM):
        signal.signal(every, signal.SIG_IGN)
    raise KeyboardInterrupt


def main(arguments: list[str] | None = None) -> int:
    """Command line of :func:`run_course`. Returns 0, 1 if a notebook failed, 2 for a bad call, 130 if interrupted."""
    parser = argparse.ArgumentParser(prog="python -m book", description="Run the notebooks and build their pages.")
    parser.add_argument("names", nargs="*", help="notebooks to run, by name; default: all, in order")
    parser.add_argument("--notebooks", type=Path, default=Path("notebooks"), help="folder of the notebooks")
    parser.add_argument("--build", type=Path, default=Path("build/course"), help="folder for the pages")
    options = parser.parse_args(arguments)
    try:
        summary = run_course(options.notebooks, options.build, options.names)
    except CourseError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nInterrupted: the running notebook was stopped; what was finished before it is kept.")
        return 130
    print()
    for name, entry in sorted(summary.items()):
        state = "FAILED" if "error" in entry else duration(entry["seconds"])
        print(f"{name:<24}{state:>12}  {' · '.join(' '.join(one) for one in figures(entry).items())}".rstrip())
    print(f"\nRead the course: {options.build.resolve() / 'index.html'}")
    return 1 if any("error" in entry for entry in summary.values()) else 0


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    sys.exit(main())
