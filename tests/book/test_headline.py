"""The headlines of a notebook."""

import math
import re

import numpy as np
import pytest
import torch
from nbformat.v4 import new_code_cell, new_notebook, new_output

from book import headline as module
from book.headline import headline, headlines
from src.common.errors import CourseError


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


@pytest.mark.parametrize(
    ("values", "message"),
    [
        pytest.param({}, "no value", id="nothing"),
        pytest.param({"acc": math.nan}, r"headline\(acc=nan\) is not a finite number", id="nan"),
        pytest.param({"acc": torch.tensor(math.inf)}, "not a finite number", id="tensor of infinity"),
        pytest.param({"acc": np.array([1.0, 2.0])}, "one number or a text, not ndarray", id="several numbers"),
        pytest.param({"acc": None}, "one number or a text, not NoneType", id="none"),
        pytest.param({"seconds": 3}, r"headline\(seconds=...\).*taken", id="taken"),
        pytest.param({"error": "x"}, "taken", id="taken, too"),
    ],
)
def test_headline_refuses_what_is_none(shown, values, message):
    with pytest.raises(CourseError, match=message):
        headline(**values)
    assert shown == []
