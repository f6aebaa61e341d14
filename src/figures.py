"""The pictures of the course. Every function draws on data it is given and returns a matplotlib figure.

``python -m src.figures [NAME ...]`` draws the pictures in ``figs/`` again, which is what ``make figures`` calls. Those that show
a run make that run first, with the notebook's settings.
"""

import argparse
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from matplotlib.ticker import MaxNLocator

SITE_COLORS = ("#2a6f97", "#e07a5f", "#3d8b5f", "#8e6bbf", "#c9a227", "#5c677d", "#d1495b", "#00798c")
SERVER_COLOR = "#33415c"
INK = "#1f2933"
STYLE = {
    "figure.dpi": 110,
    "savefig.dpi": 140,
    "savefig.bbox": "tight",
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#9aa5b1",
    "axes.labelcolor": INK,
    "axes.axisbelow": True,
    "grid.color": "#e4e7eb",
    "legend.frameon": False,
    "svg.hashsalt": "course",
}


def use_style() -> None:
    """Give all later matplotlib figures the look of the course."""
    plt.rcParams.update(STYLE)


def site_color(number: int) -> str:
    """Colour of the site with this number, counted from 0; the same in every figure."""
    return SITE_COLORS[number % len(SITE_COLORS)]


def class_montage(images: dict[str, list[np.ndarray]], title: str = ""):
    """A row of example images for every class.

    Args:
        images: class name to a list of ``(height, width)`` grey images, equally many for each class.
        title: what the reader looks at; say here whether it is generated or real.
    """
    rows, columns = len(images), len(next(iter(images.values())))
    figure, axes = plt.subplots(rows, columns, figsize=(columns * 1.05, rows * 1.12), squeeze=False)
    for row, (name, examples) in zip(axes, images.items(), strict=True):
        for axis, image in zip(row, examples, strict=True):
            axis.imshow(image, cmap="gray", vmin=0, vmax=255)
            axis.set_axis_off()
        row[0].text(-0.12, 0.5, name, transform=row[0].transAxes, ha="right", va="center", fontsize=10, color=INK)
    figure.subplots_adjust(wspace=0.06, hspace=0.06, left=0.14, top=0.94)
    figure.suptitle(title, fontsize=11, fontweight="bold", y=1.0)
    return figure


def partition_bars(table, title: str = "Who holds which images"):
    """Stacked bars of the images that every site holds, by class.

    Args:
        table: a row a site, a column a class, values are numbers of images.
        title: of the figure.
    """
    figure, axis = plt.subplots(figsize=(7.5, 0.8 + 0.55 * len(table)))
    left = np.zeros(len(table))
    colors = plt.get_cmap("Set2")(np.linspace(0, 1, 8))
    for color, name in zip(colors, table.columns, strict=False):
        values = table[name].to_numpy()
        bars = axis.barh(list(table.index), values, left=left, color=color, label=name, edgecolor="white")
        labels = [f"{v}" if v > 0.035 * table.to_numpy().sum(axis=1).max() else "" for v in values]
        axis.bar_label(bars, labels=labels, label_type="center", fontsize=8, color=INK)
        left += values
    axis.invert_yaxis()
    axis.set_xlabel("images")
    axis.set_title(title, loc="left", pad=28)
    axis.legend(ncols=6, loc="lower left", bbox_to_anchor=(0, 1.0), fontsize=8, handlelength=1, columnspacing=1.2)
    figure.tight_layout()
    return figure


def federated_curves(run, metrics: dict[str, str], labels: dict[str, str] | None = None):
    """Curves of a run, a panel a metric, a line a site.

    Args:
        run: a finished :class:`src.runs.Run`.
        metrics: streamed tag to the panel's title.
        labels: streamed tag to the label of its horizontal axis, where that is not ``round``.
    """
    figure, axes = plt.subplots(1, len(metrics), figsize=(4.6 * len(metrics), 3.4), squeeze=False)
    for axis, (tag, title) in zip(axes[0], metrics.items(), strict=True):
        curve = run.curve(tag)
        marks = {"marker": "o", "ms": 4} if len(curve) <= 25 else {}
        for number, site in enumerate(curve.columns):
            axis.plot(curve.index, curve[site], color=site_color(number), label=site, lw=1.5, **marks)
        axis.set_title(title, loc="left")
        axis.set_xlabel((labels or {}).get(tag, "round"))
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(axis="y")
    axes[0][0].legend()
    figure.tight_layout()
    return figure


