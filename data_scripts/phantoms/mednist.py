"""Drawn stand-ins for MedNIST, seeded, in its own layout, so that one code path reads both. No patient is in them.

Ellipses, lines and noise, whose place, size and brightness come from anatomy and from the values that the real images show
(https://docs.monai.io/en/stable/apps.html#monai.apps.MedNISTDataset). They say nothing about how well a model would do in a clinic.

An organ is a row of a table (:class:`Shape`), a picture is a few tables that :meth:`Picture.walk` reads. Each number that
is given as a range is drawn anew, so that no two pictures are alike. x grows to the right and y down.
"""

import dataclasses
import functools
import io
import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy import ndimage

from data_scripts.phantoms.common import described
from src.common.errors import CourseError
from src.mednist.card import CARD, SIZE

VERSION = 2
"""Changes whenever the same seed gives other pictures, so that an older folder is not taken for a current one."""

_GRID = 2 * SIZE  # drawn on a finer grid than stored, so that thin bones keep their shape


@dataclasses.dataclass(frozen=True)
class ScannerStyle:
    """How a site's scanners render the same anatomy. All of it varies a little from picture to picture too."""

    name: str  # what tables and figures call it
    gain: float = 1.0  # factor on the contrast; grey values run from 0 to 1
    offset: float = 0.0  # added to every grey value that is not black
    gamma: float = 1.0  # exponent on the grey values; above 1 darkens the middle
    noise: float = 1.0  # noise level, 1 is typical
    blur: float = 0.25  # standard deviation of the point spread, in stored pixels
    shading: float = 0.05  # depth of the smooth brightness drift over the picture


STYLES = (
    ScannerStyle("standard"),
    ScannerStyle("soft", gain=0.92, offset=0.02, gamma=0.9, noise=0.6, blur=0.5, shading=0.08),
    ScannerStyle("sharp", gain=1.08, offset=-0.01, gamma=1.1, noise=1.5, blur=0.0, shading=0.03),
    ScannerStyle("old", gain=0.95, offset=0.01, gamma=1.0, noise=2.2, blur=0.4, shading=0.15),
)

# ---- tables of shapes, and what draws them ----

Number = float | tuple[float, float]  # a pair is a range that the number is drawn from


class Shape(NamedTuple):
    """One row of a table: an ellipse or a line; its place, its size, and what it is made of."""

    tissue: str  # looked up in the picture's own grey values; of "a|b|c" one is drawn
    points: Sequence[tuple[Number, Number]]  # one is the centre of an ellipse; more are the course of a line
    radii: Sequence[Number]  # half-axes of an ellipse; half-width of a line, or half-widths at both ends of each piece
    turn: Number = 0.0  # of an ellipse, in degrees clockwise
    core: tuple[str, float, float] | None = None  # the same form inside: tissue, share of the size, shift to the middle
    sides: bool = False  # draw it twice, mirrored, each side with numbers of its own
    times: Number = 1  # how often
    chance: float = 1.0  # that the row is drawn at all


def _oval(tissue: str, x: Number, y: Number, a: Number, b: Number, turn: Number = 0.0, core=None, **more) -> Shape:
    return Shape(tissue, ((x, y),), (a, b), turn, core, **more)


def _line(tissue: str, points: Sequence[tuple[Number, Number]], *widths: Number, **more) -> Shape:
    return Shape(tissue, points, widths, **more)


