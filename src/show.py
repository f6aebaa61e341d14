"""What a notebook shows beside figures: the source of a function, two of them side by side, pictures with a slider."""

import ast
import base64
import difflib
import inspect
import io
import json
import textwrap
import uuid
from collections.abc import Callable, Iterable

import matplotlib.pyplot as plt
from IPython.display import HTML
from matplotlib.figure import Figure
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

_FONT = "font: 12px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace"
_PRE_STYLE = f"{_FONT}; margin: 0; padding: .7rem .9rem; background: #f7f9fb; color: #1f2933; overflow-x: auto"
_DIFF_STYLE = f"""<style>
.code-diff {{ overflow-x: auto; background: #f7f9fb; padding: .4rem; }}
.code-diff table {{ table-layout: auto !important; border-collapse: collapse; border: 0 !important; {_FONT}; font-size: 11px; }}
.code-diff tr, .code-diff td, .code-diff th, .code-diff colgroup, .code-diff thead {{ border: 0 !important; background: none; }}
.code-diff th {{ font: 600 13px system-ui, sans-serif; text-align: left !important; padding: .3rem .5rem; color: #1f2933; }}
.code-diff td {{ text-align: left !important; padding: 0 .5rem 0 .2rem !important; white-space: nowrap; color: #1f2933;
  vertical-align: top; }}
.code-diff td.diff_next, .code-diff th.diff_next {{ display: none; }}
.code-diff td.diff_header {{ color: #9aa5b1; text-align: right !important; user-select: none; }}
.code-diff .diff_add {{ background: #cdebd6; }}
.code-diff .diff_sub {{ background: #f6d5d0; }}
.code-diff .diff_chg {{ background: #fbeebc; }}
</style>"""
_DIFF_COLUMNS = 60  # two columns of this many characters fit on a page


def source(*functions: Callable) -> HTML:
    """The source of one or several functions or classes, as the installed course runs it, without docstrings."""
    text = "\n\n\n".join("\n".join(_without_docstring(function)) for function in functions)
    return HTML(highlight(text, PythonLexer(), HtmlFormatter(noclasses=True, nobackground=True, prestyles=_PRE_STYLE)))


def side_by_side(left: Callable, right: Callable, left_title: str, right_title: str) -> HTML:
    """Two functions beside each other: red only left, green only right, yellow changed. Docstrings are left out.

    Args:
        left: a function.
        right: a function.
        left_title: heading of the left column.
        right_title: heading of the right column.
    """
    table = difflib.HtmlDiff(tabsize=4, wrapcolumn=_DIFF_COLUMNS).make_table(
        _without_docstring(left), _without_docstring(right), left_title, right_title
    )
    return HTML(f'{_DIFF_STYLE}<div class="code-diff">{table}</div>')


def slice_slider(figures: Iterable[Figure], start: int, label: str = "slice") -> HTML:
    """One picture at a time, with a slider below; a page without JavaScript shows the picture ``start`` alone.

    Args:
        figures: matplotlib figures of one size, in order. Each is closed before the next one is asked for.
        start: number of the first one to show.
        label: what the slider counts.
    """
    pictures = []
    for figure in figures:
        stream = io.BytesIO()
        figure.savefig(stream, format="png", dpi=90)
        plt.close(figure)
        pictures.append("data:image/png;base64," + base64.b64encode(stream.getvalue()).decode())
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


def _without_docstring(function: Callable) -> list[str]:
    text = textwrap.dedent(inspect.getsource(function))
    lines = text.splitlines()
    first = ast.parse(text).body[0].body[0]
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
        del lines[first.lineno - 1 : first.end_lineno]
    return lines
