"""Figures show what they were given, a patient's right where a radiologist looks for it; each picture in figs/ has its command."""

import os
import re
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import matplotlib
import matplotlib.pyplot as plt
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from book import figs, figures
from src.tasks import tasks
from tests.tests_support import course_error

FIGS = Path(__file__).resolve().parents[2] / "figs"


@pytest.fixture(autouse=True)
def settings_of_a_reader(monkeypatch, tmp_path):
    """Of one who works with real data; what is changed is put back after each test."""
    for name, value in {"DATA": tmp_path / "own data", "RUNS": tmp_path, "DATA_SOURCE": "real", "OTHER": "7"}.items():
        monkeypatch.setenv(f"COURSE_{name}", str(value))
    monkeypatch.setattr(figs, "WORK", tmp_path / "work")
    matplotlib.use("agg")
    with plt.rc_context():
        figures.use_style()
        yield
    plt.close("all")


def phantom(code: str = "RAS", **more) -> dict:
    """A bright block and its mask in the right, anterior, upper corner of a dark volume, stored in some orientation."""
    label, affine = np.zeros((24, 20, 10)), nib.affines.from_matvec(np.diag([1.0, 1.0, 3.0]), [-12, -9, 4])
    label[18:, 15:, 7:] = 1
    image = label * 100 + np.arange(10)  # brighter towards the head, so that upside down is seen
    turn = nib.orientations.ornt_transform(nib.io_orientation(affine), nib.orientations.axcodes2ornt(code))
    files = [nib.Nifti1Image(array, affine).as_reoriented(turn) for array in (image, label)]
    image, label = (file.get_fdata() for file in files)
    return {"image": image, "label": label, "affine": files[0].affine, "caption": "a block", **more}


def texts(labels) -> list[str]:
    return [label.get_text() for label in labels]


def pixels(figure) -> np.ndarray:
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].astype(int)


def where_bright(figure, axis) -> tuple[float, float]:
    """Middle of what is bright and grey in one picture of a figure, from (0, 0), upper left, to (1, 1), lower right."""
    shown = pixels(figure)
    frame = axis.get_window_extent()
    top = shown.shape[0] - frame.y1
    part = shown[int(top) + 2 : int(top + frame.height) - 2, int(frame.x0) + 2 : int(frame.x1) - 2]
    rows, columns = np.nonzero((part.min(axis=2) > 200) & (np.ptp(part, axis=2) < 10))
    return columns.mean() / part.shape[1], rows.mean() / part.shape[0]


@pytest.mark.parametrize("code", ["RAS", "LPS", "LAS", "RPI", "PIR", "SAL", "ILA"])
def test_a_case_looks_the_same_whatever_the_orientation_of_its_file(code, tmp_path):
    case, item = phantom(code), {key: tmp_path / f"{key}.nii.gz" for key in ("image", "label")}
    assert "".join(nib.aff2axcodes(case["affine"])) == code
    for key, path in item.items():
        nib.save(nib.Nifti1Image(case[key], case["affine"]), path)
    for draw in (figures.planes, lambda case: figures.case_grid([case], columns=1)):
        assert np.array_equal(pixels(draw(figures.load_case(item, "a block"))), pixels(draw(phantom())))


def test_the_patients_right_is_on_the_left_and_the_front_on_top_in_the_proportions_of_the_body():
    case = phantom("PIR")
    case["image"] = np.stack([case["image"], -case["image"]], axis=-1)
    figure = figures.planes(case, channel_names=("T2", "ADC"))
    assert [axis.get_aspect() for axis in figure.axes] == [1.0, 3.0, 3.0] * 2
    assert [axis.get_title(loc="left") for axis in figure.axes][::3] == ["T2, axial", "ADC, axial"]
    figure = figures.planes(phantom("LPS"))
    for axis, edges in zip(figure.axes, ("RL", "RL", "AP"), strict=True):
        x, y = where_bright(figure, axis)  # right, front and head; in the sagittal view, the front is on the left
        assert x < 0.3 and y < 0.3, axis.get_title()
        left, right = sorted(axis.texts, key=lambda text: text.get_window_extent().x0)
        assert left.get_text() + right.get_text() == edges


def test_a_slice_is_counted_from_the_feet_and_is_by_default_the_one_with_the_largest_mask():
    case = phantom("RPI")
    case["label"][0, 0, 1] = 1  # one voxel more, in the second slice from the top
    empty = {**case, "label": case["label"] * 0}  # the middle
    assert [figures.upright(one)["z"] for one in (case, empty, phantom("RPI", z=3))] == [8, 5, 3]
    shown = figures.case_grid([phantom("RPI", z=3)]).axes[0].images[0].get_array()
    assert np.unique(shown).tolist() == [3]


