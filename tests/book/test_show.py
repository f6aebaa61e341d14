"""What notebooks show as code is the code that runs, and a slider holds every picture."""

import html
import re
import warnings

import matplotlib
import matplotlib.pyplot as plt
import numpy as np

from book import figures, show
from src.common.datalists import pooled


def example(first: int):
    """A docstring
    of two lines."""
    second = first + 1
    return second


def other(first: int):
    second = first + 2
    return second


class Undocumented:
    value = 3


def text_of(page) -> str:
    return html.unescape(re.sub(r"<[^>]+>", "", page.data))


def test_the_source_is_complete_but_for_the_docstring():
    shown = text_of(show.source(example, pooled, Undocumented))
    assert "second = first + 1" in shown and "A docstring" not in shown and "of two lines" not in shown
    assert "def pooled(" in shown and "class Undocumented:\n    value = 3" in shown


def test_both_columns_are_there_and_only_what_differs_is_marked():
    page = show.side_by_side(example, other, "alone", "in a federation").data
    marked = "".join(re.findall(r'<span class="diff_(?:add|sub|chg)">(.*?)</span>', page))
    assert "1" in marked and "2" in marked and "return" not in marked
    assert page.count("return&nbsp;second") == 2
    assert "alone" in page and "in a federation" in page


def test_scripts_are_shown_as_functions_are(tmp_path):
    for name, number in (("a.py", 1), ("b.py", 2)):
        (tmp_path / name).write_text(f'"""What it is."""\n\nimport os\n\nvalue = {number}\n')
    assert text_of(show.source(tmp_path / "a.py")).strip() == "import os\n\nvalue = 1"
    page = show.side_by_side(tmp_path / "a.py", tmp_path / "b.py", "one", "other").data
    assert page.count("import&nbsp;os") == 2 and "What&nbsp;it" not in page


def test_the_slider_holds_every_slice_and_leaves_no_figure_open():
    matplotlib.use("agg")
    label = np.ones((16, 16, 25))
    label[:8] = 0
    image = np.random.default_rng(0).random((16, 16, 25))
    case = figures.upright({"image": image, "label": label, "affine": np.diag([1, 1, 3, 1]), "caption": "c"})
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns of more than twenty open figures
        drawn = (figures.case_grid([{**case, "z": z}], columns=1) for z in range(image.shape[2]))
        page = show.slice_slider(drawn, start=3).data
    assert page.count("data:image/jpeg;base64,") == 26  # all, and once more the one that is shown at first
    assert 'value="3"' in page and 'max="24"' in page
    assert plt.get_fignums() == []
