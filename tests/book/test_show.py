"""What notebooks show: the code that runs, and the headlines of a notebook."""

import html
import math
import re

import numpy as np
import pytest
import torch
from nbformat.v4 import new_code_cell, new_notebook, new_output

from book import headline as module
from book import show
from book.headline import headline, headlines
from data_scripts.together import pooled
from tests.tests_support import course_error, rows


def example(first: int):
    """A docstring
    of two lines."""
    second = first + 1
    return second


def other(first: int):
    second = first + 2
    return second


def text_of(page) -> str:
    return html.unescape(re.sub(r"<style>.*?</style>|<[^>]+>", "", page.data, flags=re.DOTALL))


def test_the_source_is_complete_but_for_the_docstring_and_in_colours():
    page = show.source(example, pooled, other)
    shown = text_of(page)
    assert "second = first + 1" in shown and "A docstring" not in shown and "of two lines" not in shown
    assert "def pooled(" in shown and "def other(first: int):\n    second = first + 2" in shown
    assert re.match(r'<div class="output_html">.*<span class="k">def<', page.data, re.DOTALL)


def test_both_columns_are_there_and_only_what_differs_is_marked(tmp_path):
    page = show.side_by_side(example, other, "alone", "in a federation").data
    marked = "".join(re.findall(r'<span class="diff_(?:add|sub|chg)">(.*?)</span>', page))
    assert "1" in marked and "2" in marked and "return" not in marked
    assert page.count("return&nbsp;second") == 2 and "alone" in page and "in a federation" in page
    for name, number in (("a.py", 1), ("b.py", 2)):  # scripts, too
        (tmp_path / name).write_text(f'"""What it is."""\n\nimport os\n\nvalue = {number}\n')
    assert text_of(show.source(tmp_path / "a.py")).strip() == "import os\n\nvalue = 1"
    page = show.side_by_side(tmp_path / "a.py", tmp_path / "b.py", "one", "other").data
    assert page.count("import&nbsp;os") == 2 and "What&nbsp;it" not in page


@pytest.fixture
def shown(monkeypatch):
    """What a cell has displayed: outputs of a notebook."""
    outputs = []
    show = lambda data, raw, **more: outputs.append(new_output("display_data", data, **more))  # noqa: E731
    monkeypatch.setattr(module, "display", show)
    return outputs


def test_headline_is_a_table_and_plain_data(shown):
    headline(acc=torch.tensor(0.5), count=np.int64(3000), dice=np.float32(0.25), best_round="a < b", small=2e-5)
    table = shown[0].data["text/html"]
    assert re.findall("<td>(.*?)</td>", table) == ["0.500", "3,000", "0.250", "a &lt; b", "2.0e-05"]
    assert "best round" in table
    headline(more=1)
    found = headlines(new_notebook(cells=[new_code_cell("", outputs=shown)]))
    assert found == {"acc": 0.5, "count": 3000, "dice": 0.25, "best_round": "a < b", "small": 2e-5, "more": 1}


@rows(
    ("nothing", {}, "no value"),
    ("nan", {"acc": math.nan}, r"headline\(acc=nan\) is not a finite number"),
    ("tensor of infinity", {"acc": torch.tensor(math.inf)}, "not a finite number"),
    ("several numbers", {"acc": np.array([1.0, 2.0])}, "one number or a text, not ndarray"),
    ("none", {"acc": None}, "one number or a text, not NoneType"),
    ("taken", {"seconds": 3}, r"headline\(seconds=...\).*taken"),
    ("taken, too", {"error": "x"}, "taken"),
)
def test_headline_refuses_what_is_none(values, message, shown):
    course_error(message, headline, **values)
    assert shown == []
