"""Drawn stand-ins for the Medical Segmentation Decathlon's Task05_Prostate, in its layout. No patient is in them.

A case is a stack of axial slices of a male pelvis, T2-weighted and ADC, drawn from anatomy in millimetres: each organ
is an implicit surface, painted over what lies behind it with a soft edge, averaged over the slice thickness, then seen
through one of four scanners (:data:`HOSPITALS`). Gland volume, zones, shape and position follow the real data set
(Antonelli et al., *The Medical Segmentation Decathlon*, Nature Communications 2022, doi:10.1038/s41467-022-30695-9).

Index axes are the real ones: x grows to the patient's right, y to anterior, z to superior; lengths are millimetres.
"""

import gzip
import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

from src.errors import CourseError

VERSION = 1
"""Changes whenever the same seed draws other voxels, so that an older folder is not taken for a current one."""

TEST_CASES = 4
# The numbers that the real data set has in imagesTr and imagesTs.
_TRAIN_IDS = [0, 1, 2, 4, 6, 7, 10, 13, 14, 16, 17, 18, 20, 21, 24, 25]
_TRAIN_IDS += [28, 29, 31, 32, 34, 35, 37, 38, 39, 40, 41, 42, 43, 44, 46, 47]
_TEST_IDS = [3, 5, 8, 9, 11, 12, 15, 19, 22, 23, 26, 27, 30, 33, 36, 45]
_ONE_LABEL_EVERY = 16  # two of the 32 real cases carry the whole gland as label 1


@dataclass(frozen=True)
class HospitalStyle:
    """One scanner and its protocol, as far as it shows in the images.

    Attributes:
        name: site name, as in ``hospitals.json``.
        description: one line for figures and tables.
        matrix: voxels along x and y.
        spacing: in-plane voxel size in mm.
        thickness: slice thickness in mm.
        coil: an endorectal coil lies in the rectum: it flattens the gland and lights up what is near.
        bias: strength of the smooth multiplicative field, as standard deviation of its logarithm.
        noise: standard deviation of the Gaussian noise in both receive channels (Rician magnitude), muscle being 0.2.
        blur: in-plane standard deviation of the point spread function in mm.
        gamma: contrast: exponent on the relative signal; above 1, dark tissue is darker.
        fat: relative signal of fat, the tissue that differs most between echo trains.
        scale: intensity that a relative signal of 1 is stored as.
    """

    name: str
    description: str
    matrix: int
    spacing: float
    thickness: float
    coil: bool
    bias: float
    noise: float
    blur: float
    gamma: float
    fat: float
    scale: float

    @property
    def field_of_view(self) -> float:
        """Edge of the square image in mm."""
        return self.matrix * self.spacing


HOSPITALS = (
    HospitalStyle(
        name="site-1",
        description="3 T, phased-array coil",
        matrix=144,
        spacing=1.25,
        thickness=3.6,
        coil=False,
        bias=0.1,
        noise=0.02,
        blur=0.55,
        gamma=1.0,
        fat=0.62,
        scale=600.0,
    ),
    HospitalStyle(
        name="site-2",
        description="1.5 T, endorectal coil",
        matrix=128,
        spacing=1.40625,
        thickness=4.0,
        coil=True,
        bias=0.12,
        noise=0.03,
        blur=0.7,
        gamma=0.85,
        fat=0.54,
        scale=2200.0,
    ),
    HospitalStyle(
        name="site-3",
        description="3 T, thin slices, uneven coil",
        matrix=160,
        spacing=1.25,
        thickness=3.0,
        coil=False,
        bias=0.26,
        noise=0.035,
        blur=0.6,
        gamma=1.2,
        fat=0.68,
        scale=30000.0,
    ),
    HospitalStyle(
        name="site-4",
        description="1.5 T, soft and noisy",
        matrix=136,
        spacing=1.4,
        thickness=4.0,
        coil=False,
        bias=0.15,
        noise=0.05,
        blur=0.95,
        gamma=0.75,
        fat=0.72,
        scale=1300.0,
    ),
)
"""Four hospitals; case ``i`` of a data set comes from hospital ``i % 4``."""


# ---------------------------------------------------------------------------------------------------------------------
# The gland: shape in units of its own half-axes, then millimetres.