def test_with_a_prediction_the_planes_lie_where_it_is_wrong():
    """Right everywhere but for one column of voxels towards the head, far from the middle of the mask."""
    case = phantom()
    prediction = case["label"].copy()
    prediction[1, 2, -2:] = prediction[1, 3, -2] = 1
    wrong = phantom(prediction=prediction)
    assert figures.upright(wrong)["z"] == prediction.shape[2] - 2
    assert figures.upright(phantom(prediction=case["label"]))["z"] == figures.upright(case)["z"]
    image = figures.upright(wrong)["image"]
    shown = [axis.images[0].get_array() for axis in figures.planes(wrong).axes]
    for array, expected in zip(shown, (image[:, :, -2].T, image[:, 2].T, image[1].T), strict=True):
        np.testing.assert_array_equal(array, expected)


def test_a_mask_and_a_prediction_have_outlines_of_their_own():
    grid = figures.case_grid([phantom(), phantom(prediction=phantom()["label"])])
    colors = [[to_hex(lines.get_edgecolor()[0]) for lines in axis.collections] for axis in grid.axes[:2]]
    mask, prediction = figures.OUTLINES.values()
    assert colors == [[mask], [mask, prediction]] and texts(grid.legends[0].texts) == ["mask", "prediction"]
    course_error(r"different grids.*prediction \(3, 3, 3\)", figures.upright, phantom(prediction=np.zeros((3, 3, 3))))


def test_a_heat_map_shows_each_value_where_it_belongs():
    confusion = figures.confusion_matrix([0] * 5 + [1] * 5, [0] * 7 + [1] * 3, ["a", "b", "c"], "title")
    scores = pd.DataFrame([[0.9, 0.25], [0.5, 1.0]], ["site-1", "all"], ["site-1", "site-2"])
    for table, cells, darkest in (
        (confusion, "a b c a 5   b 2 3  c   ", "row0_col0"),
        (figures.heat_map(scores, "title"), "site-1 site-2 site-1 0.90 0.25 all 0.50 1.00", "row1_col1"),
    ):
        page = table.to_html(uuid="x")
        found = re.findall(r'class="(?:row_heading|col_heading|data)[^>]*>(.*?)<', page)
        assert "<caption>title</caption>" in page and " ".join(found) == cells
        assert re.search(rf"#T_x_{darkest} {{\s+background-color: #08306b", page)


def test_partition_bars_are_as_long_as_the_counts():
    table = pd.DataFrame({"Hand": [3, 7, 10], "CXR": [7, 0, 7], "all": [10, 7, 17]}, ["HK", "BIDMC", "all sites"])
    axis = figures.partition_bars(table, ["Hand", "CXR"]).axes[0]
    assert [[bar.get_width() for bar in bars] for bars in axis.containers] == [[3, 7], [7, 0]]
    assert texts(axis.get_yticklabels()) == ["HK", "BIDMC"] and texts(axis.texts) == ["3", "7", "7", ""]


def test_curves_have_a_panel_a_metric_and_a_line_a_site_in_its_colour():
    table = pd.DataFrame({"BIDMC": [0.2, 0.6, 0.9], "HK": [0.3, 0.7, 0.8]}, index=pd.Index(range(3), name="step"))
    run = SimpleNamespace(curve={"train_loss": 1 - table, "val_f1": table}.get)
    loss, score = figures.federated_curves(run, ("train_loss", "val_f1")).axes
    assert [axis.get_title(loc="left") for axis in (loss, score)] == ["training loss, each site's own", "val_f1"]
    assert [line.get_ydata().tolist() for line in score.lines] == [[0.2, 0.6, 0.9], [0.3, 0.7, 0.8]]
    assert [line.get_color() for line in loss.lines] == [figures.site_color(0), figures.site_color(1)]
    assert texts(loss.get_legend().texts) == ["BIDMC", "HK"]


def test_examples_are_of_their_class_and_what_is_wrong_stands_out(tmp_path):
    items = [{"image": str(tmp_path / f"{number}.png"), "label": number % 3} for number in range(12)]
    for item in items:
        plt.imsave(item["image"], np.full((8, 8), item["label"] * 100), cmap="gray", vmin=0, vmax=255)
    examples = figures.example_images(items, ["a", "b", "c"], columns=4)
    assert [[int(image[0, 0]) for image in row] for row in examples.values()] == [[0] * 4, [100] * 4, [200] * 4]
    axis = figures.class_montage(examples).axes[0]
    assert texts(axis.get_yticklabels()) == ["a", "b", "c"] and axis.images[0].get_array().shape == (3 * 68, 4 * 68)
    axes = figures.prediction_gallery(examples["a"][:2], ["Hand", "CXR"], [True, False], "title", columns=2).axes
    looks = [(axis.title.get_text(), axis.title.get_fontweight()) for axis in axes]
    assert looks == [("Hand", "normal"), ("CXR", "bold")]


