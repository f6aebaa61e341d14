"""What a notebook shows beside figures: the source of a function, two of them side by side, pictures with a slider."""

import ast
import base64
import difflib
import inspect
import io
import json
import os
import textwrap
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path

import matplotlib.pyplot as plt
from IPython.display import HTML
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

_COLUMNS = 60  # two of this many characters fit on a page
_FONT = "font: 12px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace"
_PRE_STYLE = f"{_FONT}; margin: 0; padding: .7rem .9rem; background: #f7f9fb; color: #1f2933; overflow-x: auto"
# Notebook and book have styles of their own for tables, which these rules must win over.
_DIFF_STYLE = f"""<style>
.code-diff {{ overflow-x: auto; background: #f7f9fb; padding: .4rem; }}
.code-diff table {{ table-layout: auto !important; border-collapse: collapse; {_FONT}; font-size: 11px; }}
.code-diff :is(table, colgroup, thead, tbody, tr, th, td) {{ border: 0 !important; background: none; color: #1f2933; }}
.code-diff th {{ font: 600 13px system-ui, sans-serif; text-align: left !important; padding: .3rem .5rem; }}
.code-diff td {{ text-align: left !important; padding: 0 .5rem 0 .2rem !important; white-space: nowrap; }}
.code-diff .diff_next {{ display: none; }}
.code-diff td.diff_header {{ color: #9aa5b1; text-align: right !important; vertical-align: top; user-select: none; }}
.diff_add {{ background: #cdebd6; }} .diff_sub {{ background: #f6d5d0; }} .diff_chg {{ background: #fbeebc; }}
</style>"""


def source(*functions: Callable | Path) -> HTML:
    """The source of functions, classes or scripts, as the installed course runs it, without docstrings."""
    text = "\n\n\n".join("\n".join(_without_docstring(function)) for function in functions)
    return HTML(highlight(text, PythonLexer(), HtmlFormatter(noclasses=True, nobackground=True, prestyles=_PRE_STYLE)))


def side_by_side(left: Callable | Path, right: Callable | Path, left_title: str, right_title: str) -> HTML:
    """Two functions, or scripts, without docstrings, each below its title: red is only left, green only right, yellow changed."""
    lines = _without_docstring(left), _without_docstring(right)
    table = difflib.HtmlDiff(tabsize=4, wrapcolumn=_COLUMNS).make_table(*lines, left_title, right_title)
    return HTML(f'{_DIFF_STYLE}<div class="code-diff">{table}</div>')


def slice_slider(figures: Iterable[plt.Figure], start: int, label: str = "slice") -> HTML:
    """Figures of one size, one at a time, above a slider that counts ``label``; without JavaScript ``start`` alone.

    Each figure is closed before the next one is asked for, so that a generator holds one in memory.
    """
    pictures = []
    for figure in figures:
        stream = io.BytesIO()
        figure.savefig(stream, format="jpg", dpi=140)
        plt.close(figure)
        pictures.append("data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode())
    name = f"slider-{uuid.uuid4().hex}"
    return HTML(f"""<div id="{name}"><img src="{pictures[start]}" alt="{label} {start}"><br>
<input type="range" min="0" max="{len(pictures) - 1}" value="{start}" style="width: 22rem; max-width: 90%">
<span>{label} {start}</span>
<script>(() => {{
  const box = document.getElementById("{name}"), pictures = {json.dumps(pictures)};
  box.querySelector("input").oninput = event => {{
    box.querySelector("img").src = pictures[event.target.value];
    box.querySelector("span").textContent = "{label} " + event.target.value;
  }};
}})();</script></div>""")


def tensorboard_through_hub() -> None:
    """On a JupyterHub, let ``%tensorboard`` show its page through the hub: a browser does not reach the ports of the hub's machine.

    A ``TENSORBOARD_PROXY_URL`` that is set already stays. https://jupyter-server-proxy.readthedocs.io/en/latest/arbitrary-ports-hosts.html
    """
    prefix = os.environ.get("JUPYTERHUB_SERVICE_PREFIX")
    if prefix and "TENSORBOARD_PROXY_URL" not in os.environ:
        os.environ["TENSORBOARD_PROXY_URL"] = f"{prefix}proxy/%PORT%/"
        print(f"JupyterHub: TensorBoard is shown at {prefix}proxy/…, for which the hub needs jupyter-server-proxy.")


def _without_docstring(code: Callable | Path) -> list[str]:
    script = isinstance(code, Path)
    text = code.read_text(encoding="utf-8") if script else textwrap.dedent(inspect.getsource(code))
    lines, definition = text.splitlines(), ast.parse(text) if script else ast.parse(text).body[0]
    if ast.get_docstring(definition):
        docstring = definition.body[0]
        del lines[docstring.lineno - 1 : docstring.end_lineno]
    return lines[1:] if script else lines