@dataclass
class _Gland:
    """Gland and transition zone as implicit surfaces in u = x/a, v = y/b and t from -1 (apex) to 1 (base)."""

    half: np.ndarray  # (a, b, h/2): half-axes in mm
    warp: float  # exponent that puts the widest level above (>1) the middle
    power: float  # apex-base profile: 2 is an ellipsoid, more is a barrel
    square: float  # exponent of the axial section
    posterior: float  # depth of the posterior half relative to the anterior one
    hollow: float  # posterior midline groove, deeper where a coil presses
    tilt: float  # how far the base leans forward, in units of b
    waves: np.ndarray  # (5, 4) low-order harmonics of the outline, and how they change with t
    zone: float  # share of the outline that is peripheral zone; solved from its volume
    zone_slope: tuple[float, float]  # how fast the peripheral zone thins towards the base: lateral, posterior
    zone_waves: np.ndarray  # (3, 4)

    @property
    def back(self) -> float:
        """y of the posterior surface in the midline, in mm."""
        return -self.half[1] * self.posterior / (1 + self.hollow)

    def back_at(self, z: np.ndarray) -> np.ndarray:
        """y of the posterior surface in the midline at each height (mm), held constant beyond apex and base."""
        y = np.linspace(-1.6 * self.half[1], 0.5 * self.half[1], 160)[:, None]
        inside = self.level(*self.normalise(np.zeros_like(y), y, z[None])) < 1
        edge = np.where(inside.any(0), y[inside.argmax(0), 0], np.nan)
        known = np.isfinite(edge)
        return np.interp(z, z[known], edge[known])

    def normalise(self, x, y, z):
        s = (z + self.half[2]) / (2 * self.half[2])
        t = 2 * np.sign(s) * np.abs(s) ** self.warp - 1
        return x / self.half[0], y / self.half[1] - self.tilt * t, t

    def level(self, u, v, t):
        """Below 1 inside, 1 on the capsule."""
        v = v + self.hollow * np.exp(-((u / 0.45) ** 2)) * np.clip(v, -1, 0)
        v = np.where(v < 0, v / self.posterior, v)
        radius = np.sqrt(u * u + v * v) + 1e-6
        section = (np.abs(u) ** self.square + np.abs(v) ** self.square) ** (1 / self.square)
        section = section / (1 + _harmonics(self.waves, u / radius, v / radius, t))
        return (section**self.power + np.abs(t) ** self.power) ** (1 / self.power)

    def zone_level(self, u, v, t):
        """Below 1 in the transition zone (to be intersected with the gland)."""
        width = np.clip(1 - np.abs(np.clip(t, -1, 1)) ** self.power, 0.02, 1) ** (1 / self.power)
        lateral = np.clip(self.zone * (0.85 - self.zone_slope[0] * t), 0.0, 0.75)
        dorsal = np.clip(self.zone * (0.70 - self.zone_slope[1] * t), 0.0, 0.70)
        u, v = u / width, v / width
        top, bottom = 1.25, -self.posterior * 1.02 + 2 * dorsal * self.posterior
        p, q = u / (1.03 - lateral), (v - (top + bottom) / 2) / ((top - bottom) / 2)
        radius = np.sqrt(p * p + q * q) + 1e-6
        p = p * (1 - 0.28 * np.clip(v + 0.15, 0, 1))  # the crescent tapers forward
        return (np.abs(p) ** 2.2 + np.abs(q) ** 2.2) ** (1 / 2.2) / (
            1 + _harmonics(self.zone_waves, p / radius, q / radius, t)
        )


def _harmonics(waves, cosine, sine, t):
    """Sum of low-order angular harmonics whose weights change linearly with t."""
    unit = (cosine + 1j * sine).astype(np.complex64)
    power, total = unit, 0.0
    for in_phase, quadrature, in_slope, quad_slope in waves:
        total = total + (in_phase + in_slope * t) * power.real + (quadrature + quad_slope * t) * power.imag
        power = power * unit
    return total


def _draw_gland(rng: np.random.Generator, style: HospitalStyle) -> _Gland:
    """Draw volume, zone volumes and shape from the real distribution; retry shapes until the box is a real one too."""
    volume = float(np.clip(rng.lognormal(4.15, 0.62), 22, 250)) * 1000  # mm³: mean 74, standard deviation 55 mL
    peripheral = float(np.clip(rng.lognormal(np.log(16), 0.38), 7.5, 33)) * 1000
    peripheral = min(peripheral, 0.62 * volume, volume - 10_000)
    axis = np.linspace(-1.4, 1.4, 44, dtype=np.float32)
    u, v, t = np.meshgrid(axis, axis, axis / 1.3, indexing="ij")
    # normalise() maps z to t by s = ((t + 1) / 2)^(1/warp): a cell's height in z is the derivative of that.
    smallest = np.array([40.0, 32.0, max(34.0, 9.6 * style.thickness)])
    largest = np.array([90.0, 81.0, min(70.0, 19.4 * style.thickness)])
    for attempt in range(400):
        order = np.array([0.035, 0.05, 0.035, 0.022, 0.015])[:, None]
        gland = _Gland(
            half=np.ones(3),
            warp=rng.uniform(1.0, 1.45),
            power=rng.uniform(1.6, 2.4),
            square=rng.uniform(2.0, 2.6),
            posterior=rng.uniform(0.70, 0.95),
            hollow=rng.uniform(0.20, 0.36) if style.coil else rng.uniform(0.0, 0.22),
            tilt=rng.uniform(-0.05, 0.22),
            waves=(rng.standard_normal((5, 4)) * order * np.array([1, 0.7, 0.7, 0.5])).astype(np.float32),
            zone=0.3,
            zone_slope=(rng.uniform(0.25, 0.65), rng.uniform(0.45, 0.75)),
            zone_waves=(rng.standard_normal((3, 4)) * [[0.05], [0.05], [0.04]]).astype(np.float32),
        )
        tall = np.clip((t + 1) / 2, 1e-3, None) ** (1 / gland.warp - 1) / (2 * gland.warp)
        inside = (gland.level(u, v - gland.tilt * t, t) < 1) & (np.abs(t) < 1)
        cell = (axis[1] - axis[0]) ** 3 / 1.3
        unit_volume = float((inside * tall).sum() * cell) * 2  # mm³ per a·b·(h/2)
        extent = np.array([np.ptp(axis[inside.any((1, 2))]), np.ptp(axis[inside.any((0, 2))]), 2.0])
        growth = 0.10 * np.log(volume / 60_000)
        flat = rng.normal(0.56, 0.05) if style.coil else rng.normal(0.79 + growth, 0.07)
        long = rng.normal(0.78, 0.08) if style.coil else rng.normal(1.0, 0.15)
        box = np.array([1.0, np.clip(flat, 0.45, 1.0), np.clip(long, 0.6, 1.3)])
        half = box / extent
        half = half * (volume / (unit_volume * half.prod())) ** (1 / 3)
        if (half * extent >= smallest).all() and (half * extent <= largest).all():
            break
        if attempt % 40 == 39:  # a volume that no allowed box holds at this slice thickness
            volume += 0.1 * (60_000 - volume)
    gland.half = half
    low, high = 0.02, 0.95
    v = v - gland.tilt * t
    for _ in range(11):
        gland.zone = (low + high) / 2
        share = float(((inside & (gland.zone_level(u, v, t) >= 1)) * tall).sum() * cell) * 2 * half.prod()
        low, high = (gland.zone, high) if share < peripheral else (low, gland.zone)
    return gland


