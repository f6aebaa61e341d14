"""The headline figures of a notebook: a table for its reader, and numbers that ``make course`` finds again."""

import html
import math

from IPython.display import HTML, display

from src.common.errors import CourseError

# One hidden output a figure, as MyST-NB's `glue` makes it; to call that, every reader would have to install Sphinx.
PREFIX = "application/papermill.record/"
OWN_KEYS = ("seconds", "error")  # what summary.json says of each notebook beside its figures


def headline(**figures: float | int | str) -> None:
    """Show a notebook's headline figures; ``make course`` puts them on its front page and into ``summary.json``.

    NumPy and PyTorch scalars will do. Several calls in one notebook add up.

    Raises:
        CourseError: for no figure, a taken name, or what is neither text nor a finite number.
    """
    if not figures:
        raise CourseError("headline() was given no figure; call it as headline(global_test_accuracy=0.98).")
    plain = {name: _plain(name, value) for name, value in figures.items()}
    rows = (
        f"<tr><th style='text-align:left'>{words(name)}</th><td>{html.escape(figure_text(value))}</td></tr>"
        for name, value in plain.items()
    )
    display(HTML(f"<table>{''.join(rows)}</table>"))
    for name, value in plain.items():
        scrap = {"scrapbook": {"name": name, "mime_prefix": PREFIX}}
        display({f"{PREFIX}text/plain": repr(value)}, metadata=scrap, raw=True)


def _plain(name: str, value: object) -> float | int | str:
    if name in OWN_KEYS:
        raise CourseError(f"headline({name}=...): that name is taken by the run itself; choose another.")
    if getattr(value, "shape", None) == ():  # a NumPy or PyTorch scalar
        value = value.item()
    if not isinstance(value, (int, float, str)):
        raise CourseError(f"headline({name}=...) takes one number or a text, not {type(value).__name__}.")
    if isinstance(value, float) and not math.isfinite(value):
        raise CourseError(f"headline({name}={value}) is not a finite number; look at the cell that computed it.")
    return value


def words(name: str) -> str:
    """The name of a figure as a reader sees it."""
    return name.replace("_", " ")


def figure_text(value: float | int | str) -> str:
    """A figure as a reader sees it: ``0.988``, ``1,200``, ``2.0e-05``."""
    if isinstance(value, (bool, str)):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if value and abs(value) < 0.001:
        return f"{value:.1e}"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:,.1f}"
