"""Shows code inside a notebook: the real source of a function, or two of them side by side with their differences."""

import ast
import difflib
import inspect
import textwrap
from collections.abc import Callable

from IPython.display import HTML, Code

_DIFF_STYLE = """<style>
.code-diff { overflow-x: auto; }
.code-diff table { border-collapse: collapse; font: 12px/1.45 ui-monospace, Menlo, Consolas, monospace; width: 100%; }
.code-diff th { font: 600 13px system-ui, sans-serif; text-align: left; padding: .3rem .5rem; }
.code-diff td { text-align: left !important; padding: 0 .4rem !important; white-space: nowrap; color: #1f2933;
  background: #fff; }
.code-diff td.diff_next, .code-diff th.diff_next { display: none; }
.code-diff td.diff_header { color: #9aa5b1; text-align: right !important; user-select: none; width: 1.5rem; }
.code-diff .diff_add { background: #cdebd6; } .code-diff .diff_sub { background: #f6d5d0; }
.code-diff .diff_chg { background: #fbeebc; }
</style>"""


def source(*functions: Callable) -> Code:
    """The source of one or several functions or classes, highlighted, as the installed course runs it."""
    return Code("\n\n".join(textwrap.dedent(inspect.getsource(one)).rstrip() for one in functions), language="python")


def side_by_side(left: Callable, right: Callable, left_title: str, right_title: str) -> HTML:
    """Two functions beside each other: red only left, green only right, yellow changed. Docstrings are left out.

    Args:
        left: a function.
        right: a function.
        left_title: heading of the left column.
        right_title: heading of the right column.
    """
    table = difflib.HtmlDiff(tabsize=4).make_table(
        _without_docstring(left), _without_docstring(right), left_title, right_title
    )
    return HTML(f'{_DIFF_STYLE}<div class="code-diff">{table}</div>')


def _without_docstring(function: Callable) -> list[str]:
    text = textwrap.dedent(inspect.getsource(function))
    lines = text.splitlines()
    first = ast.parse(text).body[0].body[0]
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
        del lines[first.lineno - 1 : first.end_lineno]
    return lines