# ---------------------------------------------------------------------------------------------------------------------
# The canvas: two channels in millimetres, sampled twice per slice.

_SUB = 2  # samples through the slice thickness


def _mean_over_slice(volume: np.ndarray) -> np.ndarray:
    return volume.reshape(*volume.shape[:2], -1, _SUB).mean(-1)


def _axes(style: HospitalStyle, slices: int, centre) -> list[np.ndarray]:
    """Coordinates of the samples along x, y and z, in mm from the gland, which lies at ``centre`` in the image."""
    steps = np.array([style.spacing, style.spacing, style.thickness / _SUB])
    counts = style.matrix, style.matrix, slices * _SUB
    return [
        ((np.arange(n) - (n - 1) / 2) * d - o).astype(np.float32) for n, d, o in zip(counts, steps, centre, strict=True)
    ]


def _box(axes: list[np.ndarray], centre, reach) -> tuple[slice, ...]:
    """Index slices of the box of half-size ``reach`` mm around ``centre``; empty where it is off the grid."""
    return tuple(slice(*np.searchsorted(a, [c - r, c + r])) for a, c, r in zip(axes, centre, reach, strict=True))


def _surfaces(g: _Gland, axes: list[np.ndarray]):
    """Box around the gland; in it (u, v, t) and the distances (mm) to the surfaces of gland and transition zone."""
    a, b, h = g.half
    box = _box(axes, (0, 0, 0), (a * 1.35 + 8, b * 1.5 + 8, h + 10))
    place = g.normalise(*np.meshgrid(*(axis[cut] for axis, cut in zip(axes, box, strict=True)), indexing="ij"))
    size = np.float32((a + b) / 2)
    return box, place, (g.level(*place) - 1) * size, (g.zone_level(*place) - 1) * np.float32(0.7) * size


def _label(axes: list[np.ndarray], box, gland, zone, one_label: bool) -> np.ndarray:
    """Mask (x, y, z) uint8 from distances sampled in the box: a voxel belongs to what fills more than half of it."""
    covers = []
    for distance in (gland, np.maximum(zone, gland)):
        share = np.zeros([len(axis) for axis in axes], np.float32)
        share[box] = np.clip(0.5 - distance, 0, 1)
        covers.append(_mean_over_slice(share) > 0.5)
    whole, inner = covers
    return np.where(inner & (not one_label), 2, whole).astype(np.uint8)


class _Canvas:
    """T2 (relative signal) and ADC (10⁻⁶ mm²/s) on a grid in mm around the gland's centre."""

    def __init__(self, rng, style: HospitalStyle, slices: int, centre):
        self.rng = rng
        self.step = np.array([style.spacing, style.spacing, style.thickness / _SUB])
        self.axes = _axes(style, slices, centre)
        self.shape = tuple(len(a) for a in self.axes)
        self.t2 = np.zeros(self.shape, np.float32)
        self.adc = np.zeros(self.shape, np.float32)
        # Nobody's organs are ellipsoids: everything around the gland is drawn in slightly bent coordinates.
        self.grid = np.meshgrid(*self.axes, indexing="ij")
        bent = []
        for own in self.grid:
            shift = np.zeros(self.shape, np.float32)
            for length, height in ((95, 2.2), (48, 1.3)):
                k = rng.standard_normal(3)
                k *= 2 * np.pi / length / np.linalg.norm(k)
                phase = sum(np.float32(w) * g for w, g in zip(k, self.grid, strict=True))
                shift += np.float32(height) * np.sin(phase + np.float32(rng.uniform(0, 6.28)))
            bent.append(own + shift)
        self.bent = bent

    def texture(self, size: float) -> np.ndarray:
        """Smooth noise of unit variance with grains of ``size`` mm."""
        coarse = [int(np.ceil((n - 1) * d / size)) + 2 for n, d in zip(self.shape, self.step, strict=True)]
        field = self.rng.standard_normal(coarse).astype(np.float32)
        # Linear interpolation axis by axis: ten times faster than scipy.ndimage.zoom, which treats any zoom alike.
        for axis, (n, d) in enumerate(zip(self.shape, self.step, strict=True)):
            place = np.arange(n) * (d / size)
            low = place.astype(int)
            weight = (place - low).astype(np.float32).reshape([-1 if k == axis else 1 for k in range(3)])
            field = field.take(low, axis) * (1 - weight) + field.take(low + 1, axis) * weight
        return field / field.std()

    def ellipsoid(self, centre, radii, turn: float = 0.0, lean: float = 0.0, square: float = 2.0):
        """Box and signed distance (mm, negative inside) of an ellipsoid turned by ``turn`` degrees in the axial plane.

        ``lean``: shift along y per mm of z, for structures that run obliquely.
        """
        angle = np.deg2rad(turn)
        c, s = np.cos(angle), np.sin(angle)
        reach = np.array([np.hypot(radii[0] * c, radii[1] * s), np.hypot(radii[0] * s, radii[1] * c), radii[2]])
        if square > 2:
            reach[:2] = max(radii[:2]) * 1.42
        reach = reach + 7 + np.array([0, abs(lean) * radii[2], 0])
        box = _box(self.axes, centre, reach)
        x, y, z = (g[box] - np.float32(o) for g, o in zip(self.bent, centre, strict=True))
        y = y - np.float32(lean) * z
        p, q = (c * x + s * y) / np.float32(radii[0]), (c * y - s * x) / np.float32(radii[1])
        r = z / np.float32(radii[2])
        if square == 2:
            level = np.sqrt(p * p + q * q + r * r)
        else:
            level = (np.abs(p) ** square + np.abs(q) ** square + np.abs(r) ** square) ** (1 / square)
        return box, (level - 1) * np.float32(min(radii))

    def paint(self, box, distance, t2, adc, edge: float = 1.2, opacity: float = 1.0):
        """Blend tissue over the box where ``distance`` is negative, over ``edge`` mm of partial volume."""
        alpha = np.clip(0.5 - distance / np.float32(edge), 0, 1)
        if opacity != 1:
            alpha = alpha * np.float32(opacity)
        for channel, value in ((self.t2, t2), (self.adc, adc)):
            view = channel[box]
            view += alpha * (value - view)