class Picture:
    """A canvas of ``(128, 128)`` and the body's coordinates on it: ``u`` to the right, ``v`` down, both about -1…1.

    Between picture and body stand a turn (degrees), a size, a shift and a smooth random warp: pose and individual shape.
    A negative ``aspect`` exchanges left and right.
    """

    def __init__(self, rng, turn=0.0, size=1.0, shift=(0.0, 0.0), warp=0.03, aspect=1.0):
        self.rng, self.shift, self.pixel = rng, tuple(map(float, shift)), 2 / _GRID / size
        cos, sin = math.cos(math.radians(turn)) / size, math.sin(math.radians(turn)) / size
        self.to_body = np.array(((cos / aspect, sin / aspect), (-sin, cos)))
        from_body = np.linalg.inv(self.to_body)
        self.to_picture, self.stretch = from_body.tolist(), float(np.linalg.norm(from_body, 2))
        self.x, self.y = ((np.arange(_GRID) + 0.5) * (2 / _GRID) - 1 - middle for middle in self.shift)
        bend = [warp * self.texture(2.2) for _ in range(2)]
        self.reach = float(np.hypot(*(np.abs(one).max() for one in bend)))  # farthest that the warp moves a pixel
        rows = (a * self.x + b * self.y[:, None] for a, b in self.to_body)
        self.u, self.v = (straight.astype(np.float32) + bent for straight, bent in zip(rows, bend, strict=True))
        self.canvas = np.zeros((_GRID, _GRID), np.float32)

    def texture(self, frequency: float) -> np.ndarray:
        """Smooth random field of about unit spread; ``frequency`` in radians per unit length."""
        angles, phases = self.rng.uniform(0, 2 * np.pi, (2, 5))  # of five waves
        rates = frequency * self.rng.uniform(0.5, 1.5, 5)
        across, down = self.to_body.T @ (rates * np.array((np.cos(angles), np.sin(angles))))
        # A plane wave is one wave across times one down: a small matrix product instead of a sine for each pixel.
        waves_down = np.exp(1j * np.outer(self.y, down)).astype(np.complex64)
        waves_across = np.exp(1j * (np.outer(across, self.x) + phases[:, None])).astype(np.complex64)
        return (waves_down @ waves_across).imag * math.sqrt(2 / 5)

    def cover(self, distance: np.ndarray) -> np.ndarray:
        """Share of each pixel inside a shape, from the signed distance to its edge (negative inside)."""
        return np.minimum(np.maximum(0.5 - distance * (1 / self.pixel), 0), 1)

    def oval(self, centre, radii, turn=0.0, power=2.0, window=...) -> np.ndarray:
        """Signed distance to an ellipse; with ``power`` above 2 it is squarer, as cross-sections of the body are."""
        (x, y), (a, b) = map(float, centre), map(float, radii)
        u, v = self.u[window] - x, self.v[window] - y
        if turn:
            cos, sin = math.cos(math.radians(turn)), math.sin(math.radians(turn))
            u, v = cos * u + sin * v, cos * v - sin * u
        u, v = np.abs(u) / a, np.abs(v) / b
        r = (u**power + v**power) ** (1 / power) + 1e-6
        p, q = (u / r) ** (power - 1) / a, (v / r) ** (power - 1) / b
        return (r - 1) / (np.sqrt(p * p + q * q) + 1e-6)

    def line(self, points, start, end=None, window=...) -> np.ndarray:
        """Signed distance to rounded strokes from point to point, of half-width ``start`` to ``end`` each."""
        distances, growth = [], 0.0 if end is None else float(end - start)
        for (x, y), (x2, y2) in itertools.pairwise(points):
            u, v, du, dv = self.u[window] - float(x), self.v[window] - float(y), float(x2 - x), float(y2 - y)
            along = np.minimum(np.maximum((u * du + v * dv) * (1 / (du * du + dv * dv + 1e-9)), 0), 1)
            u, v = u - along * du, v - along * dv
            distances.append(np.sqrt(u * u + v * v) - (float(start) + along * growth))
        return functools.reduce(np.minimum, distances)

    def patch(self, points, radii, turn=0.0) -> tuple[tuple[slice, ...], np.ndarray]:
        """Rows and columns that hold an ellipse (one point) or a line, and its signed distance there."""
        window, margin = [], (max(radii) + self.reach) * self.stretch + 4 / _GRID
        for (a, b), shift in zip(self.to_picture[::-1], self.shift[::-1], strict=True):
            places = [a * x + b * y + shift for x, y in points]
            low, high = (round((end + 1) * _GRID / 2) for end in (min(places) - margin, max(places) + margin))
            window.append(slice(max(0, low), max(0, high)))
        window = tuple(window)
        if len(points) == 1:
            return window, self.oval(points[0], radii, turn, window=window)
        return window, self.line(points, *radii, window=window)

    def number(self, of: Number) -> float:
        """A number as it is, or one drawn from a range."""
        return self.rng.uniform(*of) if isinstance(of, tuple) else of

    def grey(self, tissue: str, tissues: dict) -> float:
        """Grey value of a tissue, or of one drawn from ``a|b|c``."""
        names = tissue.split("|")
        return self.number(tissues[names[self.rng.integers(len(names))]])

    def walk(self, rows, tissues: dict, origin=(0.0, 0.0), unit=(1.0, 1.0), size=(1.0, 1.0)) -> Iterator:
        """Read a table: yields where each shape is, which share of each pixel there is inside it, and its tissue's grey value.

        The table's (0, 0) lies at ``origin``; its places are multiplied by ``unit`` (across, down), its radii by ``size``.
        """
        for row in rows:
            if self.rng.random() >= row.chance:
                continue
            for side in ((-1, 1) if row.sides else (1,)) * round(self.number(row.times)):
                places = [(self.number(x), self.number(y)) for x, y in row.points]
                points = [(origin[0] + side * unit[0] * x, origin[1] + unit[1] * y) for x, y in places]
                radii = [self.number(one) * factor for one, factor in zip(row.radii, size, strict=False)]
                turn = side * self.number(row.turn)
                for tissue, share, shift in filter(None, ((row.tissue, 1, 0), row.core)):
                    inside = [(x - side * shift * radii[0], y) for x, y in points]
                    window, distance = self.patch(inside, [share * one for one in radii], turn)
                    yield window, self.cover(distance), self.grey(tissue, tissues)

    def paint(self, mask: np.ndarray, grey) -> None:
        """Lay a grey value, or one for each pixel, over the canvas where ``mask`` is 1; mix it in where it is less."""
        self.canvas += mask * (grey - self.canvas)

    def fill(self, rows: Sequence[Shape], tissues: dict, within: np.ndarray | None = None, **place) -> None:
        """Paint a table, one shape over the other, ``within`` a mask; ``place`` as for :meth:`walk`."""
        for window, share, grey in self.walk(rows, tissues, **place):
            view = self.canvas[window]
            view += (share if within is None else share * within[window]) * (grey - view)

    def total(self, rows: Sequence[Shape], tissues: dict, combine=np.add, **place) -> np.ndarray:
        """What shapes add up to, or ``combine`` to: on a radiograph nothing hides what lies behind it."""
        total = np.zeros_like(self.canvas)
        for window, share, grey in self.walk(rows, tissues, **place):
            combine(total[window], share * grey, out=total[window])
        return total


def _down(fine: np.ndarray) -> np.ndarray:
    """From the fine grid to the stored one."""
    rows = fine[::2] + fine[1::2]
    return (rows[:, ::2] + rows[:, 1::2]) / 4


# ---- body CT: painted in Hounsfield units, then windowed ----

