"""What notebooks show as code is the code that runs."""

import html
import re

from book import show
from data_scripts.together import pooled


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
    assert page.count("return&nbsp;second") == 2
    assert "alone" in page and "in a federation" in page
    # Scripts, too.
    for name, number in (("a.py", 1), ("b.py", 2)):
        (tmp_path / name).write_text(f'"""What it is."""\n\nimport os\n\nvalue = {number}\n')
    assert text_of(show.source(tmp_path / "a.py")).strip() == "import os\n\nvalue = 1"
    page = show.side_by_side(tmp_path / "a.py", tmp_path / "b.py", "one", "other").data
    assert page.count("import&nbsp;os") == 2 and "What&nbsp;it" not in page
