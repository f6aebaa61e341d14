"""Drawn stand-ins for the Medical Segmentation Decathlon's Task05_Prostate, in its layout. No patient is in them.

Each organ of a male pelvis is an implicit surface in mm, painted over what lies behind it with a soft edge, averaged over the slice
thickness, then seen through one of four scanners and outlined by a rater (:data:`HOSPITALS`). Gland volume, zones, shape and
position follow the real data (Antonelli et al., *The Medical Segmentation Decathlon*, Nature Communications 2022,
doi:10.1038/s41467-022-30695-9). As there, x grows to the patient's right, y to anterior, z to superior."""

import gzip
import itertools
import json
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

from data_scripts.phantoms.common import ANATOMY, described
from src.common.errors import CourseError

VERSION = 4  # changes whenever the same seed draws other voxels, so that an older folder is not taken for a current one
TEST_CASES = 4
# The numbers that the real data set has in imagesTs; the other ones up to 47 are in imagesTr.
_TEST_IDS = [3, 5, 8, 9, 11, 12, 15, 19, 22, 23, 26, 27, 30, 33, 36, 45]
_TRAIN_IDS = [number for number in range(48) if number not in _TEST_IDS]
_ONE_LABEL_EVERY = 16  # two of the 32 real cases carry the whole gland as label 1


class EndorectalCoil(NamedTuple):
    """A receive coil in the rectum, of sensitivity ``floor + peak / (1 + (distance / reach) ** power)``; it flattens the gland."""

    floor: float
    peak: float
    reach: float  # mm
    power: float
    wander: float  # standard deviation in mm of its place sideways


class Outlining(NamedTuple):
    """What a hospital's raters call the gland, in mm: its protocol changes the mask and never the image."""

    margin: float = 0.0  # in the axial plane, beyond the capsule; below 0: inside of it
    apex: float = 0.0  # how far below the gland's lower end the outline begins; below 0: above it
    base: float = 0.0  # how far above its upper end the outline ends; below 0: below it
    rater: float = 0.6  # standard deviation of each case's own smooth displacement; both ends, where raters differ most: twice that


SHARED = Outlining()  # what all hospitals do who have agreed upon it


class HospitalStyle(NamedTuple):  # one scanner, its protocol and its patients, as far as they show in the images
    name: str  # of the site, as in ``hospitals.json``
    description: str  # one line for figures and tables
    share: int  # of all hospitals' cases, relative to the others' shares
    volume: float  # of the gland in mL, median of a log-normal distribution
    own: Outlining
    matrix: int  # voxels along x and y
    spacing: float  # in-plane voxel size in mm
    thickness: float  # slice thickness in mm
    coil: EndorectalCoil | None
    bias: float  # strength of the smooth multiplicative field, as standard deviation of its logarithm
    noise: float  # standard deviation of the noise in both receive channels (Rician magnitude), muscle being 0.2
    blur: float  # in-plane standard deviation of the point spread function in mm
    gamma: float  # contrast: exponent on the relative signal; above 1, dark tissue is darker
    fat: float  # relative signal of fat, the tissue that differs most between echo trains
    scale: float  # intensity that a relative signal of 1 is stored as
    sharpen: float  # share by which the vendor's filter raises what a blur of 1.5 mm would take away
    ghosts: float  # relative brightness, mean over cases, of the copies by motion along the phase-encoding axis
    phase: int  # that axis: 0 is x, 1 is y


# As strongly as a hospital with such a coil differs from others in real data: brightness that falls by more than a decade from the
# back of the gland to its front, suppressed fat, a small field of small voxels.
_COIL = EndorectalCoil(floor=0.05, peak=12.0, reach=14.0, power=3.0, wander=6.0)
# The first outlines the capsule, for a report; the second what may be ablated, which keeps away from capsule and rectum; the third
# what is irradiated, with a margin; the fourth stays within the capsule and leaves out slices where the ends cannot be told.
# fmt: off
HOSPITALS = (
    HospitalStyle(
        "site-1", "3 T, phased-array coil", 6, 60.0, Outlining(0.0, 0.0, 0.0, 0.6),
        144, 1.25, 3.6, None, 0.10, 0.020, 0.55, 1.00, 0.62, 600.0, sharpen=0.0, ghosts=0.03, phase=0,
    ),
    HospitalStyle(
        "site-2", "1.5 T, endorectal coil", 4, 45.0, Outlining(-4.0, -3.0, -3.0, 0.6),
        144, 0.95, 3.6, _COIL, 0.12, 0.030, 0.70, 0.80, 0.03, 2200.0, sharpen=0.0, ghosts=0.02, phase=0,
    ),
    HospitalStyle(
        "site-3", "3 T, thin slices, uneven coil", 5, 85.0, Outlining(5.0, 5.0, 5.0, 0.6),
        160, 1.25, 3.0, None, 0.26, 0.035, 0.60, 1.20, 0.68, 3e4, sharpen=0.4, ghosts=0.04, phase=1,
    ),
    HospitalStyle(
        "site-4", "1.5 T, soft and noisy", 3, 65.0, Outlining(-2.0, -3.0, -3.0, 0.6),
        136, 1.4, 4.0, None, 0.15, 0.050, 0.95, 0.75, 0.72, 1300.0, sharpen=0.0, ghosts=0.06, phase=0,
    ),
)
# fmt: on
# Whose case comes next, over and over, so that numbers are as their shares and each has one of the first four.
_TURNS = [style for turn in range(max(s.share for s in HOSPITALS)) for style in HOSPITALS if turn < style.share]


