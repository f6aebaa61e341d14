"""The pictures of the notebooks: every function draws what it is given and returns a figure, a heat map or a slider.

A *case* is a dictionary: ``image``, ``(x, y, z)`` or ``(x, y, z, channels)``; ``label`` and perhaps ``prediction``, ``(x, y, z)``,
outlined where above 0; ``affine``, ``(4, 4)``, from voxel numbers to millimetres towards the patient's right, front and head, as
nibabel reads it, with axes of any order and direction; ``caption``; and perhaps ``z``, the axial slice to show, from the feet.
It is shown as radiologists look at it: the patient's right on the left, the front of axial and the head of other slices on top, and
the front of sagittal ones on the left.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import matplotlib.pyplot as plt
import nibabel as nib
import numpy as np
import pandas as pd
from IPython.display import HTML
from matplotlib.animation import FuncAnimation
from matplotlib.patheffects import withStroke
from pandas.io.formats.style import Styler

from src.common.datalists import plain_item
from src.common.errors import CourseError, first_line
from src.mednist.transforms import LoadPicture

SITE_COLORS = ("#2a6f97", "#e07a5f", "#3d8b5f", "#8e6bbf", "#c9a227", "#5c677d", "#d1495b", "#00798c")
OUTLINES, INK = {"label": "#00b4a0", "prediction": "#ff8c42"}, "#1f2933"
CURVES = {
    "train_loss": "training loss, each site's own",
    "val_accuracy": "validation accuracy of the received model",
    "val_dice": "validation Dice of the received model",
}
# The axis that a view looks along, the axis across the screen, the one upwards, and the letters of its left and right edge.
_VIEWS = {"axial": (2, 0, 1, "RL"), "coronal": (1, 0, 2, "RL"), "sagittal": (0, 1, 2, "AP")}


def use_style() -> None:
    """Give all later matplotlib figures the look of the course."""
    plt.style.use(Path(__file__).with_name("course.mplstyle"))


def site_color(number: int) -> str:
    """Colour of the site with this number, counted from 0; the same in every figure."""
    return SITE_COLORS[number % len(SITE_COLORS)]


def example_images(items: Sequence[dict], class_names: Sequence[str], columns: int = 10, seed: int = 0) -> dict:
    """``columns`` images ``(64, 64)`` of each class, chosen at random from items with ``image`` and ``label``, for a montage."""
    rng, rows, items = np.random.default_rng(seed), {}, [plain_item(item, class_names) for item in items]
    for number, name in enumerate(class_names):
        own = [item["image"] for item in items if item["label"] == number]
        rows[name] = [LoadPicture()({"image": path})["image"][0] for path in rng.permutation(own)[:columns]]
    return rows


def class_montage(images: Mapping[str, Sequence[np.ndarray]], title: str = "") -> plt.Figure:
    """A row for every class: grey images ``(height, width)`` from 0 to 255, all of one size, equally many of each class."""
    rows = [np.hstack([np.pad(image, 2, constant_values=255) for image in row]) for row in images.values()]
    height, width = rows[0].shape
    figure, axis = plt.subplots(figsize=(10, 10 * height * len(rows) / width), layout="constrained")
    axis.imshow(np.vstack(rows), cmap="gray", vmin=0, vmax=255)
    axis.set(title=title, xticks=[], yticks=(np.arange(len(rows)) + 0.5) * height, yticklabels=list(images))
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    return figure


def prediction_gallery(images, captions: Sequence[str], right: Sequence[bool], title: str, columns=6) -> plt.Figure:
    """Images ``(height, width)``, each with its caption: green where it is right, red and bold where it is wrong."""
    figure, axes = _grid(len(images), columns, 1.5, 1.8, title)
    for axis, image, caption, ok in zip(axes, images, captions, right, strict=False):
        axis.imshow(image, cmap="gray")
        color, weight = ("#2d6a4f", "normal") if ok else ("#b23a48", "bold")
        axis.set_title(caption, fontsize=8, fontweight=weight, color=color, loc="center")
    return figure


def confusion_matrix(labels, predictions, class_names: Sequence[str], title: str) -> Styler:
    """Counts of true and predicted class numbers, each ``(images,)``, as a heat map; zeros are left blank."""
    numbers = (
        [plain_item({"image": f"image {row}", "label": code}, class_names)["label"] for row, code in enumerate(codes)]
        for codes in (labels, predictions)
    )
    true, predicted = (pd.Categorical.from_codes(codes, class_names) for codes in numbers)
    counts = pd.crosstab(true, predicted, rownames=["true"], colnames=["predicted"], dropna=False)
    return heat_map(counts, title, counts.to_numpy().max()).format(lambda count: count or "")


def heat_map(table: pd.DataFrame, title: str, most: float = 1) -> Styler:
    """A table with two decimals as pandas' own heat map, its colours from 0 to ``most``."""
    return table.style.format(precision=2).background_gradient("Blues", vmin=0, vmax=most).set_caption(title)