_SPINE = (  # processes, arch, body and canal of a vertebra, around the centre of its body
    _line("bone", ((0.05, 0.11), ((0.13, 0.2), (0.1, 0.17))), 0.026, sides=True),
    _line("bone", ((0, 0.15), ((-0.01, 0.01), (0.24, 0.31))), 0.024),
    _oval("bone", 0, 0.12, 0.085, 0.07),
    _oval("bone", 0, 0, 0.115, 0.085, core=("marrow", 0.76, 0)),
    _oval("muscle", 0, 0.12, 0.045, 0.04),
)
_VESSELS = (  # aorta and inferior vena cava, before the spine
    _oval("blood", (0.02, 0.1), -0.15, 0.05, 0.05),
    _oval("mixed", (-0.15, -0.09), -0.14, 0.055, 0.04),
)
_HEART = (  # contrast medium fills its chambers one after the other
    _oval("heart", (0, 0.15), (-0.35, -0.15), (0.24, 0.34), (0.19, 0.27), (15, 50)),
    _oval("mixed", (-0.15, 0.3), (-0.45, -0.05), (0.06, 0.13), (0.06, 0.13), (0, 90), times=3),
)
_COUCH = (_line("couch", [(x, -0.1 * x * x) for x in np.linspace(-0.95, 0.95, 7).tolist()], 0.008, chance=0.8),)
_LIVER = (
    _oval("liver", -0.45, -0.05, (0.5, 0.58), (0.72, 0.9), (-12, 12)),
    _oval("liver", (-0.05, 0.2), -0.38, (0.4, 0.6), (0.3, 0.42), (-25, 0)),
    _oval("vessel", (-0.6, 0), (-0.4, 0.3), (0.05, 0.16), 0.03, (0, 180), times=(1, 4)),
    _oval("spleen", 0.62, 0.3, (0.2, 0.3), (0.3, 0.46), (-35, 5)),
)
_STOMACH = (  # its gas floats up, to the front
    _oval("muscle", 0.45, (-0.35, -0.15), (0.22, 0.34), (0.25, 0.36), (0, 60)),
    _oval("air", 0.42, -0.45, 0.17, 0.14, (-20, 20), chance=0.6),
)
_LIVER_TIP = (_oval("liver", -0.75, -0.05, (0.14, 0.3), (0.35, 0.6), (-10, 15), chance=0.65),)
_KIDNEYS = (  # with the psoas beside the spine, and bowel: a wall around gas, water or contrast medium
    _oval("kidney", (0.42, 0.52), (0.3, 0.5), (0.14, 0.21), (0.12, 0.17), (10, 40), ("sinus", 0.45, 0.3), sides=True),
    _oval("muscle", 0.28, 0.5, 0.09, 0.11, sides=True),
    _oval("gut", (-0.7, 0.75), (-0.75, 0.1), (0.06, 0.14), (0.06, 0.14), (0, 180), ("meal", 0.6, 0), times=(6, 11)),
)
_BACK_MUSCLES = (_oval("muscle", 0.26, 0.93, 0.16, 0.1, -12, sides=True),)
_FAT_INSIDE = (_oval("fat", 0, -0.25, 0.8, 0.6),)
_BOWEL = (_oval("meal|gut", (-0.5, 0.5), (-0.6, 0.1), (0.06, 0.14), (0.06, 0.14), (0, 180), times=(4, 8)),)
_ILIAC_CREST = (((0.78, 0.82), (-0.6, -0.5)), ((0.72, 0.76), (-0.18, -0.1)), ((0.56, 0.6), 0.25), ((0.25, 0.29), 0.6))
_ILIAC_BONES = (  # with the sacrum between them
    _line("bone", _ILIAC_CREST, (0.024, 0.04), core=("marrow", 0.45, 0), sides=True),
    _oval("bone", 0, 0.4, 0.2, 0.1, core=("marrow", 0.65, 0)),
)
_HIPS = (  # with the bladder and the coccyx between them
    _oval("bone", 0.6, 0.08, 0.15, 0.14, core=("marrow", 0.67, 0), sides=True),
    _line("bone", ((0.68, 0.12), (0.8, 0.2)), 0.06, sides=True),
    _line("bone", ((0.42, -0.2), (0.4, 0.33)), 0.035, sides=True),
    _oval("water", 0, -0.12, 0.2, 0.16),
    _oval("bone", 0, 0.45, 0.1, 0.06),
)
_LUNG_VESSELS = _oval("vessel", (0.25, 0.85), (-0.6, 0.6), (0.03, 0.09), 0.025, (-45, 45), sides=True, times=(4, 8))
_TOP_LUNGS = (_oval("lung", 0.26, 0.27, (0.14, 0.16), 0.5, (-8, 4), sides=True), _LUNG_VESSELS)
_ARCH_LUNGS = (_oval("lung", 0.51, 0.03, (0.35, 0.39), (0.86, 0.97), (-8, 4), sides=True), _LUNG_VESSELS)
_LOW_LUNGS = (_oval("lung", 0.55, 0.03, (0.39, 0.44), (0.86, 0.97), (-8, 4), sides=True), _LUNG_VESSELS)
_SHOULDERS = (
    _oval("bone", 0.87, 0.15, 0.1, 0.1, core=("marrow", 0.65, 0), sides=True),  # head of the humerus
    _line("bone", ((0.72, 0.3), (0.43, 0.9)), 0.023, sides=True),  # scapula
    _line("bone", ((0.15, -0.65), ((0.38, 0.7), -0.75)), 0.026, sides=True),  # clavicle
    _oval("air", 0, -0.06, 0.05, 0.045),  # trachea
    _oval("blood", (-0.25, 0.25), (-0.8, 0.2), (0.02, 0.05), (0.02, 0.05), (0, 180), times=5),
)
_MEDIASTINUM = (  # with the sternum, and sometimes arms beside the body
    _oval("muscle|muscle|water", 0, -0.1, 0.14, 0.35),
    _line("bone", ((-0.09, -1.02), (0.09, -1.02)), 0.026),
    _oval("muscle", 1.35, 0.2, 0.12, 0.14, core=("bone", 0.35, 0), sides=True, chance=0.25),
)
_AORTIC_ARCH = (
    _line("blood", ((-0.08, -0.25), (0.13, 0.1)), 0.09, 0.075),
    _oval("mixed", -0.18, -0.25, 0.06, 0.07),  # superior vena cava
    _oval("air", 0, 0.12, 0.05, 0.045),  # trachea
    _line("bone", ((0.95, 0.5), (0.8, 0.8), ((0.5, 0.62), (1, 1.1))), (0.012, 0.02), sides=True),  # scapula
)
_LIVER_DOME = (_oval("liver", -0.5, -0.15, (0.3, 0.42), (0.4, 0.6)),)


class _Level(NamedTuple):
    """A height at which the trunk is cut."""

    share: float  # of the pictures of its class
    filling: str  # tissue of the cavity where no organ is
    organs: tuple  # they grow with the cavity and end at its wall
    parts: tuple  # of fixed size, at places that are shares of the cavity
    spine: tuple = (*_SPINE, *_VESSELS)  # around the vertebra
    ribs: Number = (6, 8)  # strokes a side
    gap: float = 0.35  # angle in front that the ribs leave free, in radians
    form: tuple = (1.0, 1.0)  # factors on the trunk's width and depth


_ABDOMEN = (
    _Level(0.17, "lung", _LIVER, _HEART + _BACK_MUSCLES),
    _Level(0.35, "fat", _LIVER + _STOMACH, _BACK_MUSCLES),
    _Level(0.33, "fat", _LIVER_TIP, _KIDNEYS + _BACK_MUSCLES, ribs=(3, 5), gap=1.2),
    _Level(0.09, "muscle", _FAT_INSIDE, _BOWEL + _ILIAC_BONES, (), 0),
    _Level(0.06, "muscle", _FAT_INSIDE, _BOWEL + _HIPS, (), 0),
)
_CHEST = (
    _Level(0.2, "muscle", _TOP_LUNGS, _SHOULDERS, _SPINE, 0, form=(1.1, 0.75)),
    _Level(0.25, "muscle", _ARCH_LUNGS, _MEDIASTINUM + _AORTIC_ARCH, _SPINE),
    _Level(0.35, "muscle", _LOW_LUNGS, _MEDIASTINUM + _HEART, (*_SPINE, _VESSELS[0])),
    _Level(0.2, "muscle", _LOW_LUNGS + _LIVER_DOME, _MEDIASTINUM + _HEART, (*_SPINE, _VESSELS[0])),
)


