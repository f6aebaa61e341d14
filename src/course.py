"""Run every notebook and leave pages to read: ``python -m src.course``, which is what ``make course`` calls.

For each notebook the build folder gets the executed ``.ipynb`` and an ``.html`` page that stands alone, and for all of them
``index.html`` and ``summary.json``. A notebook names its headline figures itself, by :func:`headline`.
"""

import argparse
import asyncio
import html
import json
import math
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from src.errors import CourseError

HEADLINE_MIME = "application/vnd.federated-medical-imaging.headline+json"
_PLAIN_TICK_SECONDS = 60  # how often a log without a terminal says that a long cell is still running


class _Headline:
    """The figures of one :func:`headline` call: a table on screen, and data that ``make course`` reads back."""

    def __init__(self, figures: dict[str, float | int | str]):
        self.figures = figures

    def __repr__(self) -> str:
        return "\n".join(f"{_words(name)}: {_figure(value)}" for name, value in self.figures.items())

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict:
        rows = "".join(
            f"<tr><th style='text-align:left'>{html.escape(_words(name))}</th><td>{html.escape(_figure(value))}</td></tr>"
            for name, value in self.figures.items()
        )
        return {HEADLINE_MIME: self.figures, "text/html": f"<table>{rows}</table>", "text/plain": repr(self)}


def headline(**figures: float | int | str) -> None:
    """Show a notebook's headline figures as a table; ``make course`` also puts them on its index page and in ``summary.json``.

    Args:
        **figures: name and value, for example ``global_test_accuracy=0.98``. Values may be NumPy or PyTorch scalars. Several
            calls in one notebook add up; a name given twice keeps the last value.

    Raises:
        CourseError: if nothing is given, or a number is not finite: no headline is better than a wrong one.
    """
    from IPython.display import display

    if not figures:
        raise CourseError("headline() was given no figure; call it as headline(global_test_accuracy=0.98).")
    plain = {name: value.item() if hasattr(value, "item") else value for name, value in figures.items()}
    for name, value in plain.items():
        if not isinstance(value, (int, float, str)):
            raise CourseError(f"headline({name}=...) takes a number or a text, not {type(value).__name__}.")
        if isinstance(value, float) and not math.isfinite(value):
            raise CourseError(f"headline({name}={value}) is not a finite number; look at the cell that computed it.")
    display(_Headline(plain))


def _words(name: str) -> str:
    return name.replace("_", " ")


def _figure(value: float | int | str) -> str:
    if isinstance(value, float):
        return f"{value:.3f}" if abs(value) < 10 else f"{value:,.1f}"
    return str(value)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def _write(path: Path, text: str) -> None:
    """Replace ``path`` as a whole: a reader, or a run that was cut off, never sees half a file."""
    handle, beside = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(beside).chmod(0o644)
        os.replace(beside, path)
    except BaseException:
        Path(beside).unlink(missing_ok=True)
        raise


class _Progress:
    """One line for each notebook: rewritten in place on a terminal, at its start and end (and every minute) in a log."""

    def __init__(self, stream=None):
        self.stream = stream or sys.stdout
        self.live = self.stream.isatty()
        self.label, self.done, self.total, self.started, self.said = "", 0, 0, 0.0, 0.0

    def start(self, label: str, total: int) -> None:
        self.label, self.done, self.total = label, 0, total
        self.started = self.said = time.monotonic()
        self.show(force=True)

    def show(self, force: bool = False) -> None:
        now = time.monotonic()
        line = f"{self.label}  cell {self.done}/{self.total}  {_duration(now - self.started)}"
        if self.live:
            print(f"\r\033[K{line}", end="", file=self.stream, flush=True)
        elif force or now - self.said >= _PLAIN_TICK_SECONDS:
            self.said = now
            print(line, file=self.stream, flush=True)

    def finish(self, outcome: str) -> None:
        print(f"{chr(13)}\033[K" if self.live else "", end="", file=self.stream)
        print(f"{self.label}  {outcome}", file=self.stream, flush=True)

    async def tick(self) -> None:
        while True:
            await asyncio.sleep(1)
            self.show()