def partition_bars(table, columns: Sequence[str], title: str = "Who holds which images") -> plt.Figure:
    """A bar for each site of a table of :func:`data_scripts.sharing.who_has_what`, stacked from ``columns``: classes or parts."""
    table = table[list(columns)].drop("all sites")
    figure, axis = plt.subplots(figsize=(7.5, 1.3 + 0.5 * len(table)), layout="constrained")
    table.plot.barh(stacked=True, ax=axis, colormap="Set2", edgecolor="white", width=0.75, ylabel="", xlabel="images")
    room = 0.035 * table.sum(axis=1).max()
    for bars in axis.containers:
        axis.bar_label(bars, fmt=lambda n: f"{n:.0f}" if n > room else "", label_type="center", fontsize=8, color=INK)
    axis.invert_yaxis()
    axis.legend(ncols=6, loc="lower left", bbox_to_anchor=(0, 1), fontsize=8, handlelength=1, columnspacing=1.2)
    axis.set_title(title, pad=28)
    return figure


def federated_curves(run, metrics: Sequence[str]) -> plt.Figure:
    """Metrics of a :class:`src.federation.run.Run` by round, a panel a metric, a line a site; known ones get a title."""
    figure, axes = plt.subplots(1, len(metrics), figsize=(4.6 * len(metrics), 3.4), squeeze=False, layout="constrained")
    for axis, metric in zip(axes.flat, metrics, strict=True):
        run.curve(metric).plot(ax=axis, color=list(SITE_COLORS), marker=".", legend=False)
        axis.set(title=CURVES.get(metric, metric), xlabel="round")
        axis.locator_params(axis="x", integer=True)
        axis.grid(axis="y")
    axes[0, 0].legend()
    return figure


def load_case(item: Mapping, caption: str = "") -> dict:
    """The case of a datalist's item ``{"image": path, "label": path}``, as it is in its files."""
    image, label = nib.load(item["image"]), nib.load(item["label"])
    return {"image": image.get_fdata(), "label": label.get_fdata(), "affine": image.affine, "caption": caption}


def upright(case: Mapping) -> dict:
    """The same case with axes towards the patient's right, front and head, and with ``z``; a CourseError if grids differ.

    No voxel is interpolated: an oblique axis goes to the nearest one, https://nipy.org/nibabel/image_orientation.html.
    """
    turn = nib.io_orientation(case["affine"])
    arrays = {key: np.asarray(case[key]) for key in ("image", "label", "prediction") if key in case}
    shape = arrays["label"].shape
    if any(array.shape[:3] != shape for array in arrays.values()):
        found = ", ".join(f"{key} {array.shape}" for key, array in arrays.items())
        raise CourseError(f"The arrays of a case have different grids: {found}. Bring them to one, then show them.")
    turned = {key: nib.apply_orientation(array, turn) for key, array in arrays.items()}
    affine = case["affine"] @ nib.orientations.inv_ornt_aff(turn, shape)
    return {"z": _of_interest(turned)[2], **case, **turned, "affine": affine}