_ALL = (slice(None), slice(None), slice(None))
MUSCLE, BONE, CORTEX = (0.20, 1100.0), (0.52, 420.0), (0.05, 100.0)


def _draw_pelvis(c: _Canvas, style: HospitalStyle, g: _Gland):
    """Paint everything but the gland, from the outside in."""
    rng = c.rng
    a, b, _ = g.half
    front, back = b, -b * g.posterior
    fat = style.fat
    fine, middle = c.texture(3.0), c.texture(7.0)
    x, y, _ = c.bent
    ax = np.abs(x)

    # Body outline, skin, fat lobules between thin septa.
    belly = max(front + 50, 80 + rng.uniform(-9, 8))
    outline = y - (belly - ax * ax * np.float32(1 / 480))
    septa = 1 - 0.30 * np.exp(-np.square(c.texture(13.0) / np.float32(0.10)))
    lobules = np.float32(fat) * (1 + 0.05 * middle + 0.03 * fine) * septa
    c.paint(_ALL, outline, 0.30, 900.0)
    c.paint(_ALL, outline + 2.2, lobules, 180.0 + 60 * fine)

    # Muscles: fibres show as faint streaks, and a ragged border as interdigitating fat.
    muscle = np.float32(MUSCLE[0]) * (1 + 0.10 * fine + 0.12 * middle)
    muscle_adc = np.float32(MUSCLE[1]) * (1 + 0.10 * fine)

    def muscle_at(centre, radii, turn=0.0, lean=0.0, square=2.0):
        box, d = c.ellipsoid(centre, radii, turn, lean, square)
        c.paint(box, d + 0.9 * middle[box], muscle[box], muscle_adc[box], edge=1.8)

    def bone_at(centre, radii, turn=0.0, lean=0.0, cortex=1.7, square=2.0):
        box, d = c.ellipsoid(centre, radii, turn, lean, square)
        c.paint(box, d, *CORTEX)
        marrow = np.float32(BONE[0] * fat / 0.75) * (1 + 0.12 * middle[box] + 0.06 * fine[box])
        c.paint(box, d + cortex, marrow, BONE[1] + 60 * fine[box], edge=1.8)

    wall = outline + np.float32(rng.uniform(17, 26))
    for side in (-1, 1):  # rectus abdominis: two straps that thin out sideways, a white line between them
        strap = np.abs(wall) - np.clip(6.5 * (1 - np.square((side * x - 22) / 21)), -3, 6.5)
        c.paint(_ALL, strap + 0.5 * middle, muscle, muscle_adc, edge=1.6)
    wide = max(a + 13, 45 + rng.uniform(-3, 4))
    for side in (-1, 1):
        jitter = rng.uniform(-2, 2, 7)
        muscle_at((side * (wide + 14), back - 54 + jitter[0], -5), (58, 20, 80), side * 24)  # gluteus maximus
        muscle_at((side * (wide + 40), front - 2, -34), (30, 26, 42), side * -20)  # obturator externus, quadratus
        muscle_at((side * 60, front + 30 + jitter[1], -8), (25, 11, 50), side * -28, square=2.4)  # pectineus, iliopsoas
        muscle_at((side * 86, front + 26 + jitter[1], 12), (18, 17, 60), side * -15)  # sartorius, rectus femoris
        for offset, radius, signal in ((0, 5.0, 0.10), (-11, 5.8, 0.45)):  # femoral artery (flow void) and vein
            spot = (side * (62 + offset), front + 47 + 0.2 * offset, 10)
            box, d = c.ellipsoid(spot, (radius, radius, 70), lean=-0.15)
            c.paint(box, d - 0.9, 0.22, 900.0)
            c.paint(box, d, signal, 1500.0)
        bone_at((side * (wide + 29), -10 + jitter[2], 16), (20, 35, 44), side * 8)  # acetabulum
        bone_at((side * (wide + 27), back - 12, -26), (14, 19, 32), side * 20)  # ischial tuberosity
        bone_at((side * 36, front + 18 + jitter[3], -9), (35, 9.5, 17), side * -24)  # superior pubic ramus
        bone_at((side * 13.5, front + 17, -13), (10.5, 13, 21), side * -12)  # pubic body
        box, d = c.ellipsoid((side * (wide + 47), 4 + jitter[4], 24), (27, 27, 30))  # femoral head in its cartilage
        c.paint(box, d, 0.42, 1300.0)
        bone_at((side * (wide + 47), 4 + jitter[4], 24), (25.4, 25.4, 28), cortex=1.4)
        muscle_at((side * (wide + 6), 0 + jitter[5], 4), (7.0, 36, 50), side * 5, square=2.5)  # obturator internus
        muscle_at(
            (side * (wide + 9), back - 20 + jitter[6], 0), (5.5, 18, 42), side * 36
        )  # its turn around the ischium
    box, d = c.ellipsoid((0, front + 18, -14), (2.6, 12, 20))  # fibrocartilage of the symphysis
    c.paint(box, d, 0.26, 900.0)

    # Sacrum and coccyx close the ring behind.
    bone_at((rng.uniform(-3, 3), back - 62, 36), (22, 8, 52), lean=-0.3, cortex=1.6)
    for side in (-1, 1):
        muscle_at((side * 24, back - 58, 22), (17, 3.5, 40), side * 18)  # coccygeus

    _draw_bladder(c, g, fine)
    _draw_vesicles(c, g, fine)
    _draw_floor_and_rectum(c, style, g, fine, middle)