def test_bins_are_equally_wide_on_the_axis_that_is_shown():
    values = np.random.default_rng(0).lognormal(5, 1, 5000)
    volumes = {"HK": [np.append(values, [0, -3]), values], "BIDMC": [values]}
    for name, scale in {"log": np.log, "linear": np.array}.items():
        axis = figures.intensity_curves(volumes, "title", "intensity", log=name == "log").axes[0]
        steps = np.diff(scale(axis.lines[0].get_xdata()))
        assert axis.get_xscale() == name and np.allclose(steps, steps[0])
        assert texts(axis.get_legend().texts) == ["HK", "BIDMC"]


def test_pooled_histograms_show_every_site_and_all_of_them():
    counts = {"Global": (4, 6), "site-1": (1, 5), "site-2": (3, 1)}
    sites = {site: {"training": [[at, at + 1, count] for at, count in enumerate(own)]} for site, own in counts.items()}
    statistics = {"class": {"histogram": sites}}
    axis = figures.pooled_histograms(statistics, "class", ("CXR", "Hand"), "Who").axes[0]
    assert [[bar.get_height() for bar in group] for group in axis.containers] == [[1, 5], [3, 1], [4, 6]]
    assert texts(axis.get_legend().get_texts()) == ["site-1", "site-2", "all sites"]
    assert texts(axis.get_xticklabels()) == ["CXR", "Hand"]
    lines = figures.pooled_histograms(statistics, "class").axes[0].lines
    assert [line.get_ydata().tolist() for line in lines] == [[1 / 6, 5 / 6], [0.75, 0.25], [0.4, 0.6]]
    assert lines[0].get_xdata().tolist() == [0.5, 1.5]


def test_method_scores_show_every_seed_and_the_mean():
    rows = [("even", "a", 0, 0.8), ("even", "a", 1, 0.9), ("alpha0.1", "b", 0, 0.5)]
    results = pd.DataFrame(rows, columns=["skew", "row", "seed", "home"])
    titles = {"b": "Method B", "a": "Method A", "c": "Method C", "alpha0.1": "labels, α = 0.1"}
    even, skewed = figures.method_scores(results, titles, "home", "accuracy").axes
    assert [axis.get_title(loc="left") for axis in (even, skewed)] == ["even", "labels, α = 0.1"]
    assert texts(even.get_yticklabels()) == ["Method B", "Method A"]
    dots, mean = even.lines[2], even.lines[3]
    assert sorted(dots.get_xdata()) == [0.8, 0.9] and set(dots.get_ydata()) == {1}
    assert mean.get_xdata() == pytest.approx([0.85, 0.85]) and skewed.lines[0].get_xdata().tolist() == [0.5]


def test_each_picture_of_the_repository_can_be_drawn_by_name(capsys):
    by_hand = {"fedavg_flow.svg", "federation_kits.svg", "privacy_threats.svg"}
    assert set(figs.PICTURES) | by_hand == {path.name for path in FIGS.iterdir()}
    assert all(ElementTree.parse(FIGS / name).getroot().tag.endswith("}svg") for name in by_hand)
    assert {f"{name}_curves.svg" for name in tasks()} <= set(figs.PICTURES)
    with pytest.raises(SystemExit):
        figs.main(["mednist.svg"])
    assert "there is no picture mednist.svg; choose from mednist_classes.png" in capsys.readouterr().err


def test_pictures_are_drawn_again_alike_from_drawings_in_a_place_of_their_own(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(figs.mednist_sites, "DRAWN_PER_CLASS", 20)
    names = ["methods_mednist.svg", "mednist_classes.png", "mednist_partition.svg"]
    for folder in ("a", "b"):
        assert figs.main([*names, "--out", str(tmp_path / folder)]) == 0
    for name in names:
        first, second = ((tmp_path / folder / name).read_bytes() for folder in ("a", "b"))
        assert first == second and len(first) > 10_000
    assert [line.split("/")[-1] for line in capsys.readouterr().out.splitlines()] == names * 2
    assert (tmp_path / "work" / "data" / "generated" / "MedNIST").is_dir() and not (tmp_path / "own data").exists()
    settings = {name: value for name, value in os.environ.items() if name.startswith("COURSE_")}
    work = {"COURSE_DATA": f"{tmp_path}/work/data", "COURSE_RUNS": f"{tmp_path}/work/runs"}
    assert settings == {**work, "COURSE_DATA_SOURCE": "generated"}, "a run for a picture would use what the reader uses"