def _of_interest(case: Mapping) -> list[int]:
    """The plane across each axis that shows most of what is wrong; without a prediction or a fault, most of the mask."""
    mask = case["label"] > 0
    wrong = (case.get("prediction", np.zeros(1)) > 0) != mask
    shown = wrong if wrong.any() else mask
    if not shown.any():
        return [count // 2 for count in mask.shape]
    return [int(shown.sum(axis=tuple({0, 1, 2} - {axis})).argmax()) for axis in range(3)]


def planes(case: Mapping, title: str = "", channel_names: Sequence[str] = ("T2",)) -> plt.Figure:
    """A case in three planes where there is most to see, in the body's proportions; a row for each channel named."""
    case = upright(case)
    center = _of_interest(case)
    x, y, z = case["label"].shape * nib.affines.voxel_sizes(case["affine"])
    height = 10 * max(y, z) / (x + x + y) + 0.3
    figure = plt.figure(figsize=(10, len(channel_names) * height + 0.3), layout="constrained")
    axes = figure.subplots(len(channel_names), len(_VIEWS), width_ratios=(x, x, y), squeeze=False)
    for channel, (row, name) in enumerate(zip(axes, channel_names, strict=True)):
        for axis, view in zip(row, _VIEWS, strict=True):
            _slice(axis, case, view, center[_VIEWS[view][0]], channel)
            axis.set_title(f"{name}, {view}", fontsize=9)
            axis.set_anchor("N")
    figure.suptitle(title)
    return figure


def case_grid(
    cases: Sequence[Mapping], title: str = "", columns: int = 4, names: Sequence[str] = ("mask", "prediction")
) -> plt.Figure:
    """An axial slice of each case with the outlines of mask and prediction, which the legend calls by ``names``."""
    figure, axes = _grid(len(cases), columns, 2.6, 3.0, title)
    for axis, case in zip(axes, map(upright, cases), strict=False):
        _slice(axis, case, "axial", case["z"])
        axis.set_title(case["caption"], fontsize=8.5, fontweight="normal", loc="center")
    if any("prediction" in case for case in cases):
        lines = [plt.Line2D([], [], color=color, lw=2) for color in OUTLINES.values()]
        figure.legend(lines, names, loc="outside lower center", ncols=2, fontsize=9)
    return figure


def slice_slider(case: Mapping) -> HTML:
    """All axial slices of a case, one at a time, above a slider which starts at the case's ``z``."""
    case = upright(case)
    figure = case_grid([case], columns=1)
    (axis,) = figure.axes

    def draw(z: int) -> None:
        axis.clear()
        _slice(axis, case, "axial", z)
        axis.set_title(f"{case['caption']}\nslice {z}", fontsize=8.5, fontweight="normal", loc="center")

    with plt.rc_context({"animation.frame_format": "jpeg"}):
        page = FuncAnimation(figure, draw, frames=case["label"].shape[2]).to_jshtml()
    plt.close(figure)
    # The icons of its buttons would come from a server; a slider needs no buttons. And matplotlib always starts at 0.
    page = re.sub(r"<link\b[^>]*>", "<style>.anim-buttons, .anim-state { display: none; }</style>", page)
    return HTML(page.replace("this.current_frame = 0;", f"this.current_frame = {case['z']};"))


def _grid(count: int, columns: int, width: float, height: float, title: str):
    rows = max(1, -(-count // columns))
    size = (width * columns, height * rows + 0.3)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="compressed")
    for axis in axes.flat:
        axis.set_axis_off()
    figure.suptitle(title)
    return figure, axes.flat


def _slice(axis, case: dict, view: str, index: int, channel: int = 0) -> None:
    through, across, up, edges = _VIEWS[view]
    voxel = nib.affines.voxel_sizes(case["affine"])
    volume = case["image"].reshape(*case["label"].shape, -1)[..., channel]
    look = {"cmap": "gray", "clim": np.percentile(volume, (1, 99)), "interpolation": "bilinear", "origin": "lower"}
    axis.imshow(volume.take(index, axis=through).T, aspect=voxel[up] / voxel[across], **look)
    for key, color in OUTLINES.items():
        mask = case[key].take(index, axis=through).T > 0 if key in case else np.zeros(1)
        if mask.any() and not mask.all():
            axis.contour(mask, levels=[0.5], colors=[color], linewidths=1.4)
    # The axis across starts at the patient's left or back, and radiologists have these on the right of the screen.
    axis.invert_xaxis()
    axis.set_axis_off()
    look = {"color": "white", "fontsize": 9, "path_effects": [withStroke(linewidth=2, foreground=INK)]}
    for letter, x, side in zip(edges, (0.02, 0.98), ("left", "right"), strict=True):
        axis.text(x, 0.5, letter, transform=axis.transAxes, ha=side, va="center", **look)


def intensity_curves(volumes: Mapping[str, Sequence], title: str, axis_label: str, log: bool = False) -> plt.Figure:
    """Distribution of the voxel values of each site, ``{site: [array, …]}``, a line a case; ``log`` leaves out values up to 0."""
    figure, axis = plt.subplots(figsize=(7, 3), layout="constrained")
    for number, (site, arrays) in enumerate(volumes.items()):
        for position, values in enumerate(map(np.ravel, arrays)):
            values = values[values > 0] if log else values
            edges = (np.geomspace if log else np.linspace)(*np.percentile(values, (1, 99.5)), 51)
            share, _ = np.histogram(values, edges)
            look = {"color": site_color(number), "label": None if position else site}
            axis.plot((edges[1:] + edges[:-1]) / 2, share / share.max(), **look)
    axis.set(title=title, xlabel=axis_label, ylabel="voxels, peak = 1", xscale="log" if log else "linear")
    axis.legend()
    return figure


def pooled_histograms(statistics: Mapping, feature: str, labels: Sequence[str] = (), title: str = "") -> plt.Figure:
    """Histograms of one feature of ``FedStatsRecipe``'s file at each site and at all together: lines, or bars of named classes."""
    sites = statistics[feature]["histogram"]
    bins = {site: next(iter(sites[site].values())) for site in [*sorted(sites.keys() - {"Global"}), "Global"]}
    table = pd.DataFrame({site: [count for _, _, count in own] for site, own in bins.items()}, dtype=float)
    table.index = list(labels) or [(low + high) / 2 for low, high, _ in bins["Global"]]
    table = table.rename(columns={"Global": "all sites"})
    figure, axis = plt.subplots(figsize=(7.5, 3), layout="constrained")
    look = {"color": [*map(site_color, range(len(sites) - 1)), INK], "ax": axis, "title": title}
    if labels:
        table.plot.bar(**look, width=0.8, rot=0, ylabel="images")
    else:
        (table / table.sum()).plot(**look, xlabel=feature, ylabel="share of the pixels")
        axis.lines[-1].set_linewidth(2.5)
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8)
    return figure


def method_scores(results, titles: Mapping[str, str], value: str, label: str, title: str = "") -> plt.Figure:
    """Scores of ways to train by how hospitals differ, a panel each: a dot a seed, a line at their mean.

    ``results`` has the columns ``skew``, ``row``, ``seed`` and ``value``, called ``label`` on its axis; ``titles`` names the rows,
    in their order, and perhaps skews.
    """
    skews = results["skew"].unique()
    names = [name for name in titles if name in set(results["row"])]
    figure = plt.figure(figsize=(2.8 + 1.9 * len(skews), 1.2 + 0.26 * len(names)), layout="constrained")
    axes = figure.subplots(1, len(skews), sharex=True, sharey=True, squeeze=False)
    for axis, skew in zip(axes.flat, skews, strict=True):
        for number, name in enumerate(names):
            chosen = results[(results["skew"] == skew) & (results["row"] == name)][value]
            axis.plot(chosen, np.full(len(chosen), number), "o", color=site_color(number), ms=4, alpha=0.6)
            axis.plot([chosen.mean()] * 2, [number - 0.35, number + 0.35], color=site_color(number), lw=2.5)
        axis.set(xlabel=label)
        axis.set_title(titles.get(skew, skew), fontsize=9)
        axis.grid(axis="x")
    axes[0, 0].set_yticks(range(len(names)), [titles[name] for name in names])
    axes[0, 0].invert_yaxis()
    figure.suptitle(title)
    return figure


def intervals(estimates: pd.DataFrame, title: str, label: str) -> plt.Figure:
    """A dot with its interval for each row of a table with ``mean``, ``low`` and ``high``: green above 0, red below, else grey."""
    figure, axis = plt.subplots(figsize=(7.5, 1.1 + 0.32 * len(estimates)), layout="constrained")
    for number, (_, one) in enumerate(estimates.iterrows()):
        color = "#2d6a4f" if one["low"] > 0 else "#b23a48" if one["high"] < 0 else "#8a94a0"
        axis.plot([one["low"], one["high"]], [number] * 2, color=color, lw=2.5)
        axis.plot(one["mean"], number, "o", color=color)
    axis.axvline(0, color=INK, lw=1)
    axis.set(title=title, xlabel=label, yticks=range(len(estimates)), yticklabels=estimates.index)
    axis.invert_yaxis()
    axis.grid(axis="x")
    return figure


@contextmanager
def _explained(name: str) -> Iterator[None]:
    try:
        yield
    except (KeyError, IndexError, ValueError, TypeError, OSError) as error:
        said = f"{type(error).__name__}: {first_line(error)}. help(figures.{name}) says what it needs."
        raise CourseError(f"{name}() cannot draw this: {said}") from error


for _name, _draw in [*globals().items()]:
    if callable(_draw) and _draw.__module__ == __name__ and not _name.startswith("_"):
        globals()[_name] = _explained(_name)(_draw)
