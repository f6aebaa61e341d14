"""Run every notebook and leave pages to read: ``python -m src.course``, which is what ``make course`` calls.

For each notebook the build folder gets the executed ``.ipynb`` and an ``.html`` page that needs no network and no other
file, and for all of them ``index.html`` and ``summary.json``. A notebook names its headline figures itself, by
:func:`headline`.
"""

import argparse
import asyncio
import base64
import html
import json
import math
import mimetypes
import os
import platform
import re
import shutil
import signal
import sys
import time
import uuid
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from src.errors import CourseError
from src.notebook_tools import read_notebook
from src.paths import data_source, write_text

HEADLINE_MIME = "application/vnd.federated-medical-imaging.headline+json"
_OWN_KEYS = ("seconds", "error")  # what summary.json holds for each notebook beside its headline figures
_PLAIN_TICK_SECONDS = 60  # how often a log without a terminal says that a long cell is still running
_MARK = "COURSE_NOTEBOOK_PROCESS"  # environment variable by which all that a notebook started can be found again


class _Headline:
    """The figures of one :func:`headline` call: a table on screen, and data that ``make course`` reads back."""

    def __init__(self, figures: dict[str, float | int | str]):
        self.figures = figures

    def __repr__(self) -> str:
        return "\n".join(f"{_words(name)}: {_figure(value)}" for name, value in self.figures.items())

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict:
        rows = "".join(
            f"<tr><th style='text-align:left'>{html.escape(_words(name))}</th>"
            f"<td>{html.escape(_figure(value))}</td></tr>"
            for name, value in self.figures.items()
        )
        return {HEADLINE_MIME: self.figures, "text/html": f"<table>{rows}</table>", "text/plain": repr(self)}


def headline(**figures: float | int | str) -> None:
    """Show a notebook's headline figures as a table; ``make course`` puts them on its index page and in its summary.

    Args:
        **figures: name and value, for example ``global_test_accuracy=0.98``. Values may be NumPy or PyTorch scalars.
            Several calls in one notebook add up; a name given twice keeps the last value.

    Raises:
        CourseError: if nothing is given, a name is taken (``seconds``, ``error``), a value is neither number nor text,
            or a number is not finite: no headline is better than a wrong one.
    """
    from IPython.display import display

    if not figures:
        raise CourseError("headline() was given no figure; call it as headline(global_test_accuracy=0.98).")
    plain = {}
    for name, value in figures.items():
        if name in _OWN_KEYS:
            raise CourseError(f"headline({name}=...): that name is taken by the run itself; choose another.")
        if getattr(value, "shape", None) == ():  # a NumPy or PyTorch scalar
            value = value.item()
        if not isinstance(value, (int, float, str)):
            raise CourseError(f"headline({name}=...) takes one number or a text, not {type(value).__name__}.")
        if isinstance(value, float) and not math.isfinite(value):
            raise CourseError(f"headline({name}={value}) is not a finite number; look at the cell that computed it.")
        plain[name] = value
    display(_Headline(plain))


def _words(name: str) -> str:
    return name.replace("_", " ")


def _figure(value: float | int | str) -> str:
    if isinstance(value, (bool, str)):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if value and abs(value) < 0.001:
        return f"{value:.1e}"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:,.1f}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def _figures(entry: dict) -> dict[str, str]:
    """The headline figures of one entry of ``summary.json``, as words and text."""
    return {_words(key): _figure(value) for key, value in entry.items() if key not in _OWN_KEYS}


class _Progress:
    """One line for each notebook: rewritten in place on a terminal; in a log at start, at end and every minute."""

    def __init__(self, stream=None):
        self.stream = stream or sys.stdout
        self.live = self.stream.isatty()
        self.label, self.cell, self.total, self.started, self.said = "", 0, 0, 0.0, 0.0

    def start(self, label: str, total: int) -> None:
        self.label, self.cell, self.total = label, 0, total
        self.started = self.said = time.monotonic()
        self.show(force=True)

    def show(self, force: bool = False) -> None:
        now = time.monotonic()
        line = f"{self.label}  cell {self.cell}/{self.total}  {_duration(now - self.started)}"
        if self.live:
            # A line that wraps cannot be rewritten in place.
            line = line[: shutil.get_terminal_size().columns - 1]
            print(f"\r\033[K{line}", end="", file=self.stream, flush=True)
        elif force or now - self.said >= _PLAIN_TICK_SECONDS:
            self.said = now
            print(line, file=self.stream, flush=True)

    def finish(self, outcome: str) -> None:
        print("\r\033[K" if self.live else "", end="", file=self.stream)
        print(f"{self.label}  {outcome}", file=self.stream, flush=True)

    async def tick(self) -> None:
        while True:
            await asyncio.sleep(1)
            self.show()