def confusion_matrix(matrix, class_names, title: str):
    """A confusion matrix, rows true, columns predicted, each row's share as shade and the counts as numbers.

    Args:
        matrix: ``(classes, classes)`` counts.
        class_names: of rows and columns.
        title: of the figure.
    """
    matrix = np.asarray(matrix)
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    figure, axis = plt.subplots(figsize=(4.8, 4.2))
    axis.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(matrix):
        if count:
            color = "white" if share[row, column] > 0.5 else INK
            axis.text(column, row, f"{count:.0f}", ha="center", va="center", color=color, fontsize=9)
    axis.set_xticks(range(len(class_names)), class_names, rotation=35, ha="right")
    axis.set_yticks(range(len(class_names)), class_names)
    axis.set_xlabel("predicted")
    axis.set_ylabel("true")
    axis.set_title(title, loc="left")
    axis.spines[:].set_visible(False)
    figure.tight_layout()
    return figure


def prediction_gallery(images, captions, right, title: str, columns: int = 6):
    """Images with a caption each, green where the prediction is right and red where it is wrong.

    Args:
        images: ``(height, width)`` arrays.
        captions: a string an image.
        right: a bool an image.
        title: of the figure.
        columns: images a row.
    """
    rows = max(1, int(np.ceil(len(images) / columns)))
    figure, axes = plt.subplots(rows, columns, figsize=(columns * 1.5, rows * 1.85), squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, image, caption, ok in zip(axes.flat, images, captions, right, strict=False):
        axis.imshow(image, cmap="gray")
        axis.set_title(caption, fontsize=8, fontweight="normal", color="#2d6a4f" if ok else "#b23a48")
    figure.suptitle(title, fontsize=11, fontweight="bold")
    figure.tight_layout()
    return figure


def fedavg_flow():
    """The six steps of a FedAvg round between a server and two sites, as a drawing."""
    figure, axis = plt.subplots(figsize=(10, 5.4))
    axis.set_xlim(0, 10)
    axis.set_ylim(0, 5.4)
    axis.set_axis_off()

    def box(x, y, width, color, head, steps):
        height = 0.62 + 0.4 * len(steps)
        axis.add_patch(
            FancyBboxPatch((x, y), width, height, boxstyle="round,pad=0,rounding_size=0.12", fc=color, ec="none")
        )
        axis.text(x + 0.25, y + height - 0.3, head, va="center", color="white", weight="bold", fontsize=12)
        for row, (number, text) in enumerate(steps):
            middle = y + height - 0.72 - 0.4 * row
            badge(x + 0.42, middle, number, "white", color)
            axis.text(x + 0.72, middle, text, va="center", color="white", fontsize=10.5)

    def badge(x, y, number, color, ink):
        axis.text(
            x, y, number, ha="center", va="center", color=ink, weight="bold", fontsize=9.5,
            bbox={"boxstyle": "circle,pad=0.25", "fc": color, "ec": "none"},
        )  # fmt: skip

    def arrow(start, end, color):
        axis.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=18, color=color, lw=2))

    box(2.3, 3.45, 5.4, SERVER_COLOR, "Server · FedAvg controller", [
        ("1", "load the first global model: persistor"),
        ("5", r"average  $w = \sum_k \frac{n_k}{n} w_k$ : aggregator"),
        ("6", "update, save, keep the best: persistor"),
    ])  # fmt: skip
    for number, x in enumerate((0.3, 5.7)):
        color = site_color(number)
        box(x, 0.25, 4.0, color, f"site-{number + 1}", [
            ("3", "validate the received model"),
            ("4", f"train it on its own $n_{number + 1}$ images"),
        ])  # fmt: skip
        outer, inner = (2.0, 2.75) if number == 0 else (8.0, 7.25)
        top_outer, top_inner = (2.75, 3.5) if number == 0 else (7.25, 6.5)
        arrow((top_outer, 3.4), (outer, 1.75), SERVER_COLOR)
        arrow((inner, 1.75), (top_inner, 3.4), color)
        side = "right" if number == 0 else "left"
        shift = -0.42 if number == 0 else 0.42
        badge((top_outer + outer) / 2 + shift * 0.75, 2.62, "2", SERVER_COLOR, "white")
        axis.text(
            (top_outer + outer) / 2 + shift * 1.3, 2.62, "global weights", ha=side, va="center", color=SERVER_COLOR
        )
        side, shift = ("left", 0.3) if number == 0 else ("right", -0.3)
        answer = f"$w_{number + 1}$, $n_{number + 1}$, metrics"
        axis.text((top_inner + inner) / 2 + shift, 2.4, answer, ha=side, va="center", color=color, weight="bold")
    axis.text(5, 1.0, "no image\nleaves\na site", ha="center", va="center", color=INK, style="italic", fontsize=10.5)
    figure.tight_layout()
    return figure