def _draw_bladder(c: _Canvas, g: _Gland, fine):
    rng = c.rng
    _, b, h = g.half
    radii = np.array([rng.uniform(26, 44), rng.uniform(20, 34), rng.uniform(14, 34)])
    centre = (rng.uniform(-5, 5), b * 0.35 + rng.uniform(0, 10), h * rng.uniform(0.82, 0.95) + radii[2] * 0.9)
    box, d = c.ellipsoid(centre, radii, turn=rng.uniform(-6, 6))
    wall = rng.uniform(2.5, 5)  # trabeculated behind an obstructing gland
    c.paint(box, d - wall, np.float32(0.24) * (1 + 0.15 * fine[box]), 1250.0)
    c.paint(box, d, 0.98, 2900.0 + 40 * fine[box], edge=2.5)


def _draw_floor_and_rectum(c: _Canvas, style: HospitalStyle, g: _Gland, fine, middle):
    """Levator ani as a funnel that hugs the apex; rectum with wall and content, or a balloon with the coil in it."""
    rng = c.rng
    a, _, h = g.half
    back = g.back
    x, y, z = c.bent
    rise = np.clip((z + h) / (2 * h), -0.4, 1.6)
    funnel_x = np.clip(12 + (a + 7 - 12) * np.sqrt(np.clip(rise + 0.12, 0, None)) * 1.15, 10, None)
    funnel_y = 26 + 14 * np.clip(rise, 0, 1)
    q = (y - (back + 4)) / funnel_y
    shell = (np.sqrt((x / funnel_x) ** 2 + q * q) - 1) * np.minimum(funnel_x, funnel_y)
    sheet = np.maximum(
        np.abs(shell) - np.float32(rng.uniform(1.5, 2.3)), np.maximum(q - 0.85, (rise - 0.62) * np.float32(2 * h))
    )
    c.paint(_ALL, sheet, np.float32(0.21) * (1 + 0.1 * fine), 1150.0)

    widths, depths = ((19, 24), (14, 18)) if style.coil else ((9, 19), (7, 14))
    radii = rng.uniform(*widths), rng.uniform(*depths)
    # The anal canal bends back from the apex upwards: below it the gut is narrow and lies further forward.
    bend = np.clip(-(z + 0.30 * h) / 32, 0, 1.3)
    shape = 1 - 0.55 * np.clip(bend, 0, 1)
    wall = 1.6 if style.coil else rng.uniform(2.6, 4.0)
    # The front of the gut lies against the gland, and gives way to the seminal vesicles above.
    follow = np.clip(g.back_at(c.axes[2]), back - 2, np.where(c.axes[2] > 0.4 * h, back - 3, back + 11))
    follow = ndimage.gaussian_filter1d(follow, 2.0).astype(np.float32)
    centre_y = follow - radii[1] * shape - wall - rng.uniform(0.3, 1.6) - np.clip(z - 0.8 * h, 0, None) * 0.35
    px, py = (x - rng.uniform(-3, 3)) / radii[0], (y - centre_y) / radii[1]
    ripple = 0.0 if style.coil else 0.10 * middle
    lumen = (np.sqrt(px * px + py * py) / shape - 1 + ripple) * np.float32(min(radii))
    meso = rng.uniform(5, 11)  # mesorectal fat
    c.paint(_ALL, np.maximum(lumen - wall - meso, -10 - z), np.float32(style.fat) * (1 + 0.08 * middle), 200.0)
    c.paint(_ALL, lumen - wall - 1.2, np.float32(0.24), 1200.0)  # muscularis
    c.paint(_ALL, lumen - wall * 0.5, np.float32(0.48) * (1 + 0.15 * fine), 1450.0)  # mucosa
    if style.coil:
        c.paint(_ALL, lumen, 0.04, 20.0)
        box, d = c.ellipsoid((0, float(back - radii[1]), 0), (1.5, 6, 60))  # the loop of the coil
        c.paint(box, d, 0.30, 50.0)
        return
    content = rng.uniform(-0.2, 1.2)  # share of gas: it rises to the front of a supine patient
    stool = np.float32(rng.uniform(0.28, 0.55)) * (1 + 0.25 * middle + 0.15 * fine)
    c.paint(_ALL, lumen, stool, 900.0 + 150 * middle)
    gas = np.where(py > 1 - 2 * content, lumen + 0.5, np.float32(9))
    c.paint(_ALL, gas, 0.03, 30.0)