def _client_class():
    """The notebook client: its kernel is this very Python, and Ctrl-C stops it together with all that it started."""
    import zmq
    from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
    from nbclient import NotebookClient

    class ThisPython(KernelSpecManager):
        """Whatever kernel a notebook names and whichever are installed: the environment of the course runs it."""

        def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
            # What a cell raises comes back with its reply; the kernel's own log says only that it is being stopped.
            argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}", "--log-level=CRITICAL"]
            encryption = {"supported_encryption": "curve"}
            return KernelSpec(argv=argv, display_name="Course", language="python", metadata=encryption)

    class Client(NotebookClient):
        interrupted = False

        def create_kernel_manager(self):
            manager = super().create_kernel_manager()
            manager.kernel_spec_manager = ThisPython(parent=manager)
            # Newer kernels warn of a connection in plain text; older ones know no other.
            if manager.has_trait("transport_encryption") and zmq.has("curve"):
                manager.transport_encryption = "auto"
            return manager

        async def async_start_new_kernel(self, **kwargs):
            # nbclient has just taken SIGINT and SIGTERM to stop its kernel; the whole run shall stop. Once: a second
            # Ctrl-C would cut short the cleaning up that the first one began.
            task, loop = asyncio.current_task(), asyncio.get_running_loop()

            def stop():
                if not self.interrupted:
                    self.interrupted = True
                    task.cancel()

            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, stop)
            self.mark = uuid.uuid4().hex
            # Notebooks call `tensorboard` and FLARE `python3` by name: only an activated environment has them on PATH.
            path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
            await super().async_start_new_kernel(env={**os.environ, "PATH": path, _MARK: self.mark}, **kwargs)

        async def _async_cleanup_kernel(self):
            try:
                await super()._async_cleanup_kernel()
            finally:
                await _end_processes(self.mark)

    return Client


async def _end_processes(mark: str) -> None:
    """End what a kernel left running, TensorBoard or the sites of a cut-off run: first asked to, then made to.

    A process group would not do: FLARE starts its sites in sessions of their own.
    """
    import psutil

    def left() -> list:
        found = []
        for process in psutil.process_iter():
            try:
                if process.status() != psutil.STATUS_ZOMBIE and process.environ().get(_MARK) == mark:
                    found.append(process)
            except (psutil.Error, OSError):  # it has just ended, or is not ours
                continue
        return found

    for stop, patience in ((psutil.Process.terminate, 20), (psutil.Process.kill, 10)):
        for attempt in range(patience):
            if not (processes := left()):
                return
            for process in processes if attempt == 0 or stop is psutil.Process.kill else ():
                try:
                    stop(process)
                except psutil.NoSuchProcess:
                    continue
            await asyncio.sleep(0.1)


def _headlines(notebook) -> dict:
    """All headline figures in the outputs of an executed notebook."""
    figures = {}
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            figures.update(output.get("data", {}).get(HEADLINE_MIME, {}))
    return figures