class _Gland:
    """Gland and transition zone as implicit surfaces in u = x/a, v = y/b and t from -1 (apex) to 1 (base)."""

    def __init__(self, rng: np.random.Generator, style: HospitalStyle):
        # mm³: over all hospitals mean 74, standard deviation 55 mL
        volume = np.clip(rng.lognormal(np.log(style.volume), 0.6), 22, 250) * 1000
        peripheral = np.clip(rng.lognormal(np.log(16), 0.38), 7.5, 33) * 1000
        self.warp = rng.uniform(1.0, 1.45)  # exponent that puts the widest level above (>1) the middle
        self.power = rng.uniform(1.6, 2.4)  # apex-base profile: 2 is an ellipsoid, more is a barrel
        self.square = rng.uniform(2.0, 2.6)  # exponent of the axial section
        self.posterior = rng.uniform(0.70, 0.95)  # depth of the posterior half relative to the anterior one
        self.hollow = rng.uniform(0.20, 0.36) if style.coil else rng.uniform(0.0, 0.22)  # groove in the back
        self.tilt = rng.uniform(-0.05, 0.22)  # how far the base leans forward, in units of b
        order = np.array([0.035, 0.05, 0.035, 0.022, 0.015])[:, None] * [1, 0.7, 0.7, 0.5]
        self.waves = (rng.standard_normal((5, 4)) * order).astype(np.float32)  # harmonics of the outline
        # How fast the peripheral zone thins towards the base: at the sides, behind.
        self.thinning = rng.uniform((0.25, 0.45), (0.65, 0.75))
        self.zone_waves = (rng.standard_normal((3, 4)) * [[0.05], [0.05], [0.04]]).astype(np.float32)
        axis = np.linspace(-1.4, 1.4, 44, dtype=np.float32)
        u, v, t = np.meshgrid(axis, axis, axis / 1.3, indexing="ij")
        v = v - self.tilt * t
        inside = (self.level(u, v, t) < 1) & (np.abs(t) < 1)
        # normalise() maps z to t by s = ((t + 1) / 2)^(1/warp): a cell's height in z is the derivative of that.
        cells = inside * np.clip((t + 1) / 2, 1e-3, None) ** (1 / self.warp - 1) / self.warp
        cells *= (axis[1] - axis[0]) ** 3 / 1.3  # volumes in units of a·b·h
        extent = np.array([np.ptp(axis[inside.any((1, 2))]), np.ptp(axis[inside.any((0, 2))]), 2.0])
        flat = rng.normal(0.56, 0.05) if style.coil else rng.normal(0.79 + 0.10 * np.log(volume / 60_000), 0.07)
        long = rng.normal(0.78, 0.08) if style.coil else rng.normal(1.0, 0.2)
        box = np.array([1.0, np.clip(flat, 0.45, 1.0), np.clip(long, 0.6, 1.3)])
        box *= (volume / (cells.sum() * (box / extent).prod())) ** (1 / 3)
        smallest, largest = (40, 32, max(34, 9.6 * style.thickness)), (90, 81, min(70, 19.4 * style.thickness))
        self.half = np.clip(box, smallest, largest) / extent  # (a, b, h): half-axes in mm
        volume = cells.sum() * self.half.prod()
        peripheral, low, high = min(peripheral, 0.62 * volume, volume - 10_000), 0.02, 0.95
        for _ in range(11):
            self.zone = (low + high) / 2  # share of the outline that is peripheral zone
            share = cells[self.zone_level(u, v, t) >= 1].sum() * self.half.prod()
            low, high = (self.zone, high) if share < peripheral else (low, self.zone)
        self.back = float(-self.half[1] * self.posterior / (1 + self.hollow))  # y of the back in the midline, in mm

    def back_at(self, z: np.ndarray) -> np.ndarray:
        """y of the posterior surface in the midline at each height (mm), held constant beyond apex and base."""
        y = np.linspace(-1.6 * self.half[1], 0.5 * self.half[1], 160)[:, None]
        inside = self.level(*self.normalise(np.zeros_like(y), y, z[None])) < 1
        known = inside.any(0)
        return np.interp(z, z[known], y[inside.argmax(0), 0][known])

    def normalise(self, x, y, z):  # mm to (u, v, t)
        s = (z + self.half[2]) / (2 * self.half[2])
        t = 2 * np.sign(s) * np.abs(s) ** self.warp - 1
        return x / self.half[0], y / self.half[1] - self.tilt * t, t

    def level(self, u, v, t):  # below 1 inside, 1 on the capsule
        v = v + self.hollow * np.exp(-((u / 0.45) ** 2)) * np.clip(v, -1, 0)
        v = np.where(v < 0, v / self.posterior, v)
        return _norm(self.power, _norm(self.square, u, v) / (1 + _harmonics(self.waves, u, v, t)), t)

    def zone_level(self, u, v, t):  # below 1 in the transition zone, to be intersected with the gland
        width = np.clip(1 - np.abs(np.clip(t, -1, 1)) ** self.power, 0.02, 1) ** (1 / self.power)
        lateral = np.clip(self.zone * (0.85 - self.thinning[0] * t), 0.0, 0.75)
        dorsal = np.clip(self.zone * (0.70 - self.thinning[1] * t), 0.0, 0.70)
        u, v = u / width, v / width
        top, bottom = 1.25, self.posterior * (2 * dorsal - 1.02)
        p, q = u / (1.03 - lateral), (v - (top + bottom) / 2) / ((top - bottom) / 2)
        p = p * (1 - 0.28 * np.clip(v + 0.15, 0, 1))  # the crescent gets narrower in front
        return _norm(2.2, p, q) / (1 + _harmonics(self.zone_waves, p, q, t))


