"""Every picture in figs/ has its command, and figures show what they were given."""

import warnings
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from src import figures, show

FIGS = Path(__file__).resolve().parent.parent / "figs"


@pytest.fixture(autouse=True)
def close_figures():
    matplotlib.use("agg")
    yield
    plt.close("all")


def test_each_picture_of_the_repository_can_be_drawn_by_name():
    assert set(figures.PICTURES) == {path.name for path in FIGS.iterdir()}


def test_a_picture_is_drawn_again_alike(tmp_path, capsys):
    for folder in ("a", "b"):
        assert figures.main(["fedavg_flow.svg", "--out", str(tmp_path / folder)]) == 0
    first, second = ((tmp_path / folder / "fedavg_flow.svg").read_bytes() for folder in ("a", "b"))
    assert first == second and b"<svg" in first
    assert "fedavg_flow.svg" in capsys.readouterr().out


def test_partition_bars_are_as_long_as_the_counts():
    table = pd.DataFrame({"Hand": [3, 10], "CXR": [7, 0]}, index=["site-1", "site-2"])
    figure = figures.partition_bars(table)
    widths = [[bar.get_width() for bar in container] for container in figure.axes[0].containers]
    assert widths == [[3, 10], [7, 0]]


def test_the_confusion_matrix_shows_its_counts():
    figure = figures.confusion_matrix([[5, 0], [2, 3]], ["a", "b"], "title")
    assert [text.get_text() for text in figure.axes[0].texts] == ["5", "2", "3"]


def test_a_case_is_shown_in_its_true_proportions():
    mask = np.zeros((20, 20, 8), dtype=np.uint8)
    mask[5:15, 5:15, 2:6] = 1
    figure = figures.planes(np.random.default_rng(0).random((20, 20, 8, 2)), mask, (1.0, 1.0, 4.0), "t", ["T2", "ADC"])
    assert [axis.get_aspect() for axis in figure.axes] == [1.0, 4.0, 4.0] * 2
    assert all(axis.collections for axis in figure.axes), "the mask is outlined in every plane"


def test_the_slider_holds_every_slice_and_leaves_no_figure_open():
    case = {
        "image": np.random.default_rng(0).random((16, 16, 25)),
        "label": np.ones((16, 16, 25)),
        "spacing": (1, 1, 3),
    }
    case["label"][:8] = 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        html = show.slice_slider(
            (figures.case_grid([{**case, "z": z, "caption": "c"}], columns=1) for z in range(25)), start=3
        ).data
    assert html.count("data:image/png;base64,") == 26  # all, and once more the one that is shown at first
    assert 'value="3"' in html and 'max="24"' in html
    assert plt.get_fignums() == []