LABEL_COLOR, PREDICTION_COLOR = "#00b4a0", "#ff8c42"


def planes(image, label, spacing, title: str = "", channel_names=("T2",)):
    """A volume in three planes through the middle of its mask, a row a channel, the mask as an outline.

    Args:
        image: ``(x, y, z)`` or ``(x, y, z, channels)``, axes towards left, anterior and superior or their opposites.
        label: ``(x, y, z)``; everything above 0 is outlined.
        spacing: voxel size ``(x, y, z)`` in mm, so that the body has its true proportions.
        title: of the figure.
        channel_names: a name a channel.
    """
    image, mask = np.asarray(image), np.asarray(label) > 0
    image = image[..., None] if image.ndim == 3 else image
    inside = np.argwhere(mask)
    center = np.round(inside.mean(axis=0) if len(inside) else np.array(mask.shape) / 2).astype(int)
    views = {"axial": (2, 0, 1), "coronal": (1, 0, 2), "sagittal": (0, 1, 2)}
    figure, axes = plt.subplots(
        image.shape[3],
        3,
        figsize=(10, 3.2 * image.shape[3] + 0.4),
        squeeze=False,
        gridspec_kw={"width_ratios": [mask.shape[view[1]] * spacing[view[1]] for view in views.values()]},
    )
    for row, name, channel in zip(axes, channel_names, np.moveaxis(image, 3, 0), strict=True):
        low, high = np.percentile(channel, (1, 99))
        for axis, (view, (through, across, up)) in zip(row, views.items(), strict=True):
            _slice(axis, np.take(channel, center[through], axis=through), spacing[up] / spacing[across], low, high)
            _outline(axis, np.take(mask, center[through], axis=through), LABEL_COLOR)
            axis.set_title(f"{name}, {view}", loc="left", fontsize=9)
    figure.suptitle(title, fontsize=11, fontweight="bold")
    figure.tight_layout()
    return figure


def case_grid(cases: list[dict], title: str = "", columns: int = 4):
    """Axial slices of several cases with the outlines of mask and prediction.

    Args:
        cases: dictionaries with ``image`` and ``label`` ``(x, y, z)``, ``spacing`` in mm, ``caption`` and optionally
            ``prediction`` ``(x, y, z)`` and ``z``, the slice; by default the one with the largest mask.
        title: of the figure.
        columns: cases a row.
    """
    rows = int(np.ceil(len(cases) / columns))
    size = (2.6 * columns, 3.0 * rows + 0.5)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, case in zip(axes.flat, cases, strict=False):
        image, mask = np.asarray(case["image"]), np.asarray(case["label"]) > 0
        z = case.get("z", int(mask.sum(axis=(0, 1)).argmax()))
        low, high = np.percentile(image, (1, 99))
        _slice(axis, image[:, :, z], case["spacing"][1] / case["spacing"][0], low, high)
        _outline(axis, mask[:, :, z], LABEL_COLOR)
        if "prediction" in case:
            _outline(axis, np.asarray(case["prediction"])[:, :, z] > 0, PREDICTION_COLOR)
        axis.set_title(case["caption"], fontsize=8.5, fontweight="normal")
    if any("prediction" in case for case in cases):
        lines = [Line2D([], [], color=color, lw=2) for color in (LABEL_COLOR, PREDICTION_COLOR)]
        figure.legend(lines, ["mask", "prediction"], loc="outside lower center", ncols=2, fontsize=9)
    if title:
        figure.suptitle(title, fontsize=11, fontweight="bold")
    return figure


def _slice(axis, plane, aspect, low, high):
    axis.imshow(plane.T, cmap="gray", origin="lower", aspect=aspect, vmin=low, vmax=high, interpolation="bilinear")
    axis.set_axis_off()


def _outline(axis, mask, color):
    if mask.any() and not mask.all():
        axis.contour(mask.T.astype(float), levels=[0.5], colors=[color], linewidths=1.4)


def intensity_curves(volumes: dict[str, list[np.ndarray]], title: str, axis_label: str):
    """Distribution of the voxel values of several sites, a line a case, a colour a site.

    Args:
        volumes: site to volumes of any shape.
        title: of the figure.
        axis_label: what the values are, with their unit.
    """
    figure, axis = plt.subplots(figsize=(7, 3))
    for number, (site, arrays) in enumerate(volumes.items()):
        for position, values in enumerate(arrays):
            values = np.asarray(values).ravel()
            edges = np.linspace(*np.percentile(values, (0.5, 99.5)), 60)
            share, _ = np.histogram(values, bins=edges)
            label = site if position == 0 else None
            axis.plot((edges[1:] + edges[:-1]) / 2, share / share.max(), color=site_color(number), lw=1.1, label=label)
    axis.set(xlabel=axis_label, ylabel="share of voxels, peak = 1")
    axis.set_title(title, loc="left")
    axis.legend()
    figure.tight_layout()
    return figure