def _trunk(rng, levels: Sequence[_Level], zoom: float, axes, contrast: Number) -> np.ndarray:
    """Axial slice of chest or abdomen in Hounsfield units; the back, and with it the spine, is at the bottom.

    ``axes``: the lowest and highest half-axes of the trunk; ``contrast``: what contrast medium adds to blood.
    """
    level = levels[rng.choice(len(levels), p=[one.share for one in levels])]
    picture = Picture(rng, rng.normal(0, 4), zoom, rng.normal(0, 0.055, 2), warp=0.025)
    contrast, bone = picture.number(contrast), rng.uniform(350, 650)
    liver = rng.uniform(60, 120) + 0.3 * contrast
    tissues = {"air": -1000, "lung": -850, "fat": -100, "water": (0, 30), "muscle": (40, 60), "gut": (30, 80)}
    tissues |= {"bone": (0.8 * bone, 1.2 * bone), "marrow": (0.4 * bone, 0.75 * bone)}
    tissues |= {"rib": (0.36 * bone, 1.35 * bone), "couch": (-150, -60)}
    tissues |= {"blood": 50 + contrast, "mixed": (50 + 0.4 * contrast, 50 + contrast), "heart": 50 + 0.3 * contrast}
    tissues |= {"liver": liver, "spleen": (liver - 10, liver + 40), "vessel": (liver - 35, liver + 45)}
    tissues |= {"kidney": (80 + contrast, 120 + contrast), "sinus": (-100, 60), "meal": (-400, 200)}
    half = rng.uniform(*axes) * level.form
    rim = rng.uniform(0.03, 0.11)  # fat under the skin
    skin, inner = picture.oval((0, 0), half, power=2.4), half - rim - 0.065
    picture.canvas -= 1000
    for depth, tissue in ((0, "water"), (0.018, "fat"), (rim, "muscle"), (rim + 0.065, level.filling)):
        cavity = picture.cover(skin + depth)
        picture.paint(cavity, picture.grey(tissue, tissues))
    picture.fill(level.organs, tissues, cavity, unit=inner, size=inner)
    picture.fill(level.parts, tissues, unit=inner)
    picture.fill(_ribs(rng, inner + 0.035, round(picture.number(level.ribs)), level.gap), tissues)
    vertebra = np.full(2, rng.uniform(0.85, 1.15))
    place = (0, inner[1] * rng.uniform(0.62, 0.74))
    picture.fill(level.spine, tissues, origin=place, unit=vertebra, size=vertebra)
    picture.fill(_COUCH, tissues, origin=(0, half[1] + rng.uniform(0.06, 0.2)), unit=(1, rng.uniform(0.4, 1.6)))
    return picture.canvas


def _ribs(rng, axes, count: int, gap: float) -> list[Shape]:
    """Ribs cut obliquely: strokes of unequal length along the chest wall, ``count`` a side, ``gap`` radians free in front."""
    rows = []
    for side in (-1, 1):
        for k in range(count):
            middle = -np.pi / 2 + gap + (k + rng.uniform(0, 1)) / count * (np.pi - 0.25 - gap)
            half = rng.uniform(0.01, 0.07) * (1 + (middle > 0.3) * rng.uniform(0, 1.5))
            points = [(side * axes[0] * math.cos(t), axes[1] * math.sin(t)) for t in (middle - half, middle + half)]
            rows.append(_line("rib", points, (0.013, 0.024)))
    return rows


def _abdomen_ct(rng, style):
    zoom = rng.uniform(1.2, 1.5) if rng.random() < 0.1 else rng.uniform(0.92, 1.14)
    hu = _down(_trunk(rng, _ABDOMEN, zoom, ((0.8, 0.6), (0.96, 0.78)), (0.0, 200.0)))
    hu += rng.normal(0, 9 * style.noise, hu.shape)
    # The published images clip everything below water at one mid-grey value, which differs from series to series.
    return rng.normal(0.398, 0.025) + rng.uniform(0.0011, 0.0019) * np.maximum(hu, 0)


def _chest_ct(rng, style):
    # Stored without averaging: every second sample as it is, with its noise, as the published images show.
    hu = _trunk(rng, _CHEST, rng.uniform(0.88, 1.16), ((0.76, 0.55), (0.92, 0.7)), (20.0, 320.0))[::2, ::2]
    hu = hu + rng.normal(0, rng.uniform(25, 90) * (0.6 + 0.4 * style.noise), hu.shape) * (hu > -300)
    lung = np.clip((-hu - 600) / 200, 0, 1) * np.clip((hu + 950) / 50, 0, 1)
    grey = rng.normal(0.488, 0.025) + rng.uniform(0.0006, 0.00085) * np.maximum(hu + rng.uniform(-20, 40), 0)
    return grey - rng.uniform(0, 0.05) * lung


# ---- head CT ----