def _norm(power, *parts):  # superellipse: 2 is round, more is squarer
    return sum(np.abs(part) ** power for part in parts) ** (1 / power)


def _harmonics(waves, u, v, t):  # low ones of the angle of (u, v), whose weights change linearly with t
    unit = (u + 1j * v).astype(np.complex64)
    unit = unit / (np.abs(unit) + np.float32(1e-6))
    power, total = unit, 0.0
    for in_phase, quadrature, in_slope, quad_slope in waves:
        total = total + (in_phase + in_slope * t) * power.real + (quadrature + quad_slope * t) * power.imag
        power = power * unit
    return total


def _mean_over_slice(volume: np.ndarray) -> np.ndarray:
    return (volume[..., ::2] + volume[..., 1::2]) / 2


class _Canvas:
    """T2 (relative signal) and ADC (10⁻⁶ mm²/s) in mm around the gland, at ``centre`` in the image, sampled twice a slice."""

    def __init__(self, rng: np.random.Generator, style: HospitalStyle, slices: int, centre):
        self.rng, self.shape = rng, (style.matrix, style.matrix, 2 * slices)
        self.step = np.array([style.spacing, style.spacing, style.thickness / 2])
        sides = zip(self.shape, self.step, centre, strict=True)
        self.axes = [((np.arange(n) - (n - 1) / 2) * step - o).astype(np.float32) for n, step, o in sides]
        self.grid = np.meshgrid(*self.axes, indexing="ij")
        self.t2, self.adc = np.zeros((2, *self.shape), np.float32)
        # Nobody's organs are ellipsoids: everything around the gland is drawn in slightly bent coordinates.
        self.bent = [own.copy() for own in self.grid]
        for bent, (length, height) in itertools.product(self.bent, ((95, 2.2), (48, 1.3))):
            k = rng.standard_normal(3)
            k *= 2 * np.pi / length / np.linalg.norm(k)
            phase = sum(np.float32(w) * g for w, g in zip(k, self.grid, strict=True))
            bent += np.float32(height) * np.sin(phase + np.float32(rng.uniform(0, 6.28)))
        self.fine, self.middle, self.coarse = self.texture(2.8), self.texture(6.5), self.texture(13.5)

    def texture(self, *size: float) -> np.ndarray:
        """Smooth noise of unit variance with grains of so many mm, or of so many along x, y and z."""
        steps = self.step / size  # of the canvas, in grains
        coarse = [int(np.ceil((n - 1) * step)) + 2 for n, step in zip(self.shape, steps, strict=True)]
        field = self.rng.standard_normal(coarse).astype(np.float32)
        # Linear interpolation axis by axis: ten times faster than scipy.ndimage.zoom, which treats any zoom alike.
        for axis, (n, step) in enumerate(zip(self.shape, steps, strict=True)):
            low, weight = np.divmod(np.arange(n) * step, 1)
            low, weight = low.astype(int), np.moveaxis(weight.astype(np.float32)[:, None, None], 0, axis)
            field = field.take(low, axis) * (1 - weight) + field.take(low + 1, axis) * weight
        return field / field.std()

    def box(self, centre, reach) -> tuple[slice, ...]:
        """Index slices of the box of half-size ``reach`` mm around ``centre``; empty where it is off the grid."""
        sides = zip(self.axes, centre, reach, strict=True)
        return tuple(slice(*np.searchsorted(axis, [c - r, c + r])) for axis, c, r in sides)

    def paint(self, box, distance, t2, adc, edge: float = 1.2, opacity: float = 1.0) -> None:
        """Blend tissue over the box where ``distance`` is negative, over ``edge`` mm of partial volume."""
        alpha = np.clip(0.5 - distance / np.float32(edge), 0, 1) * np.float32(opacity)
        for channel, value in ((self.t2, t2), (self.adc, adc)):
            view = channel[box]
            view += alpha * (value - view)

    def organ(self, layers, centre, radii, turn=0.0, lean=0.0, square=2.0, limit=None) -> None:
        """Paint an ellipsoid (mm, degrees in the axial plane) from the outside in, by layers (depth in mm, T2, ADC, perhaps edge).
        Each is a number, a field on the canvas, or a pair of a number and the share by which fine grain changes it. ``lean`` shifts
        it along y per mm of z, ``square`` above 2 fills its corners, and nothing of it gets to where ``limit`` is positive."""
        c, s = np.float32(np.cos(np.deg2rad(turn))), np.float32(np.sin(np.deg2rad(turn)))
        a, b, half = radii
        reach = [np.hypot(a * c, b * s), np.hypot(a * s, b * c) + abs(lean) * half, half]
        box = self.box(centre, np.multiply(reach, 1 if square == 2 else 1.42) + 7)
        x, y, z = (g[box] - np.float32(o) for g, o in zip(self.bent, centre, strict=True))
        y = y - np.float32(lean) * z
        parts = [part / np.float32(r) for part, r in zip((c * x + s * y, c * y - s * x, z), radii, strict=True)]
        distance = (_norm(square, *parts) - 1) * np.float32(min(radii))
        if limit is not None:
            distance = np.maximum(distance, limit[box])
        for layer in layers:
            depth, *tissue = (self.cut(one, box) for one in layer)
            self.paint(box, distance + depth, *tissue)

    def cut(self, value, box):  # what a layer of an organ is made of
        if isinstance(value, tuple):
            return value[0] * (1 + value[1] * self.fine[box])
        return value[box] if isinstance(value, np.ndarray) else value

    def whole(self, box, distance) -> np.ndarray:  # known in a box, and far outside elsewhere
        full = np.full(self.shape, 50, np.float32)
        full[box] = distance
        return full


