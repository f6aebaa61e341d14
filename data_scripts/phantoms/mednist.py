"""Drawn stand-ins for MedNIST, seeded, in its own layout, so that one code path reads both. No patient is in them.

Ellipses, lines and noise, whose place, size and brightness come from anatomy and from the values that the real images show
(https://docs.monai.io/en/stable/apps.html#monai.apps.MedNISTDataset). An organ is a row of a table (:class:`Shape`), a picture is a
few tables that :meth:`Picture.walk` reads. Each number that is given as a range is drawn anew. x grows to the right and y down."""

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

from data_scripts.phantoms.common import ANATOMY, described
from src.common.errors import CourseError
from src.mednist.card import CARD, SIZE

VERSION = 2  # changes whenever the same seed gives other pictures: an older folder is not taken for a current one
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

Number = float | Sequence[float]  # a pair is a range that the number is drawn from


class Shape(NamedTuple):  # a row of a table
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


def _rows(*names: str) -> list[Shape]:  # of the tables with these names
    rows = [row for name in names for row in ANATOMY["shapes"][name]]
    rows = [(*row, {}) if not isinstance(row[-1], dict) else row for row in rows]
    return [(_oval if kind == "oval" else _line)(*numbers, **more) for kind, *numbers, more in rows]


class Picture:
    """A canvas of ``(128, 128)`` and the body's coordinates on it: ``u`` to the right, ``v`` down, both about -1…1. Between them
    stand a turn (degrees), a size, a shift and a smooth random warp; a negative ``aspect`` exchanges left and right."""

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
            ends = (min(places) - margin, max(places) + margin)
            window.append(slice(*(max(0, round((end + 1) * _GRID / 2)) for end in ends)))
        window = tuple(window)
        if len(points) == 1:
            return window, self.oval(points[0], radii, turn, window=window)
        return window, self.line(points, *radii, window=window)

    def number(self, of: Number) -> float:  # as it is, or drawn from a range
        return self.rng.uniform(*of) if isinstance(of, tuple | list) else of

    def grey(self, tissue: str, tissues: dict) -> float:  # of a tissue, or of one drawn from a|b|c
        names = tissue.split("|")
        return self.number(tissues[names[self.rng.integers(len(names))]])

    def walk(self, rows, tissues: dict, origin=(0.0, 0.0), unit=(1.0, 1.0), size=(1.0, 1.0)) -> Iterator:
        """Read a table: yields where each shape is, which share of each pixel there is inside it, and its tissue's grey value. The
        table's (0, 0) lies at ``origin``; its places are multiplied by ``unit`` (across, down), its radii by ``size``."""
        for row in filter(lambda row: self.rng.random() < row.chance, rows):
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


def _down(fine: np.ndarray) -> np.ndarray:  # from the fine grid to the stored one
    rows = fine[::2] + fine[1::2]
    return (rows[:, ::2] + rows[:, 1::2]) / 4


# Body CT is painted in Hounsfield units, then windowed.
_LEVEL = {"spine": ["spine", "aorta", "vena cava"], "ribs": (6, 8), "gap": 0.35, "form": (1, 1)}
_COUCH = [_line("couch", [(x, -0.1 * x * x) for x in np.linspace(-0.95, 0.95, 7).tolist()], 0.008, chance=0.8)]


def _trunk(rng, levels: Sequence[dict], zoom: float, axes, contrast: Number) -> np.ndarray:
    """Axial slice of chest or abdomen in Hounsfield units, the back at the bottom. ``axes``: the lowest and highest half-axes of
    the trunk; ``contrast``: what contrast medium adds to blood."""
    level = _LEVEL | levels[rng.choice(len(levels), p=[one["share"] for one in levels])]
    picture = Picture(rng, rng.normal(0, 4), zoom, rng.normal(0, 0.055, 2), warp=0.025)
    contrast, bone = picture.number(contrast), rng.uniform(350, 650)
    liver = rng.uniform(60, 120) + 0.3 * contrast
    tissues = {"air": -1000, "lung": -850, "fat": -100, "water": (0, 30), "muscle": (40, 60), "gut": (30, 80)}
    tissues |= {"bone": (0.8 * bone, 1.2 * bone), "marrow": (0.4 * bone, 0.75 * bone)}
    tissues |= {"rib": (0.36 * bone, 1.35 * bone), "couch": (-150, -60)}
    tissues |= {"blood": 50 + contrast, "mixed": (50 + 0.4 * contrast, 50 + contrast), "heart": 50 + 0.3 * contrast}
    tissues |= {"liver": liver, "spleen": (liver - 10, liver + 40), "vessel": (liver - 35, liver + 45)}
    tissues |= {"kidney": (80 + contrast, 120 + contrast), "sinus": (-100, 60), "meal": (-400, 200)}
    half = rng.uniform(*axes) * level["form"]
    rim = rng.uniform(0.03, 0.11)  # fat under the skin
    skin, inner = picture.oval((0, 0), half, power=2.4), half - rim - 0.065
    picture.canvas -= 1000
    for depth, tissue in ((0, "water"), (0.018, "fat"), (rim, "muscle"), (rim + 0.065, level["filling"])):
        cavity = picture.cover(skin + depth)
        picture.paint(cavity, picture.grey(tissue, tissues))
    picture.fill(_rows(*level["organs"]), tissues, cavity, unit=inner, size=inner)
    picture.fill(_rows(*level["parts"]), tissues, unit=inner)
    picture.fill([*_ribs(rng, inner + 0.035, round(picture.number(level["ribs"])), level["gap"])], tissues)
    vertebra = np.full(2, rng.uniform(0.85, 1.15))
    place = (0, inner[1] * rng.uniform(0.62, 0.74))
    picture.fill(_rows(*level["spine"]), tissues, origin=place, unit=vertebra, size=vertebra)
    picture.fill(_COUCH, tissues, origin=(0, half[1] + rng.uniform(0.06, 0.2)), unit=(1, rng.uniform(0.4, 1.6)))
    return picture.canvas