_FALX = (_line("falx", ((0, -0.66), (0, -0.3)), 0.009), _line("falx", ((0, 0.35), (0, 0.66)), 0.009))
_FOLD = (_line("falx", ((0, -0.66), (0, 0.66)), 0.012),)
_HORNS = (
    _oval("deep", 0.13, 0.03, 0.075, 0.12, -15, sides=True),  # thalamus
    _line("fluid", ((0.035, -0.06), ((0.08, 0.12), (-0.24, -0.18))), (0.012, 0.03), (0.02, 0.05), sides=True),
    _line("fluid", ((0.12, 0.16), ((0.18, 0.24), (0.24, 0.34))), (0.012, 0.03), sides=True),
    _oval("calcium", 0.15, 0.22, 0.022, 0.03, chance=0.5),  # choroid plexus
    _oval("calcium", -0.15, 0.22, 0.022, 0.03, chance=0.5),
    _line("fluid", ((0.42, -0.12), (0.27, -0.04)), 0.016, sides=True),  # Sylvian fissure
    _line("fluid", ((0, -0.02), (0, 0.09)), 0.012),  # third ventricle
)
_BODIES = (_line("fluid", ((0.09, -0.24), (0.055, -0.08), (0.1, 0.22)), (0.018, 0.05), sides=True),)
_LESION = (_oval("lesion", (-0.28, 0.28), (-0.28, 0.28), (0.05, 0.14), (0.05, 0.14), (0, 90), chance=0.3),)
_FACE = (  # orbits, nose and the wings of the sphenoid; the origin is the front of the skull base
    _oval("fat", 0.2, -0.26, 0.13, 0.16, sides=True),
    _oval("deep", 0.2, -0.33, 0.09, 0.09, sides=True),  # eye
    _line("deep", ((0.19, -0.26), (0.1, -0.1)), 0.018, sides=True),  # optic nerve
    _line("bone", ((0.33, -0.36), (0.36, -0.2), (0.43, -0.05)), (0.02, 0.035), sides=True),  # cheek
    _line("bone", ((0.43, -0.05), (0.25, -0.04), (0.08, (-0.06, 0.06))), (0.018, 0.035), sides=True),
    _oval("air", 0, -0.26, 0.075, 0.26),
    _line("calcium", ((0, -0.05), (0, -0.52)), 0.012),
    _line("calcium", ((0.08, -0.05), (0.04, -0.52)), 0.012, sides=True),
    _oval("air|calcium|bone", (-0.17, 0.17), (-0.3, 0.04), (0.015, 0.045), (0.015, 0.045), times=8),
)
_EARS = (  # petrous bones with their air cells, brain stem, fourth ventricle
    _line("bone", ((0.44, 0.1), (0.27, (0.025, 0.055)), (0.1, -0.03)), (0.02, 0.045), sides=True, chance=0.7),
    _oval("bone", 0.38, 0.1, 0.09, 0.07, sides=True),
    _oval("air", (0.28, 0.43), (0.03, 0.16), (0.012, 0.03), (0.012, 0.03), sides=True, times=(2, 4)),
    _oval("deep", 0, 0.14, 0.11, 0.08),
    _oval("fluid", 0, 0.25, 0.045, 0.025),
)
_JAW = (  # lower face and neck: muscles with fat between them, tongue, jaw, throat, vertebra
    _oval("fat", 0, 0.05, (0.42, 0.5), (0.52, 0.64)),
    _oval("muscle", (0.1, 0.34), (-0.25, 0.5), (0.05, 0.13), (0.05, 0.13), (0, 180), sides=True, times=6),
    _oval("deep", 0, -0.22, 0.22, 0.2),
    _line("bone", ((-0.32, -0.18), (-0.23, -0.37), (0, -0.5), (0.23, -0.37), (0.32, -0.18)), (0.05, 0.08)),
    _oval("air", 0, -0.02, 0.08, 0.05),
    _line("bone", ((0.1, 0.16), (0.2, 0.18)), 0.05, sides=True),
    _oval("bone", 0, 0.16, 0.17, 0.14),
    _oval("brain", 0, 0.2, 0.085, 0.075),
    _line("bone", ((0, 0.3), (0, 0.4)), 0.04),
)
_HEAD_REST = (  # a curved shell, or its two arms
    _line("rest", [(math.sin(t), math.cos(t)) for t in np.linspace(-1.3, 1.3, 12)], 0.014, chance=0.3),
    _line("rest", ((1, 1.7), (1, (0.2, 1))), 0.014, sides=True, chance=0.2),
)
# Share of the slices, size, thickness of the skull relative to the usual, and what is inside.
_HEAD = (
    (0.10, (0.4, 0.7), (2.4, 7.0), ()),
    (0.22, (0.65, 0.9), (1.2, 2.4), _FALX + _FOLD),
    (0.15, (0.88, 1.2), 1.0, _FALX + _BODIES + _LESION),
    (0.23, (0.88, 1.2), 1.0, _FALX + _HORNS + _LESION),
    (0.20, (0.88, 1.2), 1.0, _FACE),
    (0.10, (0.88, 1.2), 1.0, _JAW),
)


def _head_ct(rng, style):
    _, sizes, skull, table = _HEAD[rng.choice(len(_HEAD), p=[row[0] for row in _HEAD])]
    turn = rng.normal(0, 10) if rng.random() < 0.9 else rng.uniform(-100, 100)
    size = rng.uniform(*sizes)
    picture = Picture(rng, turn, size, rng.normal(0, (0.09, 0.1)), warp=0.02 * size, aspect=rng.uniform(0.92, 1.1))
    brain, bone = rng.uniform(0.29, 0.44), rng.uniform(0.06, 0.105) * picture.number(skull)
    tissues = {"air": 0, "fat": 0.06, "brain": brain, "bone": 1, "calcium": (0.5, 1), "rest": (0.25, 0.55)}
    tissues |= {"fluid": brain * rng.uniform(0.25, 0.6), "deep": 1.12 * brain, "muscle": (0.8 * brain, 1.3 * brain)}
    tissues |= {"falx": (0.8 * brain, 1.5 * brain), "lesion": (0.6 * brain, 1.7 * brain)}
    if table is _JAW:
        picture.fill(_JAW, tissues)
    elif table is _FACE:
        front = rng.uniform(-0.14, 0.06)
        cranium = picture.oval((0, 0.14), (0.5, rng.uniform(0.48, 0.56)))
        face = picture.oval((0, front - 0.16), rng.uniform((0.33, 0.4), (0.4, 0.46)))
        picture.paint(picture.cover(np.minimum(cranium, face) - 0.04), 0.25)
        picture.paint(picture.cover(cranium), 1)
        picture.paint(picture.cover(cranium + bone), brain + 0.03 * picture.texture(12))
        before = picture.cover(face) * picture.cover(picture.v - front + 0.35 * np.abs(picture.u))
        picture.paint(before, rng.uniform(0.2, 0.4))
        picture.fill(_FACE, tissues, origin=(0, front))
        picture.fill(_EARS, tissues, origin=(0, front + rng.uniform(0.14, 0.24)))
    else:
        a, b = rng.uniform((0.46, 0.58), (0.54, 0.68))
        outer = picture.oval((0, 0), (a, b))
        outer = np.maximum(outer, picture.oval((0, 0.12), (1.05 * a, 1.12 * b)))  # narrower in front
        picture.paint(picture.cover(outer - 0.03), rng.uniform(0.05, 0.25))  # scalp
        picture.paint(picture.cover(outer), 1)
        lean = rng.uniform(-0.02, 0.02)  # bone thicker in front or behind
        inner = outer + bone + lean * picture.v + (0.03 if bone > 0.2 else 0.006) * picture.texture(8)
        furrows = np.clip(picture.texture(32) - rng.uniform(0, 1.2), 0, 1) * rng.uniform(0, 0.25)
        rind = np.clip(1 + (outer + bone + 0.12) * 9, 0, 1)  # the cortex folds near the bone
        inside = picture.cover(inner)
        picture.paint(inside, brain + 0.03 * picture.texture(14) - furrows * rind)
        picture.fill(table, tissues, inside, origin=(rng.normal(0, 0.02), 0))
    straight = Picture(rng, rng.normal(0, 2), warp=0)  # the head rest does not turn with the head
    rest = straight.total(_HEAD_REST, tissues, unit=rng.uniform((0.6, 0.7), (0.9, 0.95)))
    picture.canvas = np.maximum(picture.canvas, rest)
    image, base = _down(picture.canvas), rng.uniform(0.08, 0.12)
    image += rng.normal(0, 0.02 * style.noise, image.shape) * (image > 0.05)
    return base + (1.03 - base) * image


