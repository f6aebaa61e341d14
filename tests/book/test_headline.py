"""The headline figures of a notebook."""

import math
from ast import literal_eval

import numpy as np
import pytest
import torch

from book.headline import PREFIX, headline
from src.common.errors import CourseError


@pytest.fixture
def shown(monkeypatch):
    """What a cell has displayed: data and metadata."""
    outputs = []
    monkeypatch.setattr(
        "book.headline.display", lambda data, metadata=None, raw=False: outputs.append((data, metadata))
    )
    return outputs


def test_headline_is_a_table_and_plain_data(shown):
    headline(acc=torch.tensor(0.5), count=np.int64(3000), dice=np.float32(0.25), best_round="a < b", small=2e-5)
    (table, _), *scraps = shown
    assert "<td>a &lt; b</td>" in table.data
    assert [cell.split("<")[0] for cell in table.data.split("<td>")[1:]] == [
        "0.500",
        "3,000",
        "0.250",
        "a &lt; b",
        "2.0e-05",
    ]
    assert "best round" in table.data
    figures = {meta["scrapbook"]["name"]: literal_eval(data[f"{PREFIX}text/plain"]) for data, meta in scraps}
    assert figures == {"acc": 0.5, "count": 3000, "dice": 0.25, "best_round": "a < b", "small": 2e-5}


@pytest.mark.parametrize(
    ("figures", "message"),
    [
        ({}, "no figure"),
        ({"acc": math.nan}, r"headline\(acc=nan\) is not a finite number"),
        ({"acc": torch.tensor(math.inf)}, "not a finite number"),
        ({"acc": np.array([1.0, 2.0])}, "one number or a text, not ndarray"),
        ({"acc": None}, "one number or a text, not NoneType"),
        ({"seconds": 3}, r"headline\(seconds=...\).*taken"),
        ({"error": "x"}, "taken"),
    ],
)
def test_headline_refuses_what_is_no_figure(shown, figures, message):
    with pytest.raises(CourseError, match=message):
        headline(**figures)
    assert shown == []
