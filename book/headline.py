"""The headlines of a notebook: a table for its reader, and values that ``make course`` finds again."""

import html
import math

from IPython.display import display

from src.common.errors import CourseError

Value = float | int | str
KEY = "headlines"  # in the metadata of the output that shows the table
OWN_KEYS = ("seconds", "error")  # what summary.json says of each notebook beside its headlines


def headline(**values: Value) -> None:
    """Show a notebook's headlines; ``make course`` puts them on its front page and into ``summary.json``. Several calls add up.

    Raises a CourseError for no value, a taken name, or what is neither text nor a finite number.
    """
    if not values:
        raise CourseError("headline() was given no value; call it as headline(global_test_accuracy=0.98).")
    plain = {name: _plain(name, value) for name, value in values.items()}
    shown = in_words(plain).items()
    rows = (f"<tr><th style='text-align:left'>{name}</th><td>{html.escape(text)}</td></tr>" for name, text in shown)
    page = {"text/html": f"<table>{''.join(rows)}</table>", "text/plain": "\n".join(map(": ".join, shown))}
    display(page, metadata={KEY: plain}, raw=True)


def _plain(name: str, value: object) -> Value:
    if name in OWN_KEYS:
        raise CourseError(f"headline({name}=...): that name is taken by the run itself; choose another.")
    if getattr(value, "shape", None) == ():  # a NumPy or PyTorch scalar
        value = value.item()
    if not isinstance(value, Value):
        raise CourseError(f"headline({name}=...) takes one number or a text, not {type(value).__name__}.")
    if isinstance(value, float) and not math.isfinite(value):
        raise CourseError(f"headline({name}={value}) is not a finite number; look at the cell that computed it.")
    return value


def headlines(notebook: dict) -> dict[str, Value]:
    """All headlines that an executed notebook of nbformat gave."""
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", ())]
    return {name: value for output in outputs for name, value in output.get("metadata", {}).get(KEY, {}).items()}


def in_words(entry: dict[str, Value]) -> dict[str, str]:
    """The headlines of one notebook as a reader sees them: ``{"test accuracy": "0.988", "images": "1,200"}``."""
    return {name.replace("_", " "): _text(value) for name, value in entry.items() if name not in OWN_KEYS}


def _text(value: Value) -> str:
    if isinstance(value, (bool, str)):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if value and abs(value) < 0.001:
        return f"{value:.1e}"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:,.1f}"