# ---- radiographs: what the ray passes through adds up ----

# Root and angle from straight up (degrees) of each finger, lengths of its bones from the hand outwards; thumb last.
_FINGERS = (
    ((-0.13, 0.3), (-27, -21), (0.36, 0.2, 0.12, 0.1)),
    ((-0.05, 0.3), (-12, -6), (0.39, 0.25, 0.16, 0.11)),
    ((0.04, 0.3), (1, 7), (0.42, 0.27, 0.18, 0.12)),
    ((0.12, 0.3), (14, 20), (0.42, 0.25, 0.15, 0.11)),
    ((0.15, 0.36), (30, 60), (0.27, 0.2, 0.14)),
)
_FLESH, _BONE = (0.115, 0.09, 0.084, 0.078), (0.04, 0.036, 0.031, 0.026)  # half-widths along a finger
_CARPALS = tuple(
    _oval("carpal", (x - 0.015, x + 0.015), (y - 0.015, y + 0.015), 0.05, 0.048)
    for x, y in ((-0.12, 0.38), (-0.03, 0.34), (0.06, 0.35), (0.14, 0.38), (-0.08, 0.47), (0.02, 0.45), (0.1, 0.46))
)
_LETTERS = (((1, 0, 0), (1, 0, 0), (1, 0, 0), (1, 1, 1)), ((1, 1, 0), (1, 0, 1), (1, 1, 0), (1, 0, 1)))


def _hand(rng, style):
    right = rng.random() < 0.35
    # Most lie straight; some plates were exposed with the arm from the side.
    turn = rng.normal(6, 15) if rng.random() < 0.8 else rng.uniform(-110, 110)
    shift = rng.normal((0, 0.1), 0.07)
    picture = Picture(rng, turn, rng.uniform(0.98, 1.3), shift, 0.012, rng.uniform(0.92, 1.1) * (-1 if right else 1))
    spread, curl, thick, tilt = rng.uniform((0.5, 0, 0.85, -0.2), (1.35, 0.12, 1.15, 0.2))
    # Rods: start, end, and the half-widths there.
    flesh = [((0, 0.5), (tilt, 1.6), 0.2, 0.26)] + [((x, 0.12), (x / 2, 0.38), 0.19, 0.19) for x in (-0.06, 0.06)]
    bones = [((x, 0.6), (x + 0.7 * tilt, 1.6), wide, 0.06) for x, wide in ((0.08, 0.105), (-0.11, 0.06))]
    for start, angle, lengths in _FINGERS:
        start, angle = np.array(start), np.deg2rad(picture.number(angle))
        for k, length in enumerate(lengths):
            # Metacarpals are held together by the palm; phalanges spread, and bend a little out of the plane.
            t = angle * (0.75 + 0.25 * spread) if k == 0 else angle * spread + rng.normal(0, 0.06)
            step = length * (1 - curl * k * rng.uniform(0, 1)) * np.array((np.sin(t), -np.cos(t)))
            flesh.append((start, start + step, *_FLESH[k : k + 2]))
            bones.append((start + 0.08 * step, start + 0.9 * step, _BONE[k], 0.85 * _BONE[k]))
            bones.append((start + 0.1 * step, start + 0.14 * step, 1.25 * _BONE[k], 1.25 * _BONE[k]))
            start = start + step

    soft, bone = np.zeros_like(picture.canvas), np.zeros_like(picture.canvas)
    for layer, rods in ((soft, flesh), (bone, bones)):
        for start, end, *radii in rods:
            radii = [thick * one for one in radii]
            window, distance = picture.patch((start, end), radii)
            inner = np.square(np.clip(1 + distance / radii[0], 0, 1))  # 0 on the axis, 1 at the surface
            # Flesh is round; a bone's hollow shaft is dense at its rim.
            depth = np.sqrt(1 - 0.85 * inner) * (2.8 * radii[0] + 0.42) if layer is soft else 0.72 + 0.28 * inner
            np.maximum(layer[window], picture.cover(distance) * depth, out=layer[window])
    bone = np.maximum(bone, picture.total(_CARPALS, {"carpal": (0.6, 0.95)}, np.maximum))
    depth = rng.uniform(0.45, 0.85) * soft + rng.uniform(0.5, 0.95) * bone * (soft > 0)
    image = _down(1 - np.exp(-depth)) * rng.uniform(1.05, 1.4)
    base = rng.uniform(0.0, 0.1)
    image = base + (1 - base) * image
    if rng.random() < 0.06:  # a faint, under-exposed plate: bright everywhere
        image = rng.uniform(0.45, 0.65) + 0.4 * image
    image *= 1 + 0.5 * base * _down(picture.texture(2))
    if rng.random() < 0.75:  # a lead L or R, for the side
        letter = np.repeat(np.pad(_LETTERS[right], 1), rng.integers(1, 3), axis=0)
        row, column = rng.integers(2, 46), rng.choice([rng.integers(1, 8), rng.integers(50, 56)])
        patch = image[row : row + len(letter), column : column + letter.shape[1]]
        patch[:] = np.where(letter, rng.uniform(0.7, 1), 0.3 * patch)
    if rng.random() < 0.5:  # the collimator's edge
        edge = rng.integers(1, 3)
        image = np.pad(image[edge:-edge, edge:-edge], edge, constant_values=rng.choice([0.0, 0.3, 0.6]))
    return image