async def _execute(notebook, folder: Path, label: str, progress: _Progress) -> dict:
    """Run one notebook in a fresh kernel, in its own folder; its outputs are put in place.

    Returns:
        Its entry for ``summary.json``: ``seconds``, the headline figures and, if it failed, ``error``.
    """
    from nbclient.exceptions import CellExecutionError, DeadKernelError

    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    total = sum(cell.cell_type == "code" and bool(cell.source.strip()) for cell in notebook.cells)

    def cell_starts(cell, cell_index):
        progress.cell += 1
        progress.show()

    client = _client_class()(
        notebook,
        timeout=None,
        startup_timeout=180,
        resources={"metadata": {"path": str(folder)}},
        on_cell_execute=cell_starts,
    )
    progress.start(label, total)
    started, error, detail = time.monotonic(), None, ""
    ticking = asyncio.create_task(progress.tick())
    try:
        await client.async_execute()
    except CellExecutionError as failure:
        error = f"{failure.ename}: {failure.evalue}".strip().splitlines()[0]
        detail = re.sub(r"\x1b\[[0-9;]*m", "", str(failure)).strip()
    except DeadKernelError:
        if client.interrupted:  # nbclient takes any cancelling for the end of the kernel
            raise asyncio.CancelledError from None
        error = "The kernel died: often a lack of memory."
    except RuntimeError as failure:  # nbclient's word for a kernel that does not come up
        if progress.cell:
            raise
        error = f"The kernel did not start: {failure}"
    finally:
        ticking.cancel()
    client.set_widgets_metadata()  # nbclient does so only for a notebook that ran to its end
    entry = {"seconds": round(time.monotonic() - started, 1), **_headlines(notebook)}
    if error:
        entry["error"] = f"code cell {progress.cell} of {total}: {error}"
        progress.finish(f"FAILED in {entry['error']}\n{detail}".rstrip() + "\n")
    else:
        progress.finish(f"{total} cells  {_duration(entry['seconds'])}")
    return entry


_PAGE = """{%- extends 'lab/index.html.j2' -%}
{%- block html_head_js -%}{%- endblock -%}
{%- block html_head_js_mathjax -%}{%- endblock -%}
{%- block html_head_js_mermaidjs -%}{%- endblock -%}
{%- block html_head_css -%}
<style>
body.jp-Notebook { max-width: 64rem; margin: 0 auto; padding: 0 1.5rem 4rem; overflow: visible; background: #fff; }
body.jp-Notebook main { padding-top: 1rem; }
.jp-RenderedHTMLCommon { line-height: 1.6; }
.jp-RenderedHTMLCommon :is(h1, h2, h3) { line-height: 1.25; }
math { font-family: math, "Cambria Math", "STIX Two Math", serif; }
.jp-RenderedHTMLCommon img, .jp-RenderedImage img { max-width: 100%; height: auto; }
.jp-RenderedHTMLCommon math[display=block] { margin: 1rem 0; font-size: 1.15em; }
.jp-InputPrompt, .jp-OutputPrompt { opacity: .55; }
nav.course { display: flex; gap: 1.5rem; align-items: baseline; padding: .8rem .5rem; border-bottom: 1px solid #d5dbe1;
  font: 14px/1.4 system-ui, sans-serif; }
nav.course a { color: #0b6ea8; text-decoration: none; }
nav.course .next { margin-left: auto; }
.course-bar { display: flex; gap: .8rem; align-items: center; margin: .2rem 0; font: 13px/1.4 system-ui, sans-serif; }
.course-bar progress { width: 14rem; height: .8rem; accent-color: #2a6f97; }
@media print { nav.course { display: none; } }
</style>
{%- endblock -%}
{%- block body_header -%}
{{ super() }}{{ resources.course_navigation }}
{%- endblock -%}
"""