def _draw_pelvis(c: _Canvas, style: HospitalStyle, g: _Gland):
    """Paint everything but the gland, from the outside in."""
    rng, (a, b, _), (x, y, _) = c.rng, g.half, c.bent
    # Body outline, skin, fat lobules between thin septa.
    outline = y - (max(b + 50, 80 + rng.uniform(-9, 8)) - x * x / 480)
    septa = 1 - 0.30 * np.exp(-np.square(c.texture(13.0) / np.float32(0.10)))
    lobules = np.float32(style.fat) * (1 + 0.05 * c.middle + 0.03 * c.fine) * septa
    c.paint(..., outline, 0.30, 900.0)
    c.paint(..., outline + 2.2, lobules, 180.0 + 60 * c.fine)

    # Muscles: fibres show as faint streaks, and a ragged border as interdigitating fat.
    muscle, muscle_adc = 0.20 * (1 + 0.10 * c.fine + 0.12 * c.middle), 1100 * (1 + 0.10 * c.fine)
    marrow, marrow_adc = np.float32(0.69 * style.fat) * (1 + 0.12 * c.middle + 0.06 * c.fine), 420 + 60 * c.fine
    tissues = {
        "muscle": ((0.9 * c.middle, muscle, muscle_adc, 1.8),),
        "bone": ((0, 0.05, 100), (1.7, marrow, marrow_adc, 1.8)),
        "joint": ((0, 0.42, 1300), (1.6, 0.05, 100), (3.0, marrow, marrow_adc, 1.8)),
        "cartilage": ((0, 0.26, 900),),
        "artery": ((-0.9, 0.22, 900), (0, 0.10, 1500)),  # dark, because blood flows out before its echo
        "vein": ((-0.9, 0.22, 900), (0, 0.45, 1500)),
    }
    wall = outline + np.float32(rng.uniform(17, 26))
    # Rectus abdominis: two straps that thin out sideways, a white line between them.
    strap = np.abs(wall) - np.clip(6.5 * (1 - np.square((np.abs(x) - 22) / 21)), -3, 6.5)
    c.paint(..., strap + 0.5 * c.middle, muscle, muscle_adc, edge=1.6)
    anchors = {"wall": max(a + 13, 45 + rng.uniform(-3, 4)), "front": b, "back": -b * g.posterior, "middle": 0.0}
    for tissue, beside, behind, centre, radii, turn, *form in ANATOMY["pelvis"]:
        for side in (-1, 1) if centre[0] else (1,):
            place = np.array([anchors[beside], anchors[behind], 0]) + centre + [*rng.uniform(-1.5, 1.5, 2), 0]
            c.organ(tissues[tissue], place * [side, 1, 1], radii, side * turn, *form)
    _draw_bladder_and_vesicles(c, g)
    _draw_floor_and_rectum(c, style, g)