_HEART_SHADOW = (  # from the left dome of the diaphragm up: heart, whose apex points to the patient's left; great vessels
    _line("", ((0.02, -0.42), ((0.12, 0.3), -0.05)), 0.13, 0.21),
    _line("", ((0, -1.2), (0.02, 0.8)), (0.1, 0.14), 0.16),
    _oval("", 0.11, -0.62, 0.1, 0.12),
)
_ROOTS = (_line("vessel", ((0.13, (-0.06, 0.06)), ((0.25, 0.53), (-0.35, 0.42))), 0.026, 0.006, sides=True, times=9),)
_RIB = (  # behind it runs outwards and level, at the side it turns down and forward
    _line("back", ((0.12, 0.02), (0.45, -0.02), (0.8, 0.04), (1, 0.14), (0.97, 0.22)), 0.022, sides=True),
    _line("front", ((0.97, 0.22), (0.75, 0.32)), 0.022, sides=True),
)
_SHOULDER_BONES = (  # from the lungs' tops; the trachea is air between them
    _line("clavicle", ((0.08, 0.13), (0.35, (0.03, 0.09)), (0.75, (-0.02, 0.04))), 0.026, sides=True),
    _line("scapula", ((0.76, 0.12), (0.62, 0.6)), 0.06, 0.02, sides=True),
    _line("humerus", ((0.88, 0.12), (1.05, 1.15)), 0.075, 0.05, sides=True),
    _line("trachea", ((0, -0.45), (-0.01, 0.4)), 0.035),
)
_STOMACH_GAS = (_oval("gas", (0.2, 0.45), (0.14, 0.25), (0.05, 0.14), (0.05, 0.14), chance=0.4),)


def _cxr(rng, style):
    shift = rng.normal(0, (0.07, 0.08))
    picture = Picture(rng, rng.normal(0, 4), rng.uniform(0.88, 1.15), shift, 0.02, rng.uniform(0.9, 1.1))
    v, chest = picture.v, rng.uniform(0.84, 1.05)
    parts = [picture.oval((0, 0.9), (chest, 1.5), power=5.0), picture.line(((0, -1.3), (0, -0.6)), 0.2, 0.36)]  # neck
    for side in (-1, 1):
        drop, out = rng.uniform((-0.05, 0.1), (0.12, 0.7))
        parts.append(picture.line(((side * 0.2, -0.68), (side * 0.95, -0.52 + drop)), 0.18, 0.28))  # shoulder
        if rng.random() < 0.75:  # arm
            parts.append(picture.line(((side, -0.45 + drop), (side * (1.05 + out), 0.8)), 0.24, 0.16))
    distance = np.minimum.reduce(parts)
    body = picture.cover(distance)
    # The ray's way through the body gets shorter towards the skin.
    depth = body * np.sqrt(np.clip(-distance / rng.uniform(0.2, 0.5), 0, 1)) * rng.uniform(0.58, 0.84)

    top, bottom = rng.uniform((-0.72, 0.15), (-0.6, 0.5))
    lungs = np.zeros_like(v)
    for side in (-1, 1):
        low, outer = bottom + 0.035 * side + rng.normal(0, 0.03), rng.uniform(0.62, 0.72) * (0.4 + 0.7 * chest)
        middle, floor = side * outer / 2, low + 0.5  # the lung reaches farthest down at its outer edge
        lung = picture.oval((middle, (top + floor) / 2), (outer / 2, (floor - top) / 2), power=2.6)
        dome = middle - 0.03 * side
        lung = np.maximum(lung, -picture.line(((dome, low + 0.34), (dome, 3)), 0.34))  # diaphragm
        lungs += picture.cover(lung) * np.clip(0.35 - lung * 5, 0, 1) * rng.uniform(0.85, 1.0)
    lungs = ndimage.gaussian_filter(np.minimum(lungs, 1), 1.2)
    if rng.random() < 0.2:  # one lung clouded
        cloud = picture.oval((rng.choice([-0.4, 0.4]), rng.uniform(-0.2, 0.3)), (0.3, 0.3))
        lungs *= 1 - rng.uniform(0.3, 0.8) * np.clip(0.6 - cloud * 2.5, 0, 1)
    air = rng.uniform(0.36, 0.6) * (1.1 - 0.25 * np.clip(v - top, 0, 1.4))
    depth -= air * lungs
    depth += np.clip((v - bottom + 0.1) * 2, 0, 1) * body * (1 - lungs) * rng.uniform(0.05, 0.25)  # belly

    heart = np.full(2, rng.uniform(0.8, 1.35))
    shadow = picture.total(_HEART_SHADOW, {"": 1}, np.maximum, origin=(0, bottom), size=heart)
    depth += ndimage.gaussian_filter(shadow, 2.0) * lungs * air * rng.uniform(0.75, 1.0)
    discs = 1 - 0.5 * (np.abs(v / 0.14 % 1 - 0.5) < 0.09)  # between the vertebrae
    depth += picture.total([_line("spine", ((0, -1.3), (0, 1.3)), 0.08)], {"spine": (0.06, 0.16)}) * discs
    depth += lungs * picture.total(_ROOTS, {"vessel": (0.05, 0.17)}, np.maximum, origin=(0, bottom - 0.45))
    pitch, bone, ribs = rng.uniform(0.115, 0.15), rng.uniform(0.03, 0.12), 0
    for k in range(9):
        reach = 0.8 * chest * np.sqrt(max(0.25, 1 - ((k - 6) / 8) ** 2))
        greys = {"back": bone, "front": bone / 2}
        ribs = ribs + picture.total(_RIB, greys, origin=(0, top + 0.07 + pitch * k), unit=(reach, 1))
    depth += ribs * body * (0.35 + 0.65 * lungs)
    greys = {"clavicle": (0.08, 0.16), "scapula": 0.07, "humerus": 0.12, "trachea": (-0.16, -0.05)}
    depth += body * picture.total(_SHOULDER_BONES, greys, origin=(0, top))
    depth -= picture.total(_STOMACH_GAS, {"gas": (0.05, 0.25)}, origin=(0, bottom))
    depth += 0.03 * picture.texture(3) * body
    image = _down(np.maximum(depth, 0)) * rng.uniform(1.05, 1.3)
    if rng.random() < 0.3:  # faint scatter outside the body
        image = np.maximum(image, rng.uniform(0, 0.12))
    if rng.random() < 0.6:  # lead marker
        row, column = rng.integers(1, 12), rng.choice([rng.integers(1, 5), rng.integers(56, 61)])
        image[row : row + rng.integers(2, 4), column : column + rng.integers(2, 4)] = 1
    return image


_CHEST_HEART = (_oval("blood", (0.1, 0.4), (0.35, 0.7), (0.05, 0.2), (0.05, 0.2), (0, 90), times=3, chance=0.5),)