def _draw_vesicles(c: _Canvas, g: _Gland, fine):
    """Seminal vesicles and deferent ducts: as bright as the peripheral zone, and not part of the gland."""
    rng = c.rng
    _, b, h = g.half
    y0 = -b * g.posterior * 0.6
    fluid = rng.uniform(0.6, 0.95)
    for side in (-1, 1):
        size, droop = rng.uniform(0.8, 1.25), rng.uniform(-0.35, 0.1)
        # One coiled tube: cut across, it is a bunch of bright grapes in dark skins.
        bunch = []
        for along in np.linspace(8, 38, 18):
            spot = np.array([along, along * droop, h * 0.80 + 3 + 0.12 * along]) * [size, 1, 1]
            spot += rng.normal(0, 1, 3) * [0.8, 2.2, 3.0]
            bunch.append((spot * [side, 1, 1] + [0, y0, 0], rng.uniform(2.6, 4.3, 3) * [1.1, 1.0, 1.5] * size))
        for spot, radii in bunch:
            box, d = c.ellipsoid(spot, radii)
            c.paint(box, d - 0.9, 0.20, 1200.0)
        for spot, radii in bunch:
            box, d = c.ellipsoid(spot, radii)
            c.paint(box, d + 0.5, np.float32(fluid * rng.uniform(0.75, 1.05)), 1900.0 + 150 * fine[box])
        box, d = c.ellipsoid((side * 5, y0 + 1, h + 5), (3.6, 3.6, 11), lean=-0.2)
        c.paint(box, d, 0.16, 1200.0)
        c.paint(box, d + 2.4, 0.6, 1500.0)


def _draw_prostate(c: _Canvas, g: _Gland, one_label: bool) -> np.ndarray:
    """Paint the gland and its bed, and return the mask of its zones."""
    rng = c.rng
    a, b, h = g.half
    back = -b * g.posterior
    box, (u, v, t), d, zone = _surfaces(g, c.axes)
    x, y, z = (axis[box] for axis in c.grid)
    grain = c.texture(2.6)
    fine, middle, coarse = grain[box], c.texture(6.0)[box], c.texture(14.0)[box]

    def on_canvas(distance):
        """The distance where it is known, and far outside elsewhere, so that other boxes can be cut to it."""
        full = np.full(c.shape, 50, np.float32)
        full[box] = distance
        return full

    # The bed: fat with bright veins in front (Santorini) and neurovascular bundles at five and seven o'clock.
    veins = np.clip(0.62 + 0.30 * np.sign(fine) * np.sqrt(np.abs(fine)), 0.15, 0.95)
    cushion = np.maximum(d - rng.uniform(3, 6), np.maximum(-y + 0.25 * b, np.abs(x) - 0.85 * a))
    c.paint(box, np.maximum(cushion, z - 0.45 * h), veins, 1300.0, edge=2.0, opacity=0.85)
    vessels, surface = np.sign(c.texture(2.4)), on_canvas(d)
    for side in (-1, 1):
        spot = (side * 0.72 * a, back * 0.86, -0.05 * h)
        bundle, e = c.ellipsoid(spot, (5.0, 3.6, 0.75 * h), turn=side * 35)
        e = np.maximum(e, 1 - surface[bundle])
        c.paint(bundle, e, 0.50 + 0.28 * vessels[bundle], 1000.0, opacity=0.9)

    # Membranous urethra and its sphincter below the apex.
    tube, e = c.ellipsoid((0, -0.05 * b, -h - 10), (6.5, 6.5, 18))
    c.paint(tube, e, 0.30, 1200.0)
    c.paint(tube, e + 3.6, 0.62, 1500.0)

    # Peripheral zone: bright, with dark septa that run to the capsule and diffuse changes in older glands.
    vigour = rng.uniform(0.62, 0.95)
    angle = np.arctan2(v + 0.6, u)
    septa = np.sin(angle * rng.uniform(16, 24) + 1.6 * middle) * np.float32(0.09)
    pz = np.float32(vigour) * (1 + septa + 0.09 * fine + np.float32(rng.uniform(0.05, 0.14)) * coarse)
    pz_adc = 1500 + 450 * (vigour - 0.6) / 0.3 + 130 * middle + 110 * coarse
    c.paint(box, d - 1.1, 0.13, 1000.0, edge=1.0)  # capsule
    c.paint(box, d + 0.5, pz, pz_adc, edge=1.4)

    # Transition zone: stroma with nodules behind a dark surgical capsule.
    inner = np.maximum(zone, d + 0.8)
    c.paint(box, inner - 0.7, 0.16, 1050.0, edge=1.2)
    stroma = np.float32(rng.uniform(0.30, 0.42)) * (1 + 0.20 * middle + 0.12 * fine + 0.15 * coarse)
    c.paint(box, inner + 0.7, stroma, 1200.0 + 120 * middle, edge=1.4)
    candidates = np.argwhere(inner < -2.5)
    if len(candidates):
        border = on_canvas(inner)
        room = float((inner < 0).sum() * np.prod(c.step)) / 1000
        for _ in range(int(np.clip(room / 2.2, 4, 34) * rng.uniform(0.6, 1.2))):
            i, j, k = candidates[rng.integers(len(candidates))]
            radius = rng.uniform(2.5, 4 + min(room, 90) ** (1 / 3) * 1.6)
            centre = np.array([x[i, j, k], y[i, j, k], z[i, j, k]])
            ball, e = c.ellipsoid(centre, radius * rng.uniform(0.75, 1.2, 3), turn=rng.uniform(0, 180))
            e = np.maximum(e, border[ball] + 0.9)
            glandular = rng.random() < 0.55
            level = rng.uniform(0.5, 0.92) if glandular else rng.uniform(0.17, 0.32)
            c.paint(ball, e, 0.17, 1000.0, edge=1.0)
            value = np.float32(level) * (1 + 0.16 * grain[ball])
            c.paint(ball, e + 1.1, value, (1650.0 if glandular else 950.0) + 90 * grain[ball], edge=1.4)

    # Anterior fibromuscular stroma, urethra with verumontanum, ejaculatory ducts.
    stroma_front = np.maximum(np.maximum(d + 0.3, 0.62 * b - y - 0.009 * x * x), np.abs(x) - 0.45 * a)
    c.paint(box, stroma_front, 0.17 + 0.02 * fine, 950.0, edge=3.0, opacity=0.9)
    bend = 0.25 * b * np.clip(t, 0, 1)
    ring = np.sqrt(x * x + (y - bend + 0.1 * b) ** 2) - np.float32(3.4)
    c.paint(box, np.maximum(ring, d + 2), 0.24, 1150.0)
    c.paint(box, np.maximum(ring + 1.8, d + 2), 0.72, 1600.0)

    # Lesions: dark, restricted diffusion; most in the peripheral zone.
    candidates = np.argwhere((d < -3) & (zone > 2.5))
    peripheral = on_canvas(np.maximum(d + 0.8, 0.5 - zone))
    for _ in range(rng.integers(0, 3) if len(candidates) else 0):
        i, j, k = candidates[rng.integers(len(candidates))]
        centre = (x[i, j, k], y[i, j, k], z[i, j, k])
        spot, e = c.ellipsoid(centre, rng.uniform(3.5, 7.5, 3) * [1.2, 0.9, 1.2], turn=rng.uniform(0, 180))
        e = np.maximum(e, peripheral[spot])
        c.paint(spot, e, rng.uniform(0.24, 0.36), rng.uniform(650, 900), edge=2.4)
    return _label(c.axes, box, d, zone, one_label)