def _client_class():
    """The notebook client: its kernel is this very Python, and Ctrl-C stops it together with all that it started."""
    from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
    from nbclient import NotebookClient

    class ThisPython(KernelSpecManager):
        """Whatever kernel a notebook names and whichever are installed: the environment of the course runs it."""

        def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
            argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
            return KernelSpec(argv=argv, display_name="Course", language="python")

    class Client(NotebookClient):
        def create_kernel_manager(self):
            manager = super().create_kernel_manager()
            manager.kernel_spec_manager = ThisPython(parent=manager)
            return manager

        async def async_start_new_kernel(self, **kwargs):
            # nbclient has just taken SIGINT and SIGTERM to stop its kernel; the whole run shall stop.
            task, loop = asyncio.current_task(), asyncio.get_running_loop()
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, task.cancel)
            await super().async_start_new_kernel(**kwargs)
            self.process_group = getattr(self.km.provisioner, "pgid", None)

        async def _async_cleanup_kernel(self):
            await super()._async_cleanup_kernel()
            if group := getattr(self, "process_group", None):
                self.process_group = None
                await _end_group(group)

    return Client


async def _end_group(group: int) -> None:
    """End what a kernel left running in its own process group, TensorBoard for one: first asked to, then made to."""
    for number, patience in ((signal.SIGTERM, 20), (signal.SIGKILL, 1)):
        for attempt in range(patience):
            try:
                os.killpg(group, number if attempt == 0 else 0)
            except (ProcessLookupError, PermissionError):  # nothing left; macOS says EPERM for a group of zombies
                return
            await asyncio.sleep(0.1)


def _headlines(notebook) -> dict:
    """All headline figures in the outputs of an executed notebook."""
    figures = {}
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            figures.update(output.get("data", {}).get(HEADLINE_MIME, {}))
    return figures


async def _execute(path: Path, label: str, progress: _Progress) -> tuple[object, dict]:
    """Run one notebook in a fresh kernel, in its own folder.

    Returns:
        The notebook with the outputs of all cells that ran, and its entry for ``summary.json``: ``seconds``, the headline
        figures and, if it failed, ``error``.
    """
    import nbformat
    from nbclient.exceptions import CellExecutionError, DeadKernelError

    notebook = nbformat.read(path, as_version=4)
    code_cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for cell in code_cells:
        cell.outputs, cell.execution_count = [], None

    def cell_done(cell, cell_index, **_):
        progress.done += cell.cell_type == "code"
        progress.show()

    client = _client_class()(
        notebook,
        timeout=None,
        startup_timeout=180,
        resources={"metadata": {"path": str(path.parent)}},
        on_cell_executed=cell_done,
    )
    progress.start(label, len(code_cells))
    started, error = time.monotonic(), None
    ticking = asyncio.create_task(progress.tick())
    try:
        await client.async_execute()
    except CellExecutionError as failure:
        error = re.sub(r"\x1b\[[0-9;]*m", "", str(failure)).strip()
    except DeadKernelError:
        error = f"The kernel died in code cell {progress.done + 1} of {len(code_cells)}: often a lack of memory."
    finally:
        ticking.cancel()
    entry = {"seconds": round(time.monotonic() - started, 1), **_headlines(notebook)}
    if error:
        entry["error"] = error.splitlines()[-1]
        progress.finish(f"FAILED in code cell {progress.done + 1} of {len(code_cells)}\n{error}\n")
    else:
        progress.finish(f"{len(code_cells)} cells  {_duration(entry['seconds'])}")
    return notebook, entry


_PAGE_STYLE = """<style>
body.jp-Notebook { max-width: 68rem; margin: 0 auto; padding: 1.5rem; }
.jp-RenderedHTMLCommon img { max-width: 100%; height: auto; }
</style>
"""


def _page(notebook, path: Path) -> str:
    """The notebook as one HTML page with all its pictures inside."""
    from nbconvert import HTMLExporter
    from nbconvert.preprocessors import Preprocessor

    class DropLiveFrames(Preprocessor):
        """TensorBoard's frame shows a server that ended with the notebook: say so where it was."""

        def preprocess_cell(self, cell, resources, index):
            for output in cell.get("outputs", ()):
                if "tensorboard-frame" in output.get("data", {}).get("text/html", ""):
                    note = "<em>TensorBoard is shown here while the notebook runs.</em>"
                    output["data"] = {"text/html": note, "text/plain": "TensorBoard is shown here."}
            return cell, resources

    exporter = HTMLExporter(template_name="lab", embed_images=True)
    exporter.register_preprocessor(DropLiveFrames(), enabled=True)
    resources = {"metadata": {"path": str(path.parent), "name": path.stem}}
    page, _ = exporter.from_notebook_node(notebook, resources=resources)
    return page.replace("</head>", _PAGE_STYLE + "</head>", 1)