def _draw_bladder_and_vesicles(c: _Canvas, g: _Gland):
    """The bladder; seminal vesicles and deferent ducts, as bright as the peripheral zone and not part of the gland."""
    rng, (_, b, h) = c.rng, g.half
    radii = rng.uniform((26, 20, 14), (44, 34, 34))
    centre = (rng.uniform(-5, 5), b * 0.35 + rng.uniform(0, 10), h * rng.uniform(0.82, 0.95) + radii[2] * 0.9)
    wall = rng.uniform(2.5, 5)  # trabeculated behind an obstructing gland
    layers = ((-wall, (0.24, 0.15), 1250), (0, 0.98, (2900, 0.014), 2.5))
    c.organ(layers, centre, radii, rng.uniform(-6, 6))

    y0, fluid = -b * g.posterior * 0.6, rng.uniform(0.6, 0.95)
    for side in (-1, 1):
        size, droop = rng.uniform(0.8, 1.25), rng.uniform(-0.35, 0.1)
        # One coiled tube: cut across, it is a bunch of bright grapes in dark skins.
        along = np.linspace(8, 38, 18)
        spots = np.stack([along * size, along * droop, h * 0.80 + 3 + 0.12 * along], axis=1)
        spots = (spots + rng.normal(0, (0.8, 2.2, 3.0), spots.shape)) * [side, 1, 1] + [0, y0, 0]
        grapes = rng.uniform(2.6, 4.3, spots.shape) * [1.1, 1.0, 1.5] * size
        for spot, grape in zip(spots, grapes, strict=True):
            c.organ(((-0.9, 0.20, 1200),), spot, grape)
        for spot, grape in zip(spots, grapes, strict=True):
            c.organ(((0.5, fluid * rng.uniform(0.75, 1.05), (1900, 0.08)),), spot, grape)
        c.organ(((0, 0.16, 1200), (2.4, 0.6, 1500)), (side * 5, y0 + 1, h + 5), (3.6, 3.6, 11), lean=-0.2)


def _draw_floor_and_rectum(c: _Canvas, style: HospitalStyle, g: _Gland):
    """Levator ani as a funnel that hugs the apex; rectum with wall and content, or a balloon with the coil in it."""
    rng, (a, _, h) = c.rng, g.half
    box = c.box((0, g.back - 15, 0), (a + 20, 60, 200))
    (x, y, z), fine, middle = (axis[box] for axis in c.bent), c.fine[box], c.middle[box]
    rise = np.clip((z + h) / (2 * h), -0.4, 1.6)
    funnel_x = np.clip(12 + (a + 7 - 12) * np.sqrt(np.clip(rise + 0.12, 0, None)) * 1.15, 10, None)
    funnel_y = 26 + 14 * np.clip(rise, 0, 1)
    q = (y - (g.back + 4)) / funnel_y
    shell = (_norm(2, x / funnel_x, q) - 1) * np.minimum(funnel_x, funnel_y)
    ends = np.maximum(q - 0.85, (rise - 0.62) * np.float32(2 * h))
    sheet = np.maximum(np.abs(shell) - np.float32(rng.uniform(1.5, 2.3)), ends)
    c.paint(box, sheet, 0.21 * (1 + 0.1 * fine), 1150.0)

    radii = rng.uniform((14, 14), (19, 18)) if style.coil else rng.uniform((9, 7), (19, 14))
    # The anal canal bends back from the apex upwards: below it the gut is narrow and lies further forward.
    shape = 1 - 0.55 * np.clip(-(z + 0.30 * h) / 32, 0, 1)
    wall = 1.6 if style.coil else rng.uniform(2.6, 4.0)
    # The front of the gut lies against the gland, and gives way to the seminal vesicles above.
    follow = np.clip(g.back_at(c.axes[2]), g.back - 2, np.where(c.axes[2] > 0.4 * h, g.back - 3, g.back + 11))
    follow = ndimage.gaussian_filter1d(follow, 2.0).astype(np.float32)
    centre_y = follow - radii[1] * shape - wall - rng.uniform(0.3, 1.6) - np.clip(z - 0.8 * h, 0, None) * 0.35
    px, py = (x - rng.uniform(-3, 3)) / radii[0], (y - centre_y) / radii[1]
    ripple = 0.0 if style.coil else 0.10 * middle
    lumen = (_norm(2, px, py) / shape - 1 + ripple) * np.float32(min(radii))
    meso = rng.uniform(5, 11)  # mesorectal fat
    c.paint(box, np.maximum(lumen - wall - meso, -10 - z), np.float32(style.fat) * (1 + 0.08 * middle), 200.0)
    c.paint(box, lumen - wall - 1.2, 0.24, 1200.0)  # muscularis
    c.paint(box, lumen - wall * 0.5, 0.48 * (1 + 0.15 * fine), 1450.0)  # mucosa
    if style.coil:
        c.paint(box, lumen, 0.04, 20.0)
        c.organ(((0, 0.30, 50),), (0, g.back - radii[1], 0), (1.5, 6, 60))  # the loop of the coil
        return
    content = rng.uniform(-0.2, 1.2)  # share of gas: it rises to the front of a supine patient
    stool = np.float32(rng.uniform(0.28, 0.55)) * (1 + 0.25 * middle + 0.15 * fine)
    c.paint(box, lumen, stool, 900.0 + 150 * middle)
    c.paint(box, np.where(py > 1 - 2 * content, lumen + 0.5, np.float32(9)), 0.03, 30.0)