def example_images(items: list[dict], class_names, columns: int = 10, seed: int = 0) -> dict[str, list[np.ndarray]]:
    """``columns`` images of each class, chosen at random from items with ``image`` and ``label``, for a montage."""
    rows: dict[str, list[np.ndarray]] = {name: [] for name in class_names}
    for index in np.random.default_rng(seed).permutation(len(items)):
        row = rows[class_names[items[index]["label"]]]
        if len(row) < columns:
            row.append(plt.imread(items[index]["image"]))
    return rows


def _draw_mednist_classes():
    from src import mednist

    folder = mednist.find_or_make("generated")
    images = example_images(mednist.read_datalist(folder), mednist.CLASSES, columns=12)
    return class_montage(images, "MedNIST's six classes, as the course draws them: no patients")


def _draw_mednist_partition():
    from src import mednist

    items = mednist.read_datalist(mednist.find_or_make("generated"))
    parts = mednist.split(items)
    sites = [f"site-{number}" for number in range(1, 5)]
    skewed = mednist.site_datalists(parts["training"] + parts["validation"], sites, how="dirichlet", alpha=0.3)
    return partition_bars(mednist.partition_table(skewed), "Four sites with skewed labels: Dirichlet, α = 0.3")


def _draw_mednist_curves():
    from src.jobs import mednist_fedavg

    run = mednist_fedavg().simulate()
    return federated_curves(run, MEDNIST_CURVES)


def _draw_prostate_cases():
    import nibabel as nib

    from src import prostate

    raw = prostate.find_or_make("generated")
    cases = []
    hospitals = prostate.read_sites(raw / "hospitals.json")
    for site, names in hospitals.items():
        for name in names[:2]:
            image, label = nib.load(raw / "imagesTr" / f"{name}.nii.gz"), nib.load(raw / "labelsTr" / f"{name}.nii.gz")
            volume, spacing = image.get_fdata()[..., 0], image.header.get_zooms()[:3]
            cases.append(
                {"image": volume, "label": label.get_fdata(), "spacing": spacing, "caption": f"{site} · {name}"}
            )
    return case_grid(cases[::2] + cases[1::2], "T2 volumes of four hospitals, as the course draws them: no patients")


def _draw_prostate_curves():
    from src import prostate
    from src.jobs import prostate_fedavg

    raw, converted, datalists = prostate.folders("generated")
    prostate.convert(prostate.find_or_make("generated"), converted)
    prostate.make_datalists(converted, datalists, prostate.read_sites(raw / "hospitals.json"))
    return federated_curves(prostate_fedavg().simulate(), PROSTATE_CURVES, PROSTATE_LABELS)


PROSTATE_CURVES = {
    "train_loss": "training loss, each site's own",
    "val_dice": "validation Dice of the received model",
}
PROSTATE_LABELS = {"train_loss": "epoch"}
MEDNIST_CURVES = {
    "train_loss": "training loss, each site's own",
    "val_accuracy": "validation accuracy of the received model",
}
PICTURES = {
    "mednist_classes.png": _draw_mednist_classes,
    "mednist_partition.svg": _draw_mednist_partition,
    "fedavg_flow.svg": fedavg_flow,
    "mednist_curves.svg": _draw_mednist_curves,
    "prostate_cases.png": _draw_prostate_cases,
    "prostate_curves.svg": _draw_prostate_curves,
}


def main(arguments: list[str] | None = None) -> int:
    """Draw pictures for ``figs/``; by default all of them."""
    parser = argparse.ArgumentParser(prog="python -m src.figures", description="Draw the pictures in figs/ again.")
    parser.add_argument("names", nargs="*", choices=[[], *PICTURES], metavar="NAME", help=", ".join(PICTURES))
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent.parent / "figs")
    options = parser.parse_args(arguments)
    plt.switch_backend("agg")
    use_style()
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.names or PICTURES:
        figure = PICTURES[name]()
        # Without a date, the same picture is the same file.
        dated = {"metadata": {"Date": None}} if name.endswith(".svg") else {}
        figure.savefig(options.out / name, facecolor="white", **dated)
        plt.close(figure)
        print(f"drew {options.out / name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