def _page(notebook, path: Path, build: Path, names: list[str]) -> str:
    """The notebook as one HTML page with all pictures and formulas inside; links to files lead to where they are.

    Args:
        notebook: the executed notebook.
        path: its source; relative links in it start from there.
        build: folder that the page is for.
        names: all notebooks of the course, in order, whose pages lie beside this one.
    """
    from latex2mathml.converter import convert
    from nbconvert import HTMLExporter
    from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
    from nbconvert.preprocessors import Preprocessor, TagRemovePreprocessor

    def link(found: re.Match) -> str:
        address = urlsplit(html.unescape(found[1]))
        if address.scheme or address.netloc or not address.path:
            return found[0]
        target = (path.parent / unquote(address.path)).resolve()
        if target.parent == path.parent and target.suffix == ".ipynb" and target.stem in names:
            place = f"{quote(target.stem)}.html"
        else:
            place = quote(Path(os.path.relpath(target, build)).as_posix())
        return f'href="{place}{"#" + address.fragment if address.fragment else ""}"'

    def picture(found: re.Match) -> str:
        # nbconvert embeds only what lies in the notebook's own folder; those of the course lie in figs/.
        address = urlsplit(html.unescape(found[1]))
        file = path.parent / unquote(address.path)
        if address.scheme or address.netloc or not file.is_file():
            return found[0]
        kind = mimetypes.guess_type(file.name)[0] or "image/png"
        return f'src="data:{kind};base64,{base64.b64encode(file.read_bytes()).decode("ascii")}"'

    class Renderer(IPythonRenderer):
        """Formulas as MathML, which browsers draw themselves: MathJax would have to come from a server."""

        def formula(self, body: str, display: str) -> str:
            try:
                return convert(body.strip(), display=display)
            except Exception as error:  # latex2mathml has a dozen kinds without a common one of their own
                raise CourseError(f"{path.name}: the formula {body.strip()!r} is not LaTeX: {error}") from error

        def inline_math(self, body: str) -> str:
            return self.formula(body, "inline")

        def block_math(self, body: str) -> str:
            return self.formula(body, "block")

        def latex_environment(self, name: str, body: str) -> str:
            return self.formula(rf"\begin{{{name}}}{body}\end{{{name}}}", "block")

    class Exporter(HTMLExporter):
        def markdown2html(self, context, source):
            renderer = Renderer(
                escape=False,
                attachments=context.get("cell", {}).get("attachments", {}),
                exclude_anchor_links=True,
            )
            cell = MarkdownWithMath(renderer=renderer).render(source)
            return re.sub(r'src="([^"]*)"', picture, re.sub(r'href="([^"]*)"', link, cell))

        markdown2html.jinja_pass_arg = HTMLExporter.markdown2html.jinja_pass_arg

    class Still(Preprocessor):
        """What lives only while the notebook runs: progress bars as they last stood, a word in TensorBoard's place."""

        def preprocess(self, nb, resources):
            state = nb.metadata.pop("widgets", {}).get("application/vnd.jupyter.widget-state+json", {})
            self.widgets = {name: model["state"] for name, model in state.get("state", {}).items()}
            return super().preprocess(nb, resources)

        def preprocess_cell(self, cell, resources, index):
            for output in cell.get("outputs", ()):
                data = output.get("data", {})
                if "tensorboard-frame" in data.get("text/html", ""):
                    note = "<em>TensorBoard is shown here while the notebook runs.</em>"
                    output["data"] = {"text/html": note, "text/plain": "TensorBoard is shown here."}
                elif widget := data.pop("application/vnd.jupyter.widget-view+json", None):
                    data["text/html"] = f'<div class="course-bar">{self.still(widget["model_id"])}</div>'
            return cell, resources

        def still(self, name: str) -> str:
            widget = self.widgets.get(name, {})
            kind = widget.get("_model_name", "")
            if kind == "FloatProgressModel":
                least, most, value = (
                    widget.get(key, default) for key, default in (("min", 0), ("max", 1), ("value", 0))
                )
                return f'<progress max="{most - least}" value="{value - least}"></progress>'
            if kind in ("HTMLModel", "LabelModel"):
                return f"<span>{widget.get('value', '')}</span>"
            children = (child.removeprefix("IPY_MODEL_") for child in widget.get("children", ()))
            return "".join(self.still(child) for child in children)

    exporter = Exporter(raw_template=_PAGE)
    exporter.register_preprocessor(TagRemovePreprocessor(remove_cell_tags={"colab"}), enabled=True)
    exporter.register_preprocessor(Still(), enabled=True)
    notebook = notebook.copy()
    notebook.metadata = {**notebook.metadata, "title": _title(notebook, path.stem)}
    resources = {
        "metadata": {"path": str(path.parent), "name": path.stem},
        "course_navigation": _navigation(path.stem, names),
    }
    page, _ = exporter.from_notebook_node(notebook, resources=resources)
    return page