def _ribs(rng, axes, count: int, gap: float) -> Iterator[Shape]:
    """Ribs cut obliquely: strokes of unequal length along the chest wall, ``count`` a side, ``gap`` radians free in front."""
    for side, k in itertools.product((-1, 1), range(count)):
        middle = -np.pi / 2 + gap + (k + rng.uniform(0, 1)) / count * (np.pi - 0.25 - gap)
        half = rng.uniform(0.01, 0.07) * (1 + (middle > 0.3) * rng.uniform(0, 1.5))
        points = [(side * axes[0] * math.cos(t), axes[1] * math.sin(t)) for t in (middle - half, middle + half)]
        yield _line("rib", points, (0.013, 0.024))


def _abdomen_ct(rng, style):
    zoom = rng.uniform(*((1.2, 1.5) if rng.random() < 0.1 else (0.92, 1.14)))
    hu = _down(_trunk(rng, ANATOMY["abdomen"], zoom, ((0.8, 0.6), (0.96, 0.78)), (0.0, 200.0)))
    hu += rng.normal(0, 9 * style.noise, hu.shape)
    # The published images clip everything below water at one mid-grey value, which differs from series to series.
    return rng.normal(0.398, 0.025) + rng.uniform(0.0011, 0.0019) * np.maximum(hu, 0)


def _chest_ct(rng, style):
    # Stored without averaging: every second sample as it is, with its noise, as the published images show.
    hu = _trunk(rng, ANATOMY["chest"], rng.uniform(0.88, 1.16), ((0.76, 0.55), (0.92, 0.7)), (20.0, 320.0))[::2, ::2]
    hu = hu + rng.normal(0, rng.uniform(25, 90) * (0.6 + 0.4 * style.noise), hu.shape) * (hu > -300)
    lung = np.clip((-hu - 600) / 200, 0, 1) * np.clip((hu + 950) / 50, 0, 1)
    grey = rng.normal(0.488, 0.025) + rng.uniform(0.0006, 0.00085) * np.maximum(hu + rng.uniform(-20, 40), 0)
    return grey - rng.uniform(0, 0.05) * lung


_SHELL = _line("rest", [(math.sin(t), math.cos(t)) for t in np.linspace(-1.3, 1.3, 12)], 0.014, chance=0.3)


def _head_ct(rng, style):
    heights = ANATOMY["head"]
    _, sizes, skull, inside = heights[rng.choice(len(heights), p=[row[0] for row in heights])]
    turn = rng.normal(0, 10) if rng.random() < 0.9 else rng.uniform(-100, 100)
    size = rng.uniform(*sizes)
    picture = Picture(rng, turn, size, rng.normal(0, (0.09, 0.1)), warp=0.02 * size, aspect=rng.uniform(0.92, 1.1))
    brain, bone = rng.uniform(0.29, 0.44), rng.uniform(0.06, 0.105) * picture.number(skull)
    tissues = {"air": 0, "fat": 0.06, "brain": brain, "bone": 1, "calcium": (0.5, 1), "rest": (0.25, 0.55)}
    tissues |= {"fluid": brain * rng.uniform(0.25, 0.6), "deep": 1.12 * brain, "muscle": (0.8 * brain, 1.3 * brain)}
    tissues |= {"falx": (0.8 * brain, 1.5 * brain), "lesion": (0.6 * brain, 1.7 * brain)}
    if inside == ["jaw"]:
        picture.fill(_rows("jaw"), tissues)
    elif inside == ["face"]:
        front = rng.uniform(-0.14, 0.06)
        cranium = picture.oval((0, 0.14), (0.5, rng.uniform(0.48, 0.56)))
        face = picture.oval((0, front - 0.16), rng.uniform((0.33, 0.4), (0.4, 0.46)))
        picture.paint(picture.cover(np.minimum(cranium, face) - 0.04), 0.25)
        picture.paint(picture.cover(cranium), 1)
        picture.paint(picture.cover(cranium + bone), brain + 0.03 * picture.texture(12))
        before = picture.cover(face) * picture.cover(picture.v - front + 0.35 * np.abs(picture.u))
        picture.paint(before, rng.uniform(0.2, 0.4))
        picture.fill(_rows("face"), tissues, origin=(0, front))
        picture.fill(_rows("ears"), tissues, origin=(0, front + rng.uniform(0.14, 0.24)))
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
        cavity = picture.cover(inner)
        picture.paint(cavity, brain + 0.03 * picture.texture(14) - furrows * rind)
        picture.fill(_rows(*inside), tissues, cavity, origin=(rng.normal(0, 0.02), 0))
    straight = Picture(rng, rng.normal(0, 2), warp=0)  # the head rest does not turn with the head
    rest = straight.total([_SHELL, *_rows("arms of a head rest")], tissues, unit=rng.uniform((0.6, 0.7), (0.9, 0.95)))
    picture.canvas = np.maximum(picture.canvas, rest)
    image, base = _down(picture.canvas), rng.uniform(0.08, 0.12)
    image += rng.normal(0, 0.02 * style.noise, image.shape) * (image > 0.05)
    return base + (1.03 - base) * image