def _draw_prostate(c: _Canvas, g: _Gland):
    """Paint the gland and its bed."""
    rng, (a, b, h) = c.rng, g.half
    box = c.box((0, 0, 0), (a * 1.35 + 8, b * 1.5 + 8, h + 10))
    x, y, z = (axis[box] for axis in c.grid)
    u, v, t = g.normalise(x, y, z)
    # Distances (mm) to the surfaces of gland and transition zone.
    size = np.float32((a + b) / 2)
    d, zone = (g.level(u, v, t) - 1) * size, (g.zone_level(u, v, t) - 1) * np.float32(0.7) * size
    fine, middle, coarse = c.fine[box], c.middle[box], c.coarse[box]

    def scatter(where, limit, radii, layers):
        """Paint an ellipsoid at a random place of ``where``, cut off where ``limit`` ends."""
        i, j, k = where[rng.integers(len(where))]
        c.organ(layers, (x[i, j, k], y[i, j, k], z[i, j, k]), radii, rng.uniform(0, 180), limit=limit)

    # The bed: fat with bright veins in front (Santorini) and neurovascular bundles at five and seven o'clock.
    veins = np.clip(0.62 + 0.30 * np.sign(fine) * np.sqrt(np.abs(fine)), 0.15, 0.95)
    cushion = np.maximum(d - rng.uniform(3, 6), np.maximum(-y + 0.25 * b, np.abs(x) - 0.85 * a))
    c.paint(box, np.maximum(cushion, z - 0.45 * h), veins, 1300.0, edge=2.0, opacity=0.85)
    bundle, outside = ((0, 0.50 + 0.28 * np.sign(c.fine), 1000),), c.whole(box, 1 - d)
    for side in (-1, 1):
        spot = (side * 0.72 * a, -b * g.posterior * 0.86, -0.05 * h)
        c.organ(bundle, spot, (5.0, 3.6, 0.75 * h), side * 35, limit=outside)
    # Membranous urethra and its sphincter below the apex.
    c.organ(((0, 0.30, 1200), (3.6, 0.62, 1500)), (0, -0.05 * b, -h - 10), (6.5, 6.5, 18))

    # Peripheral zone: bright, with dark septa that run to the capsule and diffuse changes in older glands.
    vigour = rng.uniform(0.62, 0.95)
    septa = np.sin(np.arctan2(v + 0.6, u) * rng.uniform(16, 24) + 1.6 * middle) * np.float32(0.09)
    pz = np.float32(vigour) * (1 + septa + 0.09 * fine + np.float32(rng.uniform(0.05, 0.14)) * coarse)
    pz_adc = 1500 + 450 * (vigour - 0.6) / 0.3 + 130 * middle + 110 * coarse
    c.paint(box, d - 1.1, 0.13, 1000.0, edge=1.0)  # capsule
    c.paint(box, d + 0.5, pz, pz_adc, edge=1.4)

    # Transition zone: stroma with nodules behind a dark surgical capsule.
    inner = np.maximum(zone, d + 0.8)
    c.paint(box, inner - 0.7, 0.16, 1050.0)
    stroma = np.float32(rng.uniform(0.30, 0.42)) * (1 + 0.20 * middle + 0.12 * fine + 0.15 * coarse)
    c.paint(box, inner + 0.7, stroma, 1200.0 + 120 * middle, edge=1.4)
    where, limit = np.argwhere(inner < -2.5), c.whole(box, inner + 0.9)
    room = float((inner < 0).sum() * np.prod(c.step)) / 1000
    for _ in range(int(np.clip(room / 2.2, 4, 34) * rng.uniform(0.6, 1.2)) if len(where) else 0):
        radii = rng.uniform(2.5, 4 + min(room, 90) ** (1 / 3) * 1.6) * rng.uniform(0.75, 1.2, 3)
        level, adc = (rng.uniform(0.5, 0.92), 1650) if rng.random() < 0.55 else (rng.uniform(0.17, 0.32), 950)
        nodule = (1.1, (level, 0.16), (adc, 0.07), 1.4)
        scatter(where, limit, radii, ((0, 0.17, 1000, 1.0), nodule))

    # Anterior fibromuscular stroma, urethra with verumontanum, ejaculatory ducts.
    stroma_front = np.maximum(np.maximum(d + 0.3, 0.62 * b - y - 0.009 * x * x), np.abs(x) - 0.45 * a)
    c.paint(box, stroma_front, 0.17 + 0.02 * fine, 950.0, edge=3.0, opacity=0.9)
    bend = 0.25 * b * np.clip(t, 0, 1)
    ring = _norm(2, x, y - bend + 0.1 * b) - np.float32(3.4)
    c.paint(box, np.maximum(ring, d + 2), 0.24, 1150.0)
    c.paint(box, np.maximum(ring + 1.8, d + 2), 0.72, 1600.0)

    # Lesions: dark, restricted diffusion; most in the peripheral zone.
    where, limit = np.argwhere((d < -3) & (zone > 2.5)), c.whole(box, np.maximum(d + 0.8, 0.5 - zone))
    for _ in range(rng.integers(0, 3) if len(where) else 0):
        radii = rng.uniform(3.5, 7.5, 3) * [1.2, 0.9, 1.2]
        scatter(where, limit, radii, ((0, rng.uniform(0.24, 0.36), rng.uniform(650, 900), 2.4),))