def _navigation(name: str, names: list[str]) -> str:
    place = names.index(name)
    steps = ['<a href="index.html">Course</a>']
    if place:
        steps.append(f'<a href="{quote(names[place - 1])}.html">← {html.escape(names[place - 1])}</a>')
    if place + 1 < len(names):
        steps.append(f'<a class="next" href="{quote(names[place + 1])}.html">{html.escape(names[place + 1])} →</a>')
    return f'<nav class="course">{"".join(steps)}</nav>'


def _title(notebook, default: str) -> str:
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and (found := re.search(r"^# (.+)$", cell.source, re.MULTILINE)):
            return re.sub(r"[*`]", "", found[1]).strip()
    return default


def _opening(notebook) -> str:
    """The first sentence or two of the notebook's first paragraph, without markup."""
    for cell in notebook.cells:
        if cell.cell_type != "markdown":
            continue
        for paragraph in re.split(r"\n\s*\n", cell.source):
            text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", paragraph)
            text = " ".join(re.sub(r"<[^>]+>|[*`]", "", text).split())
            # Neither a heading, a picture, a table, a list nor a row of badges.
            if len(text) > 40 and re.match(r"[*_`]*\w", paragraph.strip()) and not paragraph.strip()[:2].isdigit():
                text = text.rstrip(":")
                return text if len(text) <= 220 else text[:220].rsplit(" ", 1)[0] + " …"
    return ""


