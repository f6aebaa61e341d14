"""What a notebook shows as code: the source of functions, or two of them side by side; and TensorBoard's page."""

import ast
import difflib
import inspect
import os
import textwrap
from collections.abc import Callable
from pathlib import Path

from IPython.display import HTML, Code

_COLUMNS = 60  # two of this many characters fit on a page


def source(*functions: Callable | Path) -> HTML:
    """The source of functions, classes or scripts, as the installed course runs it, without docstrings."""
    code = Code("\n\n\n".join("\n".join(_without_docstring(function)) for function in functions), language="python")
    # The class that IPython's colours are for: classic Jupyter gives it to an output, JupyterLab and the pages do not.
    return HTML(f'<div class="output_html">{code._repr_html_()}</div>')


def side_by_side(left: Callable | Path, right: Callable | Path, left_title: str, right_title: str) -> HTML:
    """Two functions, or scripts, without docstrings, each below its title: red is only left, green only right, yellow changed."""
    lines = _without_docstring(left), _without_docstring(right)
    table = difflib.HtmlDiff(tabsize=4, wrapcolumn=_COLUMNS).make_table(*lines, left_title, right_title)
    style = Path(__file__).with_name("_static").joinpath("diff.css").read_text("utf-8")
    return HTML(f'<style>{style}</style><div class="code-diff">{table}</div>')


def tensorboard_through_hub() -> None:
    """On a JupyterHub, let ``%tensorboard`` show its page through the hub: a browser does not reach the ports of the hub's machine.

    See https://jupyter-server-proxy.readthedocs.io/en/latest/arbitrary-ports-hosts.html.
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
