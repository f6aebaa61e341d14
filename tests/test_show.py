"""What notebooks show as code is the code that runs."""

import re

from src import show, training


def example(first: int):
    """A docstring
    of two lines."""
    second = first + 1
    return second


def other(first: int):
    second = first + 2
    return second


def text_of(html) -> str:
    text = re.sub(r"<[^>]+>", "", re.sub(r"<style>.*?</style>", "", html.data, flags=re.DOTALL))
    return text.replace("&nbsp;", " ").replace("&quot;", '"').replace("&#39;", "'").replace("&#34;", '"')


def test_the_source_is_complete_but_for_the_docstring():
    shown = text_of(show.source(example, training.train_for))
    assert "second = first + 1" in shown and "A docstring" not in shown
    assert "trainer.state.max_epochs = trainer.state.epoch + epochs" in shown


def test_both_columns_are_there_and_only_what_differs_is_marked():
    html = show.side_by_side(example, other, "left", "right").data
    marked = "".join(re.findall(r'<span class="diff_(?:add|sub|chg)">(.*?)</span>', html))
    assert "1" in marked and "2" in marked and "return" not in marked
    assert html.count("return&nbsp;second") == 2