def _thumbnail(notebook) -> str | None:
    """The picture on the card, as base64 PNG: of the cell tagged ``thumbnail``, else the last one that was drawn."""
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
:root { color-scheme: light dark; --line: #d9e0e6; --soft: #566470; --page: #f4f7f9; --card: #fff; --ink: #17212a;
  --link: #0b6390; --accent: #2a6f97; --tint: #e8f1f6; --bad: #b3372a; }
@media (prefers-color-scheme: dark) {
  :root { --line: #2f3b45; --soft: #9fadb8; --page: #11171c; --card: #1a2229; --ink: #e8edf1; --link: #7cc4ee;
    --accent: #4c9cc9; --tint: #22303a; --bad: #ff8f80; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 1rem/1.55 system-ui, "Segoe UI", sans-serif; }
header, main, footer { max-width: 74rem; margin: 0 auto; padding: 0 1.75rem; }
header { padding-top: 3.5rem; }
h1 { margin: 0; font-size: clamp(1.9rem, 4vw, 2.8rem); line-height: 1.12; letter-spacing: -.02em; font-weight: 700; }
header p { margin: .7rem 0 0; max-width: 48rem; color: var(--soft); font-size: 1.12rem; }
a { color: var(--link); text-decoration: none; }
a:hover { text-decoration: underline; }
ol.map { display: flex; flex-wrap: wrap; margin: 2.2rem 0 2.4rem; padding: 0; list-style: none; }
ol.map li { position: relative; flex: 1 1 9rem; min-width: 8.5rem; padding-right: 1.2rem; }
ol.map li::before { content: ""; position: absolute; top: 1.05rem; left: 0; right: 0;
  border-top: 2px solid var(--line); }
ol.map li:last-child::before { display: none; }
ol.map a { position: relative; display: block; color: var(--ink); line-height: 1.3; }
ol.map b { display: grid; place-items: center; width: 2.2rem; height: 2.2rem; margin-bottom: .55rem; border-radius: 50%;
  background: var(--accent); color: #fff; font-weight: 650; }
ol.map .bad b { background: var(--bad); }
ol.map small { display: block; color: var(--soft); font-size: .86rem; }
@media (max-width: 40rem) {
  ol.map { flex-direction: column; gap: 1rem; }
  ol.map li { flex: none; padding: 0 0 0 3.2rem; }
  ol.map li::before { top: 1rem; bottom: -1.2rem; left: 1.05rem; right: auto; border: 0;
    border-left: 2px solid var(--line); }
  ol.map b { position: absolute; left: -3.2rem; }
}
main { display: grid; gap: 1.6rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 26rem), 1fr)); }
article { display: flex; flex-direction: column; overflow: hidden; border: 1px solid var(--line); border-radius: .8rem;
  background: var(--card); box-shadow: 0 1px 3px rgb(0 0 0 / .05); }
.picture { display: grid; place-items: center; height: 15rem; padding: .8rem; background: #fff;
  border-bottom: 1px solid var(--line); color: #9aa5b1; font-size: 3rem; font-weight: 700; }
.picture:hover { text-decoration: none; }
.picture img { width: 100%; height: 100%; min-height: 0; object-fit: contain; }
.text { display: flex; flex: 1; flex-direction: column; padding: 1.2rem 1.4rem 1.3rem; }
h2 { margin: 0; font-size: 1.28rem; line-height: 1.25; }
h2 a { color: var(--ink); }
.text p { margin: .5rem 0 0; color: var(--soft); font-size: .96rem; }
.text p.failed { color: var(--bad); font-weight: 600; overflow-wrap: anywhere; }
dl { display: grid; gap: .6rem; grid-template-columns: repeat(auto-fill, minmax(7.2rem, 1fr)); margin: 1rem 0 0; }
dl div { display: flex; flex-direction: column-reverse; justify-content: flex-end; padding: .55rem .75rem;
  border-radius: .5rem; background: var(--tint); }
dt { color: var(--soft); font-size: .8rem; line-height: 1.25; }
dd { margin: 0; font-size: 1.3rem; font-weight: 650; line-height: 1.3; font-variant-numeric: tabular-nums;
  overflow-wrap: anywhere; }
dd.words { font-size: .95rem; }
.links { display: flex; gap: 1.2rem; margin-top: auto; padding-top: 1.1rem; font-weight: 550; }
.links span { margin-left: auto; color: var(--soft); font-weight: normal; }
footer { padding-top: 2.2rem; padding-bottom: 3rem; color: var(--soft); font-size: .9rem; }
</style>
</head>
<body>
<header>
<h1>Federated learning for medical images</h1>
<p>Hospitals train one model together, and no image leaves its hospital: a hands-on course with NVIDIA FLARE, MONAI and
PyTorch.</p>
<ol class="map">
@MAP@
</ol>
</header>
<main>
@CARDS@
</main>
<footer>@FOOTER@</footer>
</body>
</html>
"""


def _number(name: str, position: int) -> str:
    """The number that a notebook's file name starts with, else its place in the course."""
    return str(int(found[0])) if (found := re.match(r"\d+", name)) else str(position)


def _step(name: str, position: int, notebook, entry: dict) -> str:
    """One stop on the course map."""
    kind = ' class="bad"' if "error" in entry else ""
    when = "failed" if "error" in entry else _duration(entry["seconds"])
    return (
        f'<li{kind}><a href="{quote(name)}.html"><b>{_number(name, position)}</b>'
        f"{html.escape(_short_title(notebook, name))}<small>{when}</small></a></li>"
    )


def _short_title(notebook, name: str) -> str:
    """The title without its leading number, which the map and the picture give already."""
    return re.sub(r"^\d+\s*[.:·|–-]*\s*", "", _title(notebook, name)) or name


def _card(name: str, position: int, notebook, entry: dict) -> str:
    tiles = "".join(
        f"<div><dt>{html.escape(words)}</dt>"
        f"<dd{' class=words' if len(value) > 9 else ''}>{html.escape(value)}</dd></div>"
        for words, value in _figures(entry).items()
    )
    picture, page = _thumbnail(notebook), quote(name)
    image = f'<img src="data:image/png;base64,{"".join(picture.split())}" alt="">' if picture else ""
    failed = f'<p class="failed">Failed in {html.escape(entry["error"])}</p>' if "error" in entry else ""
    opening = _opening(notebook)
    return (
        f'<article><a class="picture" href="{page}.html">{image or _number(name, position)}</a><div class="text">'
        f'<h2><a href="{page}.html">{html.escape(_title(notebook, name))}</a></h2>'
        f"{f'<p>{html.escape(opening)}</p>' if opening else ''}{failed}{f'<dl>{tiles}</dl>' if tiles else ''}"
        f'<div class="links"><a href="{page}.html">Read</a><a href="{page}.ipynb">Executed notebook</a>'
        f"<span>{_duration(entry['seconds'])}</span></div></div></article>"
    )


def _footer(summary: dict) -> str:
    """What the numbers on the page were measured with: without that they are no measurements."""
    data = {
        "generated": "Images: generated drawings, not patients.",
        "real": "Images: the real data sets.",
    }[data_source()]
    versions = []
    for package in ("nvflare", "monai", "torch"):
        try:
            versions.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            continue
    seconds = sum(entry["seconds"] for entry in summary.values())
    notebooks = f"{len(summary)} notebook{'s' * (len(summary) != 1)}"
    return html.escape(
        f"{notebooks}, run in {_duration(seconds)}, finished {time.strftime('%Y-%m-%d %H:%M')}. {data} "
        f"Measured with {os.cpu_count()} processor cores, Python {platform.python_version()}"
        f"{''.join(', ' + version for version in versions)}."
    )


def _index(build: Path, summary: dict) -> str:
    names = sorted(summary)
    rows = [
        (name, position, read_notebook(build / f"{name}.ipynb"), summary[name])
        for position, name in enumerate(names, start=1)
    ]
    return (
        _INDEX.replace("@FOOTER@", _footer(summary))
        .replace("@MAP@", "\n".join(_step(*row) for row in rows))
        .replace("@CARDS@", "\n".join(_card(*row) for row in rows))
    )


def _table(summary: dict) -> str:
    """The closing table: notebook, time, headline figures."""
    width = max(len(name) for name in summary)
    lines = []
    for name in sorted(summary):
        entry = summary[name]
        figures = " · ".join(f"{words} {value}" for words, value in _figures(entry).items())
        state = "FAILED" if "error" in entry else _duration(entry["seconds"])
        lines.append(f"{name:<{width}}  {state:>12}  {figures}".rstrip())
    return "\n".join(lines)


async def _run_all(wanted: dict[str, Path], names: list[str], build: Path, summary: dict) -> None:
    from src.notebook_tools import notebook_text

    progress = _Progress()
    width = max(len(name) for name in wanted)
    notebooks = {name: read_notebook(path) for name, path in wanted.items()}  # all are readable before one is run
    for position, (name, notebook) in enumerate(notebooks.items(), start=1):
        label = f"[{position}/{len(wanted)}] {name:<{width}}"
        summary[name] = await _execute(notebook, wanted[name].parent, label, progress)
        write_text(build / f"{name}.ipynb", notebook_text(notebook))
        write_text(build / f"{name}.html", _page(notebook, wanted[name], build, names))
        # After each notebook, so that an index of what is done can be read while the rest runs.
        write_text(build / "summary.json", json.dumps(summary, indent=2) + "\n")
        write_text(build / "index.html", _index(build, summary))


def _earlier(build: Path, names: list[str]) -> dict:
    """The entries that an earlier run left in the build folder, as far as their notebooks and pages are still there."""
    path = build / "summary.json"
    if not path.is_file():
        return {}
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CourseError(f"{path} is damaged ({error}). Delete it and run all notebooks.") from error
    return {name: entry for name, entry in entries.items() if name in names and (build / f"{name}.ipynb").is_file()}


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
        CourseError: if there is no notebook, none of a given name, or one that is no notebook or has a formula that is
            none; or if the build folder cannot be written to.
    """
    notebooks, build = Path(notebooks).resolve(), Path(build).resolve()
    found = {path.stem: path for path in sorted(notebooks.glob("*.ipynb"))}
    if not found:
        raise CourseError(f"There is no notebook in {notebooks}.")
    wanted = sorted({Path(name).name.removesuffix(".ipynb") for name in names or found})
    if missing := [name for name in wanted if name not in found]:
        raise CourseError(f"There is no notebook {missing[0]!r} in {notebooks}; there are: {', '.join(found)}.")
    try:
        build.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CourseError(f"Cannot make the folder {build}: {error.strerror}. Choose another with --build.") from error
    summary = _earlier(build, list(found)) if names else {}
    asyncio.run(_run_all({name: found[name] for name in wanted}, list(found), build, summary))
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
    return 1 if any("error" in summary[name] for name in summary) else 0


if __name__ == "__main__":
    sys.exit(main())