def _title(notebook, default: str) -> str:
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and (found := re.search(r"^# (.+)$", cell.source, re.MULTILINE)):
            return found[1].strip()
    return default


def _thumbnail(notebook) -> str | None:
    """The picture on the card, as base64 PNG: of the cell tagged ``thumbnail``, else the last one that the notebook drew."""
    pictures = [
        ("thumbnail" in cell.metadata.get("tags", ()), output["data"]["image/png"])
        for cell in notebook.cells
        for output in cell.get("outputs", ())
        if "image/png" in output.get("data", {})
    ]
    tagged = [picture for is_tagged, picture in pictures if is_tagged]
    return (tagged or [picture for _, picture in pictures] or [None])[-1]


_INDEX = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Federated learning for medical images</title>
<style>
:root {{ color-scheme: light dark; --line: #d5dbe1; --soft: #5b6770; --page: #f6f8f9; --card: #fff; --ink: #18222b; --link: #0b6ea8; }}
@media (prefers-color-scheme: dark) {{
  :root {{ --line: #34404a; --soft: #a4b0ba; --page: #12181d; --card: #1b232a; --ink: #e8edf1; --link: #6cbcf0; }}
}}
body {{ margin: 0 auto; max-width: 70rem; padding: 2.5rem 1.5rem; background: var(--page); color: var(--ink);
       font: 1rem/1.5 system-ui, sans-serif; }}
h1 {{ margin: 0 0 .25rem; font-size: 1.9rem; line-height: 1.2; }}
p.lead {{ margin: 0 0 2rem; color: var(--soft); }}
main {{ display: grid; gap: 1.5rem; grid-template-columns: repeat(auto-fill, minmax(19rem, 1fr)); }}
article {{ display: flex; flex-direction: column; overflow: hidden; border: 1px solid var(--line); border-radius: .6rem;
          background: var(--card); }}
article > a.picture {{ display: block; height: 11rem; background: #fff; border-bottom: 1px solid var(--line); }}
article img {{ width: 100%; height: 100%; object-fit: contain; }}
article div {{ padding: 1rem 1.2rem 1.2rem; }}
h2 {{ margin: 0 0 .3rem; font-size: 1.15rem; line-height: 1.3; }}
a {{ color: var(--link); text-decoration: none; }}
a:hover {{ text-decoration: underline; }}
table {{ width: 100%; margin: .6rem 0; border-collapse: collapse; font-size: .92rem; }}
th {{ padding: .15rem 0; text-align: left; font-weight: normal; color: var(--soft); }}
td {{ text-align: right; font-variant-numeric: tabular-nums; font-weight: 600; }}
.failed {{ color: #c0392b; font-weight: 600; overflow-wrap: anywhere; }}
</style>
</head>
<body>
<h1>Federated learning for medical images</h1>
<p class="lead">{lead}</p>
<main>
{cards}
</main>
</body>
</html>
"""


def _card(name: str, notebook, entry: dict) -> str:
    figures = {key: value for key, value in entry.items() if key not in ("seconds", "error")}
    rows = {"run time": _duration(entry["seconds"])} | {_words(key): _figure(value) for key, value in figures.items()}
    table = "".join(f"<tr><th>{html.escape(key)}</th><td>{html.escape(value)}</td></tr>" for key, value in rows.items())
    picture, page = _thumbnail(notebook), html.escape(name)
    image = f'<img src="data:image/png;base64,{"".join(picture.split())}" alt="">' if picture else ""
    failed = f'<p class="failed">Failed: {html.escape(entry["error"])}</p>' if "error" in entry else ""
    return (
        f'<article><a class="picture" href="{page}.html">{image}</a><div>'
        f'<h2><a href="{page}.html">{html.escape(_title(notebook, name))}</a></h2>{failed}<table>{table}</table>'
        f'<a href="{page}.html">Read</a> · <a href="{page}.ipynb">Notebook</a></div></article>'
    )


def _index(build: Path, summary: dict) -> str:
    import nbformat

    cards = [
        _card(name, nbformat.read(build / f"{name}.ipynb", as_version=4), summary[name]) for name in sorted(summary)
    ]
    seconds = sum(entry["seconds"] for entry in summary.values())
    when = time.strftime("%Y-%m-%d %H:%M")
    lead = f"{len(summary)} notebooks, run in {_duration(seconds)}, finished {when}. Every number below comes from this run."
    return _INDEX.format(lead=lead, cards="\n".join(cards))


def _table(summary: dict) -> str:
    """The closing table: notebook, time, headline figures."""
    width = max(len(name) for name in summary)
    lines = []
    for name in sorted(summary):
        entry = summary[name]
        figures = [f"{_words(key)} {_figure(value)}" for key, value in entry.items() if key not in ("seconds", "error")]
        state = "FAILED" if "error" in entry else _duration(entry["seconds"])
        lines.append(f"{name:<{width}}  {state:>12}  {' · '.join(figures)}".rstrip())
    return "\n".join(lines)


async def _run_all(paths: list[Path], build: Path, summary: dict) -> None:
    import nbformat

    progress = _Progress()
    width = max(len(path.stem) for path in paths)
    for position, path in enumerate(paths, start=1):
        label = f"[{position}/{len(paths)}] {path.stem:<{width}}"
        notebook, summary[path.stem] = await _execute(path, label, progress)
        _write(build / f"{path.stem}.ipynb", nbformat.writes(notebook) + "\n")
        _write(build / f"{path.stem}.html", _page(notebook, path))
        # After each notebook, so that an index of what is done can be read while the rest runs.
        _write(build / "summary.json", json.dumps(summary, indent=2) + "\n")
        _write(build / "index.html", _index(build, summary))


def run_course(
    notebooks: Path, build: Path, names: list[str] | None = None, say: Callable[[str], None] = print
) -> dict[str, dict]:
    """Execute notebooks in order and write their pages, ``index.html`` and ``summary.json`` to the build folder.

    A notebook that fails does not keep the others from running; its page shows the cells that ran and the error.

    Args:
        notebooks: folder of the ``.ipynb`` files.
        build: folder to write to, made if needed. Each file in it is replaced as a whole.
        names: run only these (file name with or without ``.ipynb``); the entries of the others are kept as they were.
        say: where the closing lines go.

    Returns:
        What ``summary.json`` holds: ``{"<name>": {"seconds": ..., "<headline>": ..., "error": <only if it failed>}}``.

    Raises:
        CourseError: if there is no notebook, or none of a given name, or the build folder cannot be written to.
    """
    notebooks, build = Path(notebooks).resolve(), Path(build).resolve()
    found = {path.stem: path for path in sorted(notebooks.glob("*.ipynb"))}
    wanted = [name.removesuffix(".ipynb") for name in names or found]
    if not found:
        raise CourseError(f"There is no notebook in {notebooks}.")
    if missing := [name for name in wanted if name not in found]:
        raise CourseError(f"There is no notebook {missing[0]!r} in {notebooks}; there are: {', '.join(found)}.")
    summary = {}
    try:
        build.mkdir(parents=True, exist_ok=True)
        if names and (build / "summary.json").is_file():
            before = json.loads((build / "summary.json").read_text(encoding="utf-8"))
            summary = {name: entry for name, entry in before.items() if name in found}
        asyncio.run(_run_all([found[name] for name in wanted], build, summary))
    except OSError as error:
        raise CourseError(f"Cannot write to {error.filename or build}: {error.strerror}.") from error
    say(f"\n{_table(summary)}\n\nRead the course: {build / 'index.html'}")
    return summary


def main(arguments: list[str] | None = None) -> int:
    """Command line of :func:`run_course`. Returns 0, 1 if a notebook failed, 2 for a bad call, 130 if interrupted."""
    parser = argparse.ArgumentParser(
        prog="python -m src.course", description="Run the notebooks and build their pages."
    )
    parser.add_argument("names", nargs="*", help="notebooks to run, by name; default: all, in order")
    parser.add_argument("--notebooks", type=Path, default=Path("notebooks"), help="folder of the notebooks")
    parser.add_argument("--build", type=Path, default=Path("build/course"), help="folder for the pages")
    options = parser.parse_args(arguments)
    try:
        summary = run_course(options.notebooks, options.build, options.names)
    except CourseError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("\nInterrupted: the notebook that was running was stopped; the pages of those before it are complete.")
        return 130
    return 1 if any("error" in entry for entry in summary.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