# ---------------------------------------------------------------------------------------------------------------------
# The scanner.


def _scan(c: _Canvas, style: HospitalStyle, g: _Gland) -> np.ndarray:
    """T2 and ADC as the scanner stores them: (x, y, z, 2) float32."""
    rng = c.rng
    sigma = style.blur / style.spacing
    signal = np.clip(_mean_over_slice(c.t2), 0, 1.2) ** style.gamma
    signal = ndimage.gaussian_filter(signal, (sigma, sigma, 0), truncate=3)
    x, y, z = (_mean_over_slice(axis) for axis in c.grid)
    field = np.zeros_like(signal)
    for power, weight in ((1, 1.0), (2, 0.6)):
        for axis in (x, y, z):
            field += np.float32(rng.standard_normal() * weight) * (axis / 80) ** power
    signal = signal * np.exp(style.bias * (field - field.mean()) / max(float(field.std()), 1e-6))
    if style.coil:
        loop = g.back - 6
        distance = np.sqrt(x * x + (y - loop) ** 2 + (z * 0.55) ** 2)
        signal = signal * (0.50 + 2.1 / (1 + (distance / 30) ** 2.2))
    noise = rng.standard_normal((2, *signal.shape)).astype(np.float32) * style.noise
    signal = np.hypot(signal + noise[0], noise[1])

    adc = ndimage.gaussian_filter(_mean_over_slice(c.adc), (1.5 * sigma + 0.5, 1.5 * sigma + 0.5, 0), truncate=3)
    grain = rng.standard_normal(adc.shape).astype(np.float32)
    grain = ndimage.gaussian_filter(grain, (0.6, 0.6, 0), truncate=2)
    adc = np.clip(adc + grain * (90 + 5500 * style.noise), 0, 3500)
    # Scanners store integers; the real files hold them as floats.
    return np.stack([np.rint(signal * style.scale), np.rint(adc)], axis=-1).astype(np.float32)