def _outline(c: _Canvas, g: _Gland, how: Outlining, one_label: bool) -> np.ndarray:
    """The mask of the zones as a rater draws it; after the image, which so depends on no protocol."""
    a, b, h = g.half
    box = c.box((0, 0, 0), (a * 1.35 + 14, b * 1.5 + 14, h + 20))
    displacement = how.margin + how.rater * c.texture(16, 16, 5)[box]  # slices are outlined nearly on their own
    low, high = np.array([-h, h]) + c.rng.normal((how.apex, how.base), 2 * how.rater) * [-1, 1]
    x, y, z = (axis[box] for axis in c.grid)
    # The gland's outer thirds are drawn out or shortened to where the outline ends; its middle stays.
    z = np.interp(z, [low - 50, low, -h / 3, h / 3, high, high + 50], [-h - 50, -h, -h / 3, h / 3, h, h + 50])
    u, v, t = g.normalise(x, y, z)
    level, size = g.level(u, v, t) - 1, (a + b) / 2
    steepness = np.hypot(*np.gradient(level, *c.step[:2], axis=(0, 1)))  # what makes mm of a level
    d = np.maximum(level / np.maximum(steepness, 0.3 / size) - displacement, np.abs(z) - h)
    # A voxel belongs to what fills more than half of it.
    zone = np.maximum((g.zone_level(u, v, t) - 1) * 0.7 * size, d)
    shares = (np.clip(0.5 - c.whole(box, distance), 0, 1) for distance in (d, zone))
    whole, inner = (_mean_over_slice(share) > 0.5 for share in shares)
    return np.where(inner & (not one_label), 2, whole).astype(np.uint8)


def _scan(c: _Canvas, style: HospitalStyle, g: _Gland) -> np.ndarray:
    """T2 and ADC as the scanner stores them: (x, y, z, 2) float32."""
    rng, sigma = c.rng, style.blur / style.spacing
    signal = np.clip(_mean_over_slice(c.t2), 0, 1.2) ** style.gamma
    signal = ndimage.gaussian_filter(signal, (sigma, sigma, 0), truncate=3)
    wide = 1.5 / style.spacing
    signal = np.clip(signal + style.sharpen * (signal - ndimage.gaussian_filter(signal, (wide, wide, 0))), 0, None)
    # Breathing repeats itself, so that faint copies lie at a distance on both sides, and come in again at the other edge.
    ghosts, far = style.ghosts * rng.exponential(), int(style.matrix * rng.uniform(0.15, 0.45))
    signal = signal + ghosts / 2 * (np.roll(signal, far, style.phase) + np.roll(signal, -far, style.phase))
    x, y, z = (_mean_over_slice(axis) for axis in c.grid)
    field = np.zeros_like(signal)
    for (power, weight), axis in itertools.product(((1, 1.0), (2, 0.6)), (x, y, z)):
        field += np.float32(rng.standard_normal() * weight) * (axis / 80) ** power
    signal = signal * np.exp(style.bias * (field - field.mean()) / max(float(field.std()), 1e-6))
    if coil := style.coil:
        aside = coil.wander * rng.standard_normal()
        distance = _norm(2, x - aside, y - (g.back - 6), z * 0.55)
        signal = signal * (coil.floor + coil.peak / (1 + (distance / coil.reach) ** coil.power)).astype(np.float32)
    noise = rng.standard_normal((2, *signal.shape)).astype(np.float32) * style.noise
    signal = np.hypot(signal + noise[0], noise[1])

    adc = ndimage.gaussian_filter(_mean_over_slice(c.adc), (1.5 * sigma + 0.5, 1.5 * sigma + 0.5, 0), truncate=3)
    grain = ndimage.gaussian_filter(rng.standard_normal(adc.shape).astype(np.float32), (0.6, 0.6, 0), truncate=2)
    adc = np.clip(adc + grain * (90 + 5500 * style.noise), 0, 3500)
    # Scanners store integers; the real files hold them as floats.
    return np.stack([np.rint(signal * style.scale), np.rint(adc)], axis=-1).astype(np.float32)