# Radiographs: what the ray passes through adds up.

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
    for start, angle, lengths in ANATOMY["fingers"]:
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
    shadow = picture.total(_rows("heart shadow"), {"": 1}, np.maximum, origin=(0, bottom), size=heart)
    depth += ndimage.gaussian_filter(shadow, 2.0) * lungs * air * rng.uniform(0.75, 1.0)
    discs = 1 - 0.5 * (np.abs(v / 0.14 % 1 - 0.5) < 0.09)  # between the vertebrae
    depth += picture.total([_line("spine", ((0, -1.3), (0, 1.3)), 0.08)], {"spine": (0.06, 0.16)}) * discs
    depth += lungs * picture.total(_rows("roots"), {"vessel": (0.05, 0.17)}, np.maximum, origin=(0, bottom - 0.45))
    pitch, bone, ribs = rng.uniform(0.115, 0.15), rng.uniform(0.03, 0.12), 0
    for k in range(9):
        reach = 0.8 * chest * np.sqrt(max(0.25, 1 - ((k - 6) / 8) ** 2))
        greys = {"back": bone, "front": bone / 2}
        ribs = ribs + picture.total(_rows("rib"), greys, origin=(0, top + 0.07 + pitch * k), unit=(reach, 1))
    depth += ribs * body * (0.35 + 0.65 * lungs)
    greys = {"clavicle": (0.08, 0.16), "scapula": 0.07, "humerus": 0.12, "trachea": (-0.16, -0.05)}
    depth += body * picture.total(_rows("shoulder bones"), greys, origin=(0, top))
    depth -= picture.total(_rows("stomach gas"), {"gas": (0.05, 0.25)}, origin=(0, bottom))
    depth += 0.03 * picture.texture(3) * body
    image = _down(np.maximum(depth, 0)) * rng.uniform(1.05, 1.3)
    if rng.random() < 0.3:  # faint scatter outside the body
        image = np.maximum(image, rng.uniform(0, 0.12))
    if rng.random() < 0.6:  # lead marker
        row, column = rng.integers(1, 12), rng.choice([rng.integers(1, 5), rng.integers(56, 61)])
        image[row : row + rng.integers(2, 4), column : column + rng.integers(2, 4)] = 1
    return image


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
    picture.fill(_rows("chest heart"), {"blood": (0.15, 0.7)}, inside)  # bright and smeared: it beats
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
    """Draw one picture of a class of ``CARD.labels``: grey values 0…255, ``(64, 64)`` uint8, rows from top to bottom. ``rng`` draws
    one of :data:`STYLES`, too, where no scanner is given. A ``CourseError`` for an unknown class."""
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
    """Write ``per_class`` drawings of each class into an empty folder, as ``<folder>/<class>/000000.jpeg`` and on. Picture ``i`` of
    a class shows ``styles[i % len(styles)]`` and does not depend on ``per_class``. The same arguments give the same bytes, on the
    same versions of NumPy and Pillow. Raises as :func:`parameters`."""
    parameters(per_class, seed, styles)
    for number, name in enumerate(CARD.labels):
        (Path(folder) / name).mkdir()
        for i in range(per_class):
            jpeg, rng = io.BytesIO(), np.random.default_rng((seed, number, i))
            Image.fromarray(draw(name, rng, styles[i % len(styles)])).save(jpeg, "JPEG")
            # Pillow writing to disk by itself would report a full disk as "encoder error -2".
            (Path(folder) / name / f"{i:06d}.jpeg").write_bytes(jpeg.getvalue())
