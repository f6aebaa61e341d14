"""Run every notebook and leave pages to read: ``python -m book [NAME ...]``, which is what ``make course`` calls."""

import argparse
import math
import shutil
import signal
import sys
import time
from pathlib import Path

from nbformat import NotebookNode

from book.headline import headlines, in_words
from book.kernel import count_cells, execute
from book.pages import duration, write_pages
from book.tidy import notebook_text, read_notebook
from src.common.errors import CourseError
from src.common.files import read_json, write_file, write_json, writing


def _execute_one(notebook: NotebookNode, folder: Path, label: str) -> dict:
    """Execute one notebook in place, showing how far it is, and return its entry for the summary."""
    total, started, terminal, said = count_cells(notebook), time.monotonic(), sys.stdout.isatty(), -math.inf

    def tick(cell: int) -> None:
        nonlocal said
        now = time.monotonic()
        line = f"{label}  cell {cell}/{total}  {duration(now - started)}"
        if terminal:  # a line that wraps cannot be rewritten
            print(f"\r\033[K{line[: shutil.get_terminal_size().columns - 1]}", end="", flush=True)
        elif now - said >= 60:  # in a log, a line a minute
            said = now
            print(line, flush=True)

    tick(0)
    error = execute(notebook, folder, tick)
    entry = {"seconds": round(time.monotonic() - started, 1), **headlines(notebook)}
    if error:
        entry["error"] = error.splitlines()[0]
    outcome = f"FAILED in {error}\n" if error else f"{total} cells  {duration(entry['seconds'])}"
    print("\r\033[K" * terminal + f"{label}  {outcome}", flush=True)
    return entry


def run_course(notebooks: Path, build: Path, names: list[str] | None = None) -> dict[str, dict]:
    """Execute notebooks in order; write them, their pages, ``index.html`` and ``summary.json`` to the folder ``build``.

    A notebook that fails does not keep the others from running. With ``names`` (with or without ``.ipynb``) only these are run,
    and pages and entries of the others are kept. Returns what ``summary.json`` holds: ``{"<name>": {"seconds": ..., "<headline>":
    ..., "error": <only if it failed>}}``. Raises a CourseError for a notebook or a build folder that cannot be used.
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
    kept = build / "summary.json"
    earlier = read_json(kept) if names and kept.exists() else {}
    if earlier is None:
        raise CourseError(f"{kept} is damaged. Delete it and run all notebooks.")
    summary = {name: entry for name, entry in earlier.items() if name in found and (build / f"{name}.ipynb").is_file()}
    for position, (name, notebook) in enumerate(read.items(), start=1):
        label = f"[{position}/{len(wanted)}] {name:<{max(map(len, wanted))}}"
        summary[name] = _execute_one(notebook, notebooks, label)
        write_file(build / f"{name}.ipynb", notebook_text(notebook))
        write_json(kept, dict(sorted(summary.items())))
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
        print(f"{name:<24}{state:>12}  {' · '.join(map(' '.join, in_words(entry).items()))}".rstrip())
    print(f"\nRead the course: {options.build.resolve() / 'index.html'}")
    return 1 if any("error" in entry for entry in summary.values()) else 0


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    sys.exit(main())