def _affine(rng: np.random.Generator, style: HospitalStyle, slices: int) -> np.ndarray:  # of a slightly oblique stack
    turn = Rotation.from_euler("XYZ", [rng.uniform(-20, 0), rng.normal(0, 1.0), rng.normal(0, 1.5)], degrees=True)
    affine = np.eye(4)
    affine[:3, :3] = turn.as_matrix() @ np.diag([style.spacing, style.spacing, style.thickness])
    middle = (np.array([style.matrix, style.matrix, slices]) - 1) / 2
    affine[:3, 3] = [rng.normal(0, 4), rng.normal(-8, 10), rng.uniform(-80, 60)] - affine[:3, :3] @ middle
    return affine


def draw_case(
    rng: np.random.Generator, style: HospitalStyle, one_label: bool = False, how: Outlining = SHARED
) -> tuple[np.ndarray, ...]:
    """Draw one pelvis as one hospital would image it; ``one_label`` marks the whole gland as 1, as two of the real cases do. The
    same ``rng`` draws the same image for any outlining ``how``.
    Returns image (x, y, z, 2) float32: T2 in arbitrary units, ADC in 10⁻⁶ mm²/s; label (x, y, z) uint8: 0 background, 1 peripheral
    zone, 2 transition zone; affine (4, 4) float64: voxel indices to RAS mm."""
    gland = _Gland(rng, style)
    height = 2 * gland.half[2]
    slices = int(np.clip(np.ceil(height / style.thickness) + rng.integers(4, 9), 12, 24))
    edge, slack = style.matrix * style.spacing, (slices * style.thickness - height) / 2
    # More room above than below: the planner wants the seminal vesicles in.
    centre = rng.uniform((-0.04, -0.04, -0.6), (0.04, 0.04, 0.2)) * [edge, edge, slack]
    canvas = _Canvas(rng, style, slices, centre)
    _draw_pelvis(canvas, style, gland)
    _draw_prostate(canvas, gland)
    image, affine = _scan(canvas, style, gland), _affine(rng, style, slices)
    return image, _outline(canvas, gland, how, one_label), affine


def _save(array: np.ndarray, affine: np.ndarray, path: Path):
    image = nib.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm")
    # No file name and no time in the gzip header: the same seed gives the same bytes.
    path.write_bytes(gzip.compress(image.to_bytes(), compresslevel=1, mtime=0))


def parameters(cases: int, seed: int, outlines: str = "shared") -> dict:
    """What the files of :func:`write` depend on; a ``CourseError`` for numbers or outlines that are not possible."""
    if outlines not in ("shared", "own"):
        raise CourseError(
            f"Cannot draw with outlines={outlines!r}; it is 'shared' by all hospitals or each one's 'own'."
        )
    return described(__name__, VERSION, cases=cases, seed=seed) | {"outlines": outlines}


def write(folder: Path, cases: int, seed: int, outlines: str = "shared") -> None:
    """Write a stand-in for Task05_Prostate, with four hospitals in turn, into an empty folder; a seed gives the same bytes again.
    Masks follow one ``shared`` protocol, or each hospital's ``own``; images are the same. Beside what the Decathlon has there is
    ``hospitals.json``, which maps each site to its cases. Raises as :func:`parameters`."""
    parameters(cases, seed, outlines)
    folder, names, hospitals = Path(folder), {"imagesTr": [], "imagesTs": []}, {}
    for part in (*names, "labelsTr"):
        (folder / part).mkdir()
    for number, (part, ids, count) in enumerate((("imagesTr", _TRAIN_IDS, cases), ("imagesTs", _TEST_IDS, TEST_CASES))):
        for index in range(count):
            case = ids[index] if index < len(ids) else 48 + 2 * (index - len(ids)) + number
            file = f"prostate_{case:02d}.nii.gz"
            one_label = index % _ONE_LABEL_EVERY == _ONE_LABEL_EVERY - 5
            rng, style = np.random.default_rng([seed, number, index]), _TURNS[index % len(_TURNS)]
            image, label, affine = draw_case(rng, style, one_label, style.own if outlines == "own" else SHARED)
            _save(image, affine, folder / part / file)
            if part == "imagesTr":
                _save(label, affine, folder / "labelsTr" / file)
                hospitals.setdefault(style.name, []).append(file.removesuffix(".nii.gz"))
            names[part].append(file.removesuffix(".nii.gz"))
    train = names["imagesTr"]
    description = {
        "name": "PROSTATE",
        "description": "GENERATED DRAWINGS, NOT PATIENTS: a stand-in for Task05_Prostate, prostate zones on T2 and ADC",
        "reference": "data_scripts/phantoms/prostate.py",
        "licence": "as the course",
        "release": f"generated {VERSION}",
        "tensorImageSize": "4D",
        "modality": {"0": "T2", "1": "ADC"},
        "labels": {"0": "background", "1": "PZ", "2": "TZ"},
        "numTraining": cases,
        "numTest": TEST_CASES,
        "training": [{"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"} for n in train],
        "test": [f"./imagesTs/{n}.nii.gz" for n in names["imagesTs"]],
    }
    for name, content in (("hospitals.json", hospitals), ("dataset.json", description)):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