def _breast_mri(rng, style):
    picture = Picture(rng, rng.normal(0, 3), rng.uniform(0.85, 1.08), rng.normal((0, 0.05), (0.06, 0.07)))
    (rx, ry), cy = rng.uniform((0.76, 0.55), (0.98, 0.72)), 0.62
    outer = wall = picture.oval((0, cy), (rx, ry), power=2.6)
    length = rng.uniform(-0.05, 0.55) if rng.random() < 0.85 else rng.uniform(-0.15, 0.0)
    apart, width = rng.uniform((0.36, 0.17), (0.5, 0.27))
    breasts = []
    for side in (-1, 1):
        # Now and then one is missing: after surgery, or because this slice passes above it.
        own = length + rng.normal(0, 0.05) - 0.3 * (rng.random() < 0.08)
        root, tip = (side * apart, cy - ry + 0.15), (side * (apart + rng.normal(0, 0.04)), cy - ry - own + 0.1)
        breast = picture.line((root, tip), width * 1.2, width * rng.uniform(0.85, 1.1))
        # Smooth union: skin runs over from the chest wall to the breast without a kink.
        h = np.clip(0.5 + (outer - breast) / 0.24, 0, 1)
        outer = outer + h * (breast - outer) - 0.12 * h * (1 - h)
        if own > 0.12:
            breasts.append(_oval("", side * apart, tip[1] + 0.12 + 0.35 * own, 0.75 * width, 0.08 + 0.5 * own))
    fat = rng.uniform(0.6, 0.85)
    gland = fat * rng.uniform(0.15, 0.7)
    if rng.random() < 0.1:  # fat suppressed: glands shine instead
        fat, gland = rng.uniform((0.2, 0.5), (0.3, 0.8))
    picture.canvas += picture.cover(outer) * fat
    for breast in breasts:  # glandular tissue: darker strands inside the fat
        strands = np.clip(picture.texture(30) + rng.uniform(-1.2, 0.9), 0, 1)
        picture.fill([breast], {"": gland}, picture.cover(outer + 0.06) * strands)
    rim, dark = rng.uniform((0.07, 0.02), (0.17, 0.12))
    inside = picture.cover(wall + rim)
    picture.paint(inside, dark)
    picture.paint(inside * np.clip(picture.texture(12), 0, 1), dark * rng.uniform(1, 2.5))
    picture.paint(picture.cover(np.abs(wall + rim + 0.03) - 0.03) * 0.7, dark * 2)  # muscle
    if rng.random() < 0.5:  # fat within the wall
        picture.paint(picture.cover(np.abs(wall + rim + 0.09) - 0.012) * rng.uniform(0.2, 0.7), fat * 0.7)
    picture.fill(_CHEST_HEART, {"blood": (0.15, 0.7)}, inside)  # bright and smeared: it beats
    # The receive coil lies in front: signal falls towards the back.
    picture.canvas *= 1 - rng.uniform(0.1, 0.55) * np.clip(picture.v - (cy - ry), 0, 1)
    image = _down(picture.canvas * (1 + 0.08 * picture.texture(4)))
    image[rng.integers(52, 60) :] = 0  # end of the field of view
    return image


# What draws a class, ``(rng, style)`` to grey values of about 0…1, ``(64, 64)``, before the scanner's style is applied;
# counting noise where that is white (CT brings its own); share of pictures stored upside down; share stored as on film.
_CLASSES = {
    "AbdomenCT": (_abdomen_ct, 0, 0.1, 0),
    "BreastMRI": (_breast_mri, 0.02, 0.1, 0),
    "CXR": (_cxr, 0.012, 0, 0.025),
    "ChestCT": (_chest_ct, 0, 0.1, 0),
    "Hand": (_hand, 0.012, 0, 0.025),
    "HeadCT": (_head_ct, 0, 0, 0),
}


def draw(class_name: str, rng: np.random.Generator, style: ScannerStyle | None = None) -> np.ndarray:
    """Draw one picture of a class of ``CARD.labels``: grey values 0…255, ``(64, 64)`` uint8, rows from top to bottom.

    All that varies comes from ``rng``, which draws one of :data:`STYLES`, too, where no scanner is given. A ``CourseError`` for an
    unknown class.
    """
    if class_name not in _CLASSES:
        raise CourseError(f"There is no class {class_name!r} to draw; choose one of {', '.join(_CLASSES)}.")
    style = style or STYLES[rng.integers(len(STYLES))]
    painter, noise, flipped, inverted = _CLASSES[class_name]
    image = painter(rng, style)
    image = image + rng.normal(0, noise * style.noise, image.shape) * np.sqrt(np.clip(image, 0, 1))
    if rng.random() < inverted:  # bone dark
        image = 1 - np.clip(image, 0, 1)
    if rng.random() < flipped:
        image = image[::-1]
    # The scanner's part: point spread, shading, contrast. CT is calibrated to water: less of it shows, and no shading.
    own = 0.5 if class_name.endswith("CT") else 1.0
    blur = style.blur * rng.uniform(0.6, 1.2) * (0.6 + 0.4 * own)
    image = ndimage.gaussian_filter(np.clip(image, 0, 1.2), blur)
    if own == 1:
        x, (a, b, c) = np.linspace(-1, 1, SIZE), rng.normal(0, style.shading, 3)
        image = image * (1 + a * x[:, None] + b * x + c * x[:, None] * x)
    gain, gamma = (np.array((style.gain, style.gamma)) * rng.normal(1, 0.03, 2)) ** own
    image = np.clip(image, 0, 1) ** gamma
    image = np.where(image > 0.01, image * gain + own * style.offset, image)
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)


def parameters(per_class: int, seed: int, styles: Sequence[ScannerStyle] = STYLES) -> dict:
    """What the pictures of :func:`write` depend on, as JSON holds it; a ``CourseError`` for arguments that are not possible."""
    about = described(__name__, VERSION, per_class=per_class, styles=len(styles), seed=seed)
    return about | {"styles": [dataclasses.asdict(style) for style in styles]}


def write(folder: Path, per_class: int, seed: int, styles: Sequence[ScannerStyle] = STYLES) -> None:
    """Write ``per_class`` drawings of each class into an empty folder, as ``<folder>/<class>/000000.jpeg`` and on.

    Picture ``i`` of a class shows ``styles[i % len(styles)]`` and does not depend on ``per_class``. The same arguments
    give the same bytes, on the same versions of NumPy and Pillow. A ``CourseError`` for arguments that are not possible.
    """
    parameters(per_class, seed, styles)
    for number, name in enumerate(CARD.labels):
        (Path(folder) / name).mkdir()
        for i in range(per_class):
            jpeg = io.BytesIO()
            picture = draw(name, np.random.default_rng((seed, number, i)), styles[i % len(styles)])
            Image.fromarray(picture).save(jpeg, "JPEG")
            # Pillow writing to disk by itself would report a full disk as "encoder error -2".
            (Path(folder) / name / f"{i:06d}.jpeg").write_bytes(jpeg.getvalue())