def _affine(rng: np.random.Generator, style: HospitalStyle, slices: int) -> np.ndarray:
    """Slightly oblique axial stack: voxel indices to RAS millimetres."""
    pitch, roll, yaw = np.deg2rad([rng.uniform(0, 20), rng.normal(0, 1.0), rng.normal(0, 1.5)])
    turn_x = np.array([[1, 0, 0], [0, np.cos(pitch), np.sin(pitch)], [0, -np.sin(pitch), np.cos(pitch)]])
    turn_y = np.array([[np.cos(roll), 0, np.sin(roll)], [0, 1, 0], [-np.sin(roll), 0, np.cos(roll)]])
    turn_z = np.array([[np.cos(yaw), -np.sin(yaw), 0], [np.sin(yaw), np.cos(yaw), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn_x @ turn_y @ turn_z @ np.diag([style.spacing, style.spacing, style.thickness])
    middle = (np.array([style.matrix, style.matrix, slices]) - 1) / 2
    isocentre = np.array([rng.normal(0, 4), rng.normal(-8, 10), rng.uniform(-80, 60)])
    affine[:3, 3] = isocentre - affine[:3, :3] @ middle
    return affine


def _place(rng: np.random.Generator, style: HospitalStyle) -> tuple[_Gland, int, tuple[float, float, float]]:
    """Draw a gland, how many slices the technician planned, and where in the image its centre is (mm)."""
    gland = _draw_gland(rng, style)
    height = 2 * gland.half[2]
    slices = int(np.clip(np.ceil(height / style.thickness) + rng.integers(4, 9), 12, 24))
    slack = (slices * style.thickness - height) / 2
    x, y = rng.uniform(-0.04, 0.04, 2) * style.field_of_view
    # More room above than below: the planner wants the seminal vesicles in.
    return gland, slices, (x, y, rng.uniform(-0.6, 0.2) * slack)


def draw_case(
    rng: np.random.Generator, style: HospitalStyle, one_label: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw one pelvis as one hospital would image it.

    Args:
        rng: the only source of chance; the same state gives the same voxels.
        style: scanner and protocol, e.g. one of :data:`HOSPITALS`.
        one_label: mark the whole gland as label 1, as two of the real cases do.

    Returns:
        Image (x, y, z, 2) float32: T2 in arbitrary units, ADC in 10⁻⁶ mm²/s. Label (x, y, z) uint8: 0 background,
        1 peripheral zone, 2 transition zone. Affine (4, 4) float64: voxel indices to RAS mm.
    """
    gland, slices, centre = _place(rng, style)
    canvas = _Canvas(rng, style, slices, centre)
    _draw_pelvis(canvas, style, gland)
    label = _draw_prostate(canvas, gland, one_label)
    return _scan(canvas, style, gland), label, _affine(rng, style, slices)


# ---------------------------------------------------------------------------------------------------------------------
# The folder.


def _case_name(index: int, ids: list[int]) -> str:
    return f"prostate_{ids[index] if index < len(ids) else 48 + 2 * (index - len(ids)) + (ids is _TEST_IDS):02d}"


def _save(array: np.ndarray, affine: np.ndarray, path: Path):
    image = nib.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm")
    # No file name and no time in the gzip header: the same seed gives the same bytes.
    with path.open("wb") as raw, gzip.GzipFile("", "wb", compresslevel=1, fileobj=raw, mtime=0) as packed:
        packed.write(image.to_bytes())


def _write(folder: Path, cases: int, seed: int):
    for part in ("imagesTr", "labelsTr", "imagesTs"):
        (folder / part).mkdir(parents=True)
    training, test, hospitals = [], [], {style.name: [] for style in HOSPITALS}
    for index in range(cases):
        name, style = _case_name(index, _TRAIN_IDS), HOSPITALS[index % len(HOSPITALS)]
        one_label = index % _ONE_LABEL_EVERY == _ONE_LABEL_EVERY - 5
        image, label, affine = draw_case(np.random.default_rng([seed, 0, index]), style, one_label)
        _save(image, affine, folder / "imagesTr" / f"{name}.nii.gz")
        _save(label, affine, folder / "labelsTr" / f"{name}.nii.gz")
        training.append({"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"})
        hospitals[style.name].append(name)
    for index in range(TEST_CASES):
        name, style = _case_name(index, _TEST_IDS), HOSPITALS[index % len(HOSPITALS)]
        image, _, affine = draw_case(np.random.default_rng([seed, 1, index]), style)
        _save(image, affine, folder / "imagesTs" / f"{name}.nii.gz")
        test.append(f"./imagesTs/{name}.nii.gz")
    description = {
        "name": "PROSTATE",
        "description": "GENERATED DRAWINGS, NOT PATIENTS: a stand-in for Task05_Prostate, prostate zones on T2 and ADC",
        "reference": "drawn by src/prostate_phantoms.py",
        "licence": "as the course",
        "release": f"generated {VERSION}",
        "tensorImageSize": "4D",
        "modality": {"0": "T2", "1": "ADC"},
        "labels": {"0": "background", "1": "PZ", "2": "TZ"},
        "numTraining": cases,
        "numTest": TEST_CASES,
        "training": training,
        "test": test,
        "generator": _parameters(cases, seed),
    }
    hospitals = {name: cases_of for name, cases_of in hospitals.items() if cases_of}
    (folder / "hospitals.json").write_text(json.dumps(hospitals, indent=2) + "\n", encoding="utf-8")
    (folder / "dataset.json").write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")


def _parameters(cases: int, seed: int) -> dict:
    return {"version": VERSION, "cases": cases, "seed": seed}


def _already_there(folder: Path, cases: int, seed: int) -> bool:
    """True if the wanted data are there, False if nothing is.

    Raises:
        CourseError: if something else is there.
    """
    if not os.path.lexists(folder) or (folder.is_dir() and not any(folder.iterdir())):
        return False
    remedy = "Move or delete it, or choose another folder"
    try:
        found = json.loads((folder / "dataset.json").read_text(encoding="utf-8")).get("generator")
    except (OSError, ValueError, AttributeError) as error:
        raise CourseError(f"{folder} exists and holds no generated data set ({error}). {remedy}.") from error
    if found is None:
        raise CourseError(f"{folder} holds a data set that this course did not generate. {remedy}.")
    if found != _parameters(cases, seed):
        raise CourseError(f"{folder} was generated with {found}, wanted is {_parameters(cases, seed)}. {remedy}.")
    return True


def make_prostate(folder: Path, cases: int = 32, seed: int = 0) -> Path:
    """Generate a stand-in for Task05_Prostate, with four hospitals in turn, or return at once if it is there.

    The folder gets the layout of the Medical Segmentation Decathlon (http://medicaldecathlon.com): ``imagesTr``,
    ``labelsTr``, ``imagesTs``, ``dataset.json``; and ``hospitals.json``, which maps each site to its cases. It is
    written beside and renamed when complete, so that it is never seen half written; of two processes at once, the
    first to finish wins and the other returns its result.

    Args:
        folder: the data set's folder, by custom called ``Task05_Prostate``.
        cases: number of labelled cases, at least 1.
        seed: the same seed gives the same files, byte for byte.

    Returns:
        ``folder``.

    Raises:
        CourseError: if something else is there, ``cases`` is below 1, or the folder cannot be written.
    """
    folder = Path(folder)
    if cases < 1 or seed < 0:
        raise CourseError(f"make_prostate needs cases >= 1 and seed >= 0, got cases={cases} and seed={seed}.")
    beside = None
    try:
        if _already_there(folder, cases, seed):
            return folder
        folder.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        _write(beside / folder.name, cases, seed)
        try:
            (beside / folder.name).rename(folder)
        except OSError:
            # Somebody was faster: theirs is as good if it has the same parameters.
            if not _already_there(folder, cases, seed):
                raise
    except OSError as error:
        raise CourseError(
            f"Cannot write the generated prostate data to {folder}: {error.strerror or error}. "
            f"About 100 MB are needed: free some space or set COURSE_DATA to a folder that you can write to."
        ) from error
    finally:
        if beside is not None:
            shutil.rmtree(beside, ignore_errors=True)
    return folder
