"""Generated stand-ins for MedNIST: seeded drawings in MedNIST's own layout, so that one code path reads both.

**These are drawings, not patients.** Every picture is made of ellipses, limbs and noise whose place, size and
brightness come from anatomy and from the values that the real images show; no pixel of a real image is in them. They
are there so that the course runs without a network, and they say nothing about how well a model would do in a clinic.

The real data set is described at https://docs.monai.io/en/stable/apps.html#monai.apps.MedNISTDataset.

Command line: ``python -m src.phantoms mednist --folder data/generated/MedNIST --per-class 200 --seed 0``.
"""

import argparse
import dataclasses
import io
import itertools
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from src.errors import CourseError

CLASSES = ("AbdomenCT", "BreastMRI", "CXR", "ChestCT", "Hand", "HeadCT")
SIZE = 64  # pixels along a side, as in MedNIST
ABOUT = "ABOUT.txt"

_FINE = 2  # drawn this many times finer than stored, so that thin bones keep their shape
_GRID = SIZE * _FINE
_BOTTOM_UP = 0.1  # share of CT and MRI stored with the last row first
_INVERTED = 0.025  # share of radiographs stored as on film, bone dark
_VERSION = 1  # of the drawings: raise it when the same seed gives other pictures


@dataclasses.dataclass(frozen=True)
class ScannerStyle:
    """How a site's scanners render the same anatomy. All of it varies a little from picture to picture too.

    Attributes:
        name: what tables and figures call it.
        gain: factor on the contrast (grey values run from 0 to 1).
        offset: added to every grey value that is not black.
        gamma: exponent on the grey values; above 1 darkens the middle.
        noise: noise level, 1 is typical.
        blur: standard deviation of the point spread, in stored pixels.
        shading: depth of the smooth brightness drift over the picture, 0 is none.
    """

    name: str
    gain: float = 1.0
    offset: float = 0.0
    gamma: float = 1.0
    noise: float = 1.0
    blur: float = 0.25
    shading: float = 0.05


STYLES = (
    ScannerStyle("standard"),
    ScannerStyle("soft", gain=0.92, offset=0.02, gamma=0.9, noise=0.6, blur=0.5, shading=0.08),
    ScannerStyle("sharp", gain=1.08, offset=-0.01, gamma=1.1, noise=1.5, blur=0.0, shading=0.03),
    ScannerStyle("old", gain=0.95, offset=0.01, gamma=1.0, noise=2.2, blur=0.4, shading=0.15),
)


class _Frame:
    """Pixel coordinates of the picture, seen from the body: ``u`` to the right, ``v`` down, both about -1…1.

    A turn, a size, a shift and a smooth random warp stand between picture and body: pose and individual shape.
    """

    def __init__(self, rng, turn=0.0, size=1.0, shift=(0.0, 0.0), warp=0.03, aspect=1.0, mirror=False):
        axis = (np.arange(_GRID) + 0.5) * (2 / _GRID) - 1
        self.x, self.y, self.shift, self.px = (
            axis - shift[0],
            axis - shift[1],
            (float(shift[0]), float(shift[1])),
            2 / _GRID / size,
        )
        cos, sin = np.cos(np.deg2rad(turn)) / size, np.sin(np.deg2rad(turn)) / size
        across = (-1 if mirror else 1) / aspect
        self.to_body = np.array(((across * cos, across * sin), (-sin, cos)))
        from_body = np.linalg.inv(self.to_body)
        self.from_body, self.stretch = from_body.tolist(), float(np.linalg.norm(from_body, 2))
        self.u, self.v = ((a * self.x[None, :] + b * self.y[:, None]).astype(np.float32) for a, b in self.to_body)
        self.reach = 0.0  # farthest that the warp moves a pixel
        if warp:
            du, dv = np.float32(warp) * self.texture(rng, 2.2), np.float32(warp) * self.texture(rng, 2.2)
            self.u += du
            self.v += dv
            self.reach = float(np.hypot(np.abs(du).max(), np.abs(dv).max()))

    def texture(self, rng, frequency, waves=5):
        """Smooth random field of about unit spread; ``frequency`` in radians per unit length."""
        angles, phases = rng.uniform(0, 2 * np.pi, (2, waves))
        rates = frequency * rng.uniform(0.5, 1.5, waves)
        across, down = self.to_body.T @ (rates * np.array((np.cos(angles), np.sin(angles))))
        # sin(a + b) = sin a cos b + cos a sin b: one small matrix product instead of a sine for each pixel.
        a, b = np.outer(across, self.x) + phases[:, None], np.outer(down, self.y)
        field = np.concatenate((np.cos(b), np.sin(b))).T @ np.concatenate((np.sin(a), np.cos(a)))
        return (field * np.sqrt(2 / waves)).astype(np.float32)

    def window(self, u, v, radius):
        """Rows and columns that hold every pixel within ``radius`` of a point of the body."""
        (a, b), (c, d) = self.from_body
        x, y = a * u + b * v + self.shift[0], c * u + d * v + self.shift[1]
        radius = (radius + self.reach) * self.stretch + 4 / _GRID
        return tuple(
            slice(max(0, int((at - radius + 1) * _GRID / 2)), max(0, int((at + radius + 1) * _GRID / 2) + 1))
            for at in (y, x)
        )

    def cover(self, distance):
        """Share of each pixel inside a shape, from the signed distance to its edge (negative inside)."""
        return np.clip(0.5 - distance * np.float32(1 / self.px), 0, 1)

    def ellipse_distance(self, cx, cy, rx, ry, turn=0.0, window=...):
        u, v = self.u[window] - np.float32(cx), self.v[window] - np.float32(cy)
        if turn:
            c, s = np.float32(np.cos(np.deg2rad(turn))), np.float32(np.sin(np.deg2rad(turn)))
            u, v = c * u + s * v, c * v - s * u
        u, v = u * np.float32(1 / rx), v * np.float32(1 / ry)
        r = np.sqrt(u * u + v * v) + np.float32(1e-6)
        slope = np.sqrt((u * np.float32(1 / rx)) ** 2 + (v * np.float32(1 / ry)) ** 2) + np.float32(1e-6)
        return r * (r - 1) / slope

    def ellipse(self, cx, cy, rx, ry, turn=0.0):
        mask, window = np.zeros_like(self.u), self.window(cx, cy, max(rx, ry))
        mask[window] = self.cover(self.ellipse_distance(cx, cy, rx, ry, turn, window))
        return mask

    def box_distance(self, cx, cy, rx, ry, power=3.0):
        """Superellipse: the body's cross-section is squarer than an ellipse."""
        r = (
            np.abs((self.u - np.float32(cx)) / np.float32(rx)) ** power
            + np.abs((self.v - np.float32(cy)) / np.float32(ry)) ** power
        ) ** np.float32(1 / power)
        return (r - 1) * np.float32(min(rx, ry))

    def limb_distance(self, a, b, ra, rb=None, window=...):
        """Rounded stroke from ``a`` to ``b``, half-width ``ra`` to ``rb``; also gives distance ÷ half-width."""
        rb = ra if rb is None else rb
        bu, bv = b[0] - a[0], b[1] - a[1]
        u, v = self.u[window] - np.float32(a[0]), self.v[window] - np.float32(a[1])
        t = np.clip((u * np.float32(bu) + v * np.float32(bv)) * np.float32(1 / (bu * bu + bv * bv + 1e-9)), 0, 1)
        u -= t * np.float32(bu)
        v -= t * np.float32(bv)
        distance = np.sqrt(u * u + v * v)
        radius = np.float32(ra) + t * np.float32(rb - ra)
        return distance - radius, distance / radius

    def limb_window(self, a, b, ra, rb=None):
        """The window that holds a limb."""
        half = 0.5 * float(np.hypot(b[0] - a[0], b[1] - a[1])) + max(ra, ra if rb is None else rb)
        return self.window((a[0] + b[0]) / 2, (a[1] + b[1]) / 2, half)

    def limb(self, a, b, ra, rb=None):
        return self.curve((a, b), ra, rb)

    def curve(self, points, ra, rb=None):
        """Line through points; pixels are covered once, however often its pieces overlap."""
        mask = np.zeros_like(self.u)
        for a, b in itertools.pairwise(points):
            window = self.limb_window(a, b, ra, rb)
            np.maximum(mask[window], self.cover(self.limb_distance(a, b, ra, rb, window)[0]), out=mask[window])
        return mask


def _paint(canvas, mask, value):
    canvas += mask * (value - canvas)


def _down(image):
    return image.reshape(SIZE, _FINE, SIZE, _FINE).mean((1, 3))


def _pick(rng, options: dict):
    names = list(options)
    weights = np.array([options[name] for name in names], float)
    return names[rng.choice(len(names), p=weights / weights.sum())]


# ---- body CT: painted in Hounsfield units, then windowed ----

_AIR, _LUNG, _FAT, _MUSCLE = -1000.0, -850.0, -100.0, 45.0


class _Trunk:
    """Axial slice of chest or abdomen in Hounsfield units: skin, fat rim, muscle wall, and the cavity inside.

    The back, and with it the spine, is at the bottom. ``ix`` and ``iy`` are the half-axes of the cavity; :meth:`organ`
    takes places and sizes as shares of them, so that organs grow with the body.
    """

    def __init__(self, rng, frame, axes, rim, wall, contrast, bone, power=2.4):
        self.rng, self.frame, self.contrast, self.bone = rng, frame, contrast, bone
        self.rx, self.ry = axes
        self.ix, self.iy = axes[0] - rim - wall, axes[1] - rim - wall
        self.hu = np.full((_GRID, _GRID), _AIR, np.float32)
        skin = frame.box_distance(0, 0, *axes, power)
        self.paint(frame.cover(skin), 20)
        self.paint(frame.cover(skin + np.float32(0.018)), _FAT)
        self.paint(frame.cover(skin + np.float32(rim)), _MUSCLE)
        self.cavity = frame.cover(skin + np.float32(rim + wall))

    def paint(self, mask, value):
        _paint(self.hu, mask, value)

    def blob(self, centre, radii, value, turn=0.0):
        """Ellipse in the frame's own unit: for bones and vessels, which do not grow with the belly."""
        self.paint(self.frame.ellipse(*centre, *radii, turn), value)

    def organ(self, centre, radii, value, turn=0.0):
        """Ellipse in shares of the cavity, cut off at its wall."""
        self.paint(self.organ_mask(centre, radii, turn), value)

    def organ_mask(self, centre, radii, turn=0.0):
        (x, y), (a, b) = centre, radii
        return self.frame.ellipse(x * self.ix, y * self.iy, a * self.ix, b * self.iy, turn) * self.cavity

    def line(self, points, width, value):
        self.paint(self.frame.curve(points, width), value)

    def enhanced(self, share=1.0):
        """Blood with its share of contrast medium."""
        return 50 + self.contrast * share

    def spine(self, y, size=1.0):
        """Vertebral body, canal, arch, transverse and spinous processes. ``y`` is the centre of the vertebral body."""
        rng, s = self.rng, size * self.rng.uniform(0.9, 1.15)
        bone = self.bone * rng.uniform(0.75, 1.3)
        for side in (-1, 1):
            tip = (side * rng.uniform(0.13, 0.2) * s, y + rng.uniform(0.1, 0.17) * s)
            self.line(((side * 0.05 * s, y + 0.11 * s), tip), 0.026 * s, bone * 0.9)
        self.line(((0, y + 0.15 * s), (rng.normal(0, 0.01), y + rng.uniform(0.24, 0.31) * s)), 0.024 * s, bone)
        self.blob((0, y + 0.12 * s), (0.085 * s, 0.07 * s), bone)
        self.blob((0, y), (0.115 * s, 0.085 * s), bone)
        self.blob((0, y), (0.09 * s, 0.062 * s), bone * rng.uniform(0.4, 0.75))  # cancellous inside
        self.blob((0, y + 0.12 * s), (0.045 * s, 0.04 * s), 30)

    def ribs(self, outwards, count, gap):
        """Ribs cut obliquely: bright strokes of unequal length along the chest wall, ``gap`` radians free in front."""
        rng, phase = self.rng, self.rng.uniform(0, 1)
        rx, ry = self.ix + outwards, self.iy + outwards
        for side in (-1, 1):
            for k in range(count):
                if rng.random() < 0.15:  # the slice passes between two ribs
                    continue
                angle = -np.pi / 2 + gap + (k + phase + rng.normal(0, 0.15)) / count * (np.pi - 0.25 - gap)
                half = rng.uniform(0.01, 0.07) * (1 + (angle > 0.3) * rng.uniform(0, 1.5))
                depth = 1 - rng.uniform(0, 0.02)
                ends = [(side * rx * depth * np.cos(t), ry * depth * np.sin(t)) for t in (angle - half, angle + half)]
                self.line(ends, rng.uniform(0.013, 0.024), self.bone * rng.uniform(0.4, 1.4))

    def heart(self, y):
        rng, x = self.rng, self.rng.uniform(0.0, 0.12)
        radii = rng.uniform((0.24, 0.19), (0.34, 0.27))
        self.blob((x, y), radii, self.enhanced(0.3), rng.uniform(15, 50))
        for _ in range(3):  # chambers fill with contrast medium one after the other
            place = rng.normal((x, y), (0.11, 0.08))
            self.blob(place, rng.uniform(0.06, 0.13, 2), self.enhanced(rng.uniform(0.4, 1)), rng.uniform(0, 90))

    def table(self):
        rng, y = self.rng, self.ry + self.rng.uniform(0.06, 0.2)
        if rng.random() < 0.8:
            bend, value = rng.uniform(0.04, 0.16), rng.uniform(60, 180)
            points = [(x, y - bend * x * x) for x in np.linspace(-0.95, 0.95, 7)]
            self.paint(0.8 * self.frame.curve(points, 0.008), value)


def _liver_level(trunk, rng, dome):
    """Upper abdomen: liver, spleen, stomach; with ``dome`` heart and lungs instead of the stomach."""
    trunk.paint(trunk.cavity, _LUNG if dome else _FAT)
    liver = rng.uniform(70, 130) + 0.3 * trunk.contrast
    right = trunk.organ_mask((-0.45, -0.05), rng.uniform((0.5, 0.72), (0.58, 0.9)), rng.uniform(-12, 12))
    left = trunk.organ_mask((rng.uniform(-0.05, 0.2), -0.38), rng.uniform((0.4, 0.3), (0.6, 0.42)), rng.uniform(-25, 0))
    lobes = np.maximum(right, left)
    trunk.paint(lobes, liver + 8 * trunk.frame.texture(rng, 9))
    for _ in range(rng.integers(1, 5)):  # hepatic vessels
        start = rng.uniform((-0.6, -0.5), (0.0, 0.3)) * (trunk.ix, trunk.iy)
        vessel = trunk.frame.limb(start, start + rng.normal(0, 0.12, 2), 0.018)
        trunk.paint(vessel * lobes, liver + rng.uniform(-35, 45))
    spleen = rng.uniform((0.2, 0.3), (0.3, 0.46))
    trunk.organ((0.62, 0.3), spleen, liver + rng.uniform(-10, 40), rng.uniform(-35, 5))
    if dome:
        trunk.heart(-0.3 * trunk.iy)
        return
    stomach = rng.uniform((0.22, 0.25), (0.34, 0.36))
    trunk.organ((0.45, rng.uniform(-0.35, -0.15)), stomach, rng.uniform(35, 60), rng.uniform(0, 60))
    if rng.random() < 0.6:  # its gas floats up, to the front
        trunk.organ((0.42, -0.45), (0.17, 0.14), _AIR, rng.uniform(-20, 20))


def _kidney_level(trunk, rng):
    """Mid abdomen: kidneys beside the spine, psoas, bowel loops, the liver's tip."""
    trunk.paint(trunk.cavity, _FAT)
    if rng.random() < 0.65:
        tip = rng.uniform((0.14, 0.35), (0.3, 0.6))
        trunk.organ((-0.75, -0.05), tip, rng.uniform(60, 110) + 0.2 * trunk.contrast, rng.uniform(-10, 15))
    for side in (-1, 1):
        x, y = side * rng.uniform(0.42, 0.52) * trunk.ix, rng.uniform(0.3, 0.5) * trunk.iy
        turn, (a, b) = side * rng.uniform(10, 40), rng.uniform((0.14, 0.12), (0.21, 0.17))
        cortex = rng.uniform(50, 120) + trunk.contrast
        trunk.blob((x, y), (a, b), cortex, turn)
        sinus = rng.choice([_FAT, cortex * 0.5, cortex * 1.6])
        trunk.blob((x - side * 0.3 * a, y), (a * 0.5, b * 0.4), sinus, turn)
        trunk.blob((side * 0.2, 0.5 * trunk.iy), (0.09, 0.11), 55)  # psoas
    for _ in range(rng.integers(6, 12)):  # bowel: a wall around gas, water or contrast medium
        x, y = rng.uniform((-0.7, -0.75), (0.75, 0.1)) * (trunk.ix, trunk.iy)
        (a, b), turn = rng.uniform(0.06, 0.14, 2), rng.uniform(0, 180)
        trunk.blob((x, y), (a, b), rng.uniform(30, 80), turn)
        trunk.blob((x, y), (a * 0.6, b * 0.6), rng.choice([_AIR, 15, 15, rng.uniform(30, 200)]), turn)


def _pelvis_level(trunk, rng):
    """Pelvis: iliac wings beside the sacrum, or hip joints beside the bladder; bowel."""
    bone, ix, iy = trunk.bone, trunk.ix, trunk.iy
    trunk.organ((0, -0.25), (0.72, 0.55), _FAT)
    low = rng.random() < 0.4
    for side in (-1, 1):
        if low:
            hip = side * 0.6 * ix
            trunk.blob((hip, 0.05), (0.15, 0.14), bone)
            trunk.blob((hip, 0.05), (0.1, 0.095), bone * 0.65)
            trunk.line(((side * 0.68 * ix, 0.08), (side * 0.8 * ix, 0.12)), 0.06, bone * 0.8)
            trunk.line(((side * 0.42 * ix, -0.12), (side * 0.4 * ix, 0.2)), 0.035, bone)
        else:
            crest = ((0.8, -0.3), (0.74, -0.08), (0.58, 0.14), (0.27, 0.34))
            points = [rng.normal((side * x * ix, y), 0.015) for x, y in crest]
            trunk.line(points, rng.uniform(0.024, 0.04), bone)
            trunk.line(points[1:], 0.014, bone * 0.55)
    for _ in range(rng.integers(4, 9)):
        place = rng.uniform((-0.5, -0.6), (0.5, 0.1)) * (ix, iy)
        filling = rng.choice([_AIR, 40, 60, 90 + trunk.contrast])
        trunk.blob(place, rng.uniform(0.06, 0.14, 2), filling, rng.uniform(0, 180))
    if low:
        trunk.blob((0, -0.12 * iy), (0.2, 0.16), rng.uniform(10, 60))  # bladder
        trunk.blob((0, 0.45 * iy), (0.1, 0.06), bone * 0.8)  # coccyx
    else:
        trunk.blob((0, 0.36 * iy + 0.02), (0.2, 0.1), bone)  # sacrum
        trunk.blob((0, 0.36 * iy + 0.02), (0.14, 0.06), bone * 0.6)


def _stored(rng, image):
    """Some archives store the rows from the bottom up, so that the spine is on top."""
    return image[::-1] if rng.random() < _BOTTOM_UP else image


def _abdomen_ct(rng, style):
    level = _pick(rng, {"dome": 0.17, "liver": 0.35, "kidney": 0.33, "pelvis": 0.15})
    pelvis = level == "pelvis"
    zoom = rng.uniform(1.2, 1.5) if rng.random() < 0.1 else rng.uniform(0.92, 1.14)
    frame = _Frame(rng, rng.normal(0, 4), zoom, rng.normal(0, 0.05, 2), warp=0.025)
    trunk = _Trunk(
        rng,
        frame,
        axes=rng.uniform((0.8, 0.6), (0.96, 0.78)),
        rim=rng.uniform(0.03, 0.12),
        wall=0.0 if pelvis else rng.uniform(0.05, 0.08),
        contrast=rng.uniform(0, 200),
        bone=rng.uniform(350, 600),
        power=2.2 if pelvis else 2.4,
    )
    if pelvis:
        _pelvis_level(trunk, rng)
    else:
        if level == "kidney":
            _kidney_level(trunk, rng)
        else:
            _liver_level(trunk, rng, dome=level == "dome")
        for side in (-1, 1):  # back muscles
            trunk.blob((side * 0.19, trunk.iy * 0.93), (0.16, 0.1), rng.uniform(55, 85), side * -12)
        if level == "kidney":
            trunk.ribs(0.035, rng.integers(3, 6), gap=1.2)
        else:
            trunk.ribs(0.035, rng.integers(6, 9), gap=0.35)
        spine = trunk.iy * rng.uniform(0.62, 0.74)
        trunk.spine(spine, 1.05)
        trunk.blob((rng.normal(0.06, 0.03), spine - 0.15), (0.05, 0.05), trunk.enhanced(1.4))  # aorta
        cava = trunk.enhanced(rng.uniform(0.2, 1))
        trunk.blob((rng.normal(-0.12, 0.03), spine - 0.14), (0.055, 0.04), cava)
    trunk.table()
    hu = _down(trunk.hu) + rng.normal(0, 9 * style.noise, (SIZE, SIZE))
    # The published images clip everything below water at one mid-grey value, which differs from series to series.
    return _stored(rng, rng.normal(0.402, 0.024) + rng.uniform(0.0011, 0.0019) * np.maximum(hu, 0))


def _shoulder_level(trunk, rng, bone):
    """Shoulder girdle, the lungs' tops, great vessels, trachea."""
    for side in (-1, 1):
        joint = side * 0.73 * trunk.rx
        trunk.blob((joint, 0.05), (0.1, 0.1), bone)  # head of the humerus
        trunk.blob((joint, 0.05), (0.065, 0.065), bone * 0.5)
        trunk.line(((side * 0.6 * trunk.rx, 0.1), (side * 0.36 * trunk.rx, 0.3)), 0.023, bone)  # scapula
        trunk.line(((side * 0.12, -0.22), (side * rng.uniform(0.3, 0.55), -0.26)), 0.026, bone)  # clavicle
    trunk.blob((0, -0.02), (0.05, 0.045), _AIR)  # trachea
    for _ in range(5):
        trunk.blob(rng.normal((0, -0.1), 0.12), rng.uniform(0.02, 0.05, 2), trunk.enhanced(), rng.uniform(0, 180))


def _thorax_level(trunk, rng, level, lungs, spine, bone):
    """Mediastinum between the lungs: aortic arch, or heart, or heart and the top of the liver."""
    ix, iy = trunk.ix, trunk.iy
    trunk.blob((0, -0.1 * iy), (0.14, 0.6 * iy), rng.choice([_MUSCLE, _MUSCLE, 10]))
    if level == "arch":
        trunk.paint(trunk.frame.limb((-0.06, -0.25 * iy), (0.1, 0.1 * iy), 0.09, 0.075), trunk.enhanced())
        trunk.blob((-0.13, -0.25 * iy), (0.06, 0.07), trunk.enhanced(rng.uniform(0.5, 1.3)))  # superior vena cava
        trunk.blob((0, 0.12 * iy), (0.05, 0.045), _AIR)  # trachea
        for side in (-1, 1):
            blade = ((0.95, 0.45), (0.8, 0.75), (rng.uniform(0.5, 0.62), 1.0))
            points = [rng.normal((side * x * ix, y * iy + 0.03), 0.02) for x, y in blade]
            trunk.line(points, rng.uniform(0.012, 0.02), bone)  # scapula
    else:
        if level == "base":
            liver = trunk.organ_mask((-0.5, -0.15), rng.uniform((0.3, 0.4), (0.42, 0.6)))
            trunk.paint(liver * lungs, rng.uniform(60, 110))
        trunk.heart(rng.uniform(-0.3, -0.12) * iy)
        trunk.blob((0.12, spine - 0.12), (0.06, 0.06), trunk.enhanced())  # descending aorta
    trunk.line(((-0.07, -iy - 0.01), (0.07, -iy - 0.01)), 0.026, bone * 0.7)  # sternum
    trunk.ribs(0.035, rng.integers(6, 10), gap=0.3)


def _chest_ct(rng, style):
    level = _pick(rng, {"shoulder": 0.2, "arch": 0.25, "heart": 0.35, "base": 0.2})
    shoulder = level == "shoulder"
    frame = _Frame(rng, rng.normal(0, 4), rng.uniform(0.88, 1.16), rng.normal(0, 0.06, 2), warp=0.025)
    trunk = _Trunk(
        rng,
        frame,
        axes=rng.uniform((0.88, 0.42), (0.98, 0.52)) if shoulder else rng.uniform((0.76, 0.55), (0.92, 0.7)),
        rim=rng.uniform(0.03, 0.1),
        wall=0.07,
        contrast=rng.uniform(20, 320),
        bone=rng.uniform(350, 700),
    )
    ix, iy = trunk.ix, trunk.iy
    if not shoulder and rng.random() < 0.25:  # arms beside the body
        for side in (-1, 1):
            trunk.blob((side * (trunk.rx + 0.12), 0.1), (0.12, 0.14), _MUSCLE)
            trunk.blob((side * (trunk.rx + 0.12), 0.1), (0.045, 0.045), trunk.bone)
    reach = {"shoulder": 0.42, "arch": 0.9}.get(level, 1.0)  # the lungs get wider downwards
    lungs = np.zeros_like(trunk.hu)
    for side in (-1, 1):
        width = (ix * reach - 0.09) / 2 * rng.uniform(0.9, 1.0)
        height = iy * (0.5 if shoulder else rng.uniform(0.86, 0.97))
        place = (side * (0.09 + width), 0.1 if shoulder else 0.02)
        np.maximum(lungs, frame.ellipse(*place, width, height, side * rng.uniform(-8, 4)), out=lungs)
    trunk.paint(lungs, _LUNG)
    for _ in range(rng.integers(8, 18)):  # vessels of the lungs, thinner outwards
        side, far, angle = rng.choice([-1, 1]), rng.uniform(0.25, 0.85), rng.uniform(-1.2, 1.2)
        end = far * np.array((side * ix * reach, 0.7 * iy * np.sin(angle)))
        vessel = frame.limb(0.8 * end, end, 0.02 * (1.1 - far))
        trunk.paint(vessel * lungs, rng.uniform(60, 120) + 0.5 * trunk.contrast)
    spine = iy * (0.55 if shoulder else rng.uniform(0.62, 0.75))
    if shoulder:
        _shoulder_level(trunk, rng, trunk.bone)
    else:
        _thorax_level(trunk, rng, level, lungs, spine, trunk.bone)
    trunk.spine(spine, 0.92)
    trunk.table()
    # Stored without averaging: every second sample as it is, with its noise, as the published images show.
    hu = trunk.hu[::_FINE, ::_FINE]
    grain = rng.uniform(25, 90) * (0.6 + 0.4 * style.noise)
    hu = hu + rng.normal(0, grain, hu.shape) * (hu > -300)
    lung = np.clip((-hu - 600) / 200, 0, 1) * np.clip((hu + 950) / 50, 0, 1)
    grey = rng.normal(0.492, 0.024) + rng.uniform(0.0006, 0.00085) * np.maximum(hu + rng.uniform(-20, 40), 0)
    return _stored(rng, grey - rng.uniform(0, 0.05) * lung)


# ---- head CT ----


def _head_ct(rng, style):
    level = _pick(rng, {"vertex": 0.1, "high": 0.22, "ventricles": 0.38, "base": 0.2, "jaw": 0.1})
    small = {"vertex": rng.uniform(0.4, 0.7), "high": rng.uniform(0.65, 0.9)}.get(level, rng.uniform(0.88, 1.2))
    turn = rng.normal(0, 10) if rng.random() < 0.9 else rng.uniform(-100, 100)
    frame = _Frame(rng, turn, small, rng.normal(0, (0.09, 0.1)), warp=0.02 * small, aspect=rng.uniform(0.92, 1.1))
    image = np.zeros((_GRID, _GRID), np.float32)
    brain = rng.uniform(0.29, 0.44)
    dark = brain * rng.uniform(0.25, 0.6)
    rx, ry = rng.uniform(0.46, 0.54), rng.uniform(0.58, 0.68)
    skull = rng.uniform(0.06, 0.105)
    if level == "jaw":
        _head_jaw(frame, image, rng, brain)
    elif level == "base":
        _head_base(frame, image, rng, brain, dark, skull)
    else:
        outer = frame.ellipse_distance(0, 0, rx, ry)
        np.maximum(outer, frame.ellipse_distance(0, 0.12, rx * 1.05, ry * 1.12), out=outer)  # narrower in front
        _paint(image, frame.cover(outer - 0.03), rng.uniform(0.05, 0.25))  # scalp
        _paint(image, frame.cover(outer), 1)
        lean = rng.uniform(-0.02, 0.02)  # bone thicker in front or behind
        thick = {"vertex": rng.uniform(2.4, 7), "high": rng.uniform(1.2, 2.4)}.get(level, 1) * skull
        inside = frame.cover(
            outer
            + np.float32(thick)
            + np.float32(lean) * frame.v
            + (0.03 if level == "vertex" else 0.006) * frame.texture(rng, 8)
        )
        tissue = brain + 0.03 * frame.texture(rng, 14)
        rind = np.clip(1 + (outer + np.float32(thick + 0.12)) * 9, 0, 1)  # cortex folds: dark furrows near the bone
        tissue -= rind * np.clip(frame.texture(rng, 32) - rng.uniform(0, 1.2), 0, 1) * rng.uniform(0.0, 0.25)
        _paint(image, inside, tissue)
        _paint(image, frame.limb((0, -ry), (0, -0.3), 0.009) * inside, brain * rng.uniform(1.0, 1.6))  # falx
        _paint(image, frame.limb((0, 0.35), (0, ry), 0.009) * inside, brain * rng.uniform(1.0, 1.6))
        if level == "high":
            _paint(image, frame.limb((0, -ry), (0, ry), 0.012) * inside, brain * rng.uniform(0.6, 1.3))
        if level == "ventricles":
            _head_ventricles(frame, image, rng, brain, dark)
    if rng.random() < 0.45:  # head rest
        depth, half, reach = rng.uniform(0.7, 0.95), rng.uniform(0.6, 0.9), rng.uniform(0.8, 1.7)
        fixed = _Frame(rng, rng.normal(0, 2), warp=0)
        points = [(half * np.sin(t), depth * np.cos(t)) for t in np.linspace(-reach, reach, 12)]
        if rng.random() < 0.4:  # only its arms are in the slice
            points = [(-half, 1.2), (-half, rng.uniform(0.2, 0.7))]
            image = np.maximum(image, fixed.curve([(-x, y) for x, y in points], 0.014) * 0.4)
        image = np.maximum(image, fixed.curve(points, 0.014) * rng.uniform(0.25, 0.55))
    base = rng.uniform(0.08, 0.12)
    image = _down(image)
    image += rng.normal(0, 0.02 * style.noise, image.shape) * (image > 0.05)
    return base + (1.03 - base) * image


def _head_ventricles(frame, image, rng, brain, dark):
    wide = rng.uniform(0.018, 0.05)
    bodies = rng.random() < 0.4
    skew = rng.normal(0, 0.02)
    for side in (-1, 1):
        if bodies:  # a higher slice: two bands beside the midline
            points = [(side * 0.09 + skew, -0.24), (side * 0.055 + skew, -0.08), (side * 0.1 + skew, 0.22)]
            _paint(image, frame.curve(points, wide), dark)
            continue
        front = (side * rng.uniform(0.08, 0.12) + skew, rng.uniform(-0.24, -0.18))
        _paint(image, frame.limb((side * 0.035 + skew, -0.06), front, wide * 0.6, wide), dark)
        _paint(image, frame.ellipse(side * 0.13 + skew, 0.03, 0.075, 0.12, side * -15), brain * 1.1)  # thalamus
        back = (side * rng.uniform(0.18, 0.24) + skew, rng.uniform(0.24, 0.34))
        _paint(image, frame.limb((side * 0.12 + skew, 0.16), back, wide * 0.6), dark)
        if rng.random() < 0.5:  # calcified choroid plexus
            _paint(image, frame.ellipse(side * 0.15 + skew, 0.22, 0.022, 0.03), rng.uniform(0.6, 1))
        _paint(image, frame.limb((side * 0.42, -0.12), (side * 0.27, -0.04), 0.016), dark)  # Sylvian fissure
    if not bodies:
        _paint(image, frame.limb((skew, -0.02), (skew, 0.09), 0.012), dark)
    if rng.random() < 0.3:  # a lesion
        place, radii = rng.uniform(-0.28, 0.28, 2), rng.uniform(0.05, 0.14, 2)
        _paint(image, frame.ellipse(*place, *radii, rng.uniform(0, 90)), brain * rng.choice([0.6, 0.75, 1.7]))


def _head_base(frame, image, rng, brain, dark, skull):
    """Orbits, nose and skull base in front, cerebellum and temporal lobes behind."""
    split = rng.uniform(-0.14, 0.06)
    cranium = frame.ellipse_distance(0, 0.14, 0.5, rng.uniform(0.48, 0.56))
    face = frame.ellipse_distance(0, split - 0.16, rng.uniform(0.33, 0.4), rng.uniform(0.4, 0.46))
    _paint(image, frame.cover(np.minimum(cranium, face) - 0.04), 0.25)
    _paint(image, frame.cover(cranium), 1)
    bone = cranium + np.float32(skull) + 0.01 * frame.texture(rng, 8)
    _paint(image, frame.cover(bone), brain + 0.03 * frame.texture(rng, 12))
    front = frame.cover(face) * frame.cover(frame.v - np.float32(split) + 0.35 * np.abs(frame.u))
    _paint(image, front, rng.uniform(0.2, 0.4))
    for side in (-1, 1):
        _paint(image, frame.ellipse(side * 0.2, split - 0.26, 0.13, 0.16), 0.06)  # orbit: fat
        _paint(image, frame.ellipse(side * 0.2, split - 0.33, 0.09, 0.09), brain * 1.2)  # eye
        _paint(image, frame.limb((side * 0.19, split - 0.26), (side * 0.1, split - 0.1), 0.018), brain)  # optic nerve
        cheek = [(side * 0.33, split - 0.36), (side * 0.36, split - 0.2), (side * 0.43, split - 0.05)]
        _paint(image, frame.curve(cheek, rng.uniform(0.02, 0.035)), 1)
        wing = [
            (side * 0.43, split - 0.05),
            (side * 0.25, split - 0.04),
            (side * 0.08, split + rng.uniform(-0.06, 0.06)),
        ]
        _paint(image, frame.curve(wing, rng.uniform(0.018, 0.035)), 1)  # sphenoid
    _paint(image, frame.ellipse(0, split - 0.26, 0.075, 0.26), 0)  # air of nose and sinuses
    for x in (-0.08, 0.0, 0.08):
        _paint(image, frame.limb((x, split - 0.05), (x * 0.5, split - 0.52), 0.012), rng.uniform(0.5, 1))
    for _ in range(8):
        place = (rng.normal(0, 0.1), split - rng.uniform(-0.04, 0.3))
        _paint(image, frame.ellipse(*place, *rng.uniform(0.015, 0.045, 2)), rng.choice([0, 0.5, 1]))
    ridge = split + rng.uniform(0.14, 0.24)
    if rng.random() < 0.6:
        for side in (-1, 1):
            petrous = [
                (side * 0.44, ridge + 0.1),
                (side * 0.27, ridge + rng.normal(0.04, 0.015)),
                (side * 0.1, ridge - 0.03),
            ]
            _paint(image, frame.curve(petrous, rng.uniform(0.02, 0.045)), 1)
            _paint(image, frame.ellipse(side * 0.38, ridge + 0.1, 0.09, 0.07), 1)
            for _ in range(4):  # air cells behind the ear
                place = (side * rng.uniform(0.28, 0.43), ridge + rng.uniform(0.03, 0.16))
                _paint(image, frame.ellipse(*place, *rng.uniform(0.012, 0.03, 2)), 0)
    _paint(image, frame.ellipse(0, ridge + 0.14, 0.11, 0.08), brain * 1.1)  # brain stem
    _paint(image, frame.ellipse(0, ridge + 0.25, 0.045, 0.025), dark)  # fourth ventricle


def _head_jaw(frame, image, rng, brain):
    """Lower face and neck: jaw, vertebra, muscles with fat between them."""
    _paint(image, frame.ellipse(0, 0.05, rng.uniform(0.42, 0.5), rng.uniform(0.52, 0.64)), 0.08)
    for _ in range(10):
        angle, radius = rng.uniform(0, 2 * np.pi), rng.uniform(0.25, 0.36)
        place = (radius * np.cos(angle), 0.08 + 1.2 * radius * np.sin(angle))
        _paint(
            image,
            frame.ellipse(*place, *rng.uniform(0.05, 0.13, 2), rng.uniform(0, 180)),
            brain * rng.uniform(0.8, 1.3),
        )
    span = rng.uniform(1.0, 1.4)
    points = [(0.34 * np.sin(t), 0.0 - 0.5 * np.cos(t)) for t in np.linspace(-span, span, 8)]
    _paint(image, frame.ellipse(0, -0.22, 0.22, 0.2), brain * 1.1)  # tongue
    _paint(image, frame.curve(points, rng.uniform(0.05, 0.08)), 1)
    _paint(image, frame.ellipse(0, -0.02, 0.08, 0.05), 0)  # throat
    for side in (-1, 1):
        _paint(image, frame.limb((side * 0.1, 0.16), (side * 0.2, 0.18), 0.05), 1)
    _paint(image, frame.ellipse(0, 0.16, 0.17, 0.14), 1)  # vertebra
    _paint(image, frame.ellipse(0, 0.2, 0.085, 0.075), brain)
    _paint(image, frame.limb((0, 0.3), (0, 0.4), 0.04), 1)


# ---- radiographs: what the ray passed through adds up ----


def _hand(rng, style):
    right = rng.random() < 0.35
    # Most lie straight; some plates were exposed with the arm from the side.
    turn = rng.normal(6, 15) if rng.random() < 0.8 else rng.uniform(-110, 110)
    frame = _Frame(
        rng,
        turn,
        rng.uniform(0.98, 1.3),
        (rng.normal(0, 0.07), rng.normal(0.1, 0.07)),
        warp=0.012,
        aspect=rng.uniform(0.92, 1.1),
        mirror=right,
    )
    soft = np.zeros((_GRID, _GRID), np.float32)
    bone = np.zeros_like(soft)

    def flesh(a, b, ra, rb=None):
        window = frame.limb_window(a, b, ra, rb)
        distance, ratio = frame.limb_distance(a, b, ra, rb, window)
        thickness = np.sqrt(np.maximum(1 - 0.85 * ratio * ratio, 0)) * np.float32(2.8 * ra + 0.42)
        np.maximum(soft[window], frame.cover(distance) * thickness, out=soft[window])

    def tube(a, b, ra, rb=None, density=1.0):
        window = frame.limb_window(a, b, ra, rb)
        distance, ratio = frame.limb_distance(a, b, ra, rb, window)
        wall = (0.72 + 0.28 * np.minimum(ratio, 1) ** 2) * np.float32(density)  # a hollow shaft is dense at its rim
        np.maximum(bone[window], frame.cover(distance) * wall, out=bone[window])

    spread, curl = rng.uniform(0.5, 1.35), rng.uniform(0.0, 0.12)
    thick = rng.uniform(0.85, 1.15)
    wrist = (0.0, 0.5)
    # Angle from straight up (degrees), length of metacarpal and of the three phalanges; little finger to index finger.
    fingers = (
        (-24, 0.36, (0.20, 0.12, 0.10)),
        (-9, 0.39, (0.25, 0.16, 0.11)),
        (4, 0.42, (0.27, 0.18, 0.12)),
        (17, 0.42, (0.25, 0.15, 0.11)),
    )
    roots = (-0.13, -0.05, 0.04, 0.12)
    for (angle, palm, phalanges), root in zip(fingers, roots, strict=True):
        t = np.deg2rad(angle * (0.75 + 0.25 * spread))
        start = np.array((root, 0.3))
        end = start + palm * np.array((np.sin(t), -np.cos(t)))
        flesh(start, end, 0.115 * thick, 0.09 * thick)
        tube(start + (end - start) * 0.06, start + (end - start) * 0.93, 0.036 * thick, 0.042 * thick)
        tube(start + (end - start) * 0.2, start + (end - start) * 0.8, 0.03 * thick)
        t = np.deg2rad(angle * spread + rng.normal(0, 3))
        bend = rng.uniform(1 - curl, 1)
        for k, length in enumerate(phalanges):
            step = length * bend * (1 - 2 * curl * k * rng.random()) * np.array((np.sin(t), -np.cos(t)))
            width = (0.037, 0.032, 0.027)[k] * thick
            flesh(end, end + step, 0.09 * thick - 0.006 * k, 0.084 * thick - 0.008 * k)
            tube(end + step * 0.1, end + step * 0.88, width, width * 0.85)
            tube(end + step * 0.1, end + step * 0.14, width * 1.35)
            tube(end + step * 0.84, end + step * 0.87, width * 1.1)
            end = end + step
            t += rng.normal(0, 0.05)
    # Thumb: one metacarpal, two phalanges.
    t = np.deg2rad(rng.uniform(25, 65))
    start = np.array((0.15, 0.36))
    for k, length in enumerate((0.27, 0.2, 0.14)):
        step = length * np.array((np.sin(t), -np.cos(t)))
        flesh(start, start + step, (0.12, 0.078, 0.068)[k] * thick, (0.085, 0.07, 0.055)[k] * thick)
        tube(start + step * 0.06, start + step * 0.92, (0.04, 0.033, 0.026)[k] * thick)
        start = start + step
        t += rng.normal(0.0, 0.15)
    flesh((-0.06, 0.12), (-0.03, 0.38), 0.19 * thick)
    flesh((0.06, 0.12), (0.03, 0.38), 0.19 * thick)
    tilt = rng.normal(0, 0.12)
    elbow = (tilt, 1.6)
    flesh(wrist, elbow, 0.2 * thick, 0.26 * thick)
    for x, y in ((-0.12, 0.38), (-0.03, 0.34), (0.06, 0.35), (0.14, 0.38), (-0.08, 0.47), (0.02, 0.45), (0.1, 0.46)):
        x, y = x + rng.normal(0, 0.01), y + rng.normal(0, 0.01)
        np.maximum(bone, frame.ellipse(x, y, 0.05, 0.048) * np.float32(rng.uniform(0.6, 0.95)), out=bone)  # carpals
    tube((0.08, 0.58), (0.09 + tilt * 0.7, 1.6), 0.105 * thick, 0.06 * thick, 1.1)  # radius
    tube((-0.11, 0.62), (-0.12 + tilt * 0.7, 1.6), 0.06 * thick, 0.055 * thick, 1.1)  # ulna
    soft_weight, bone_weight = rng.uniform(0.45, 0.85), rng.uniform(0.5, 0.95)
    exposure = 1 - np.exp(-(soft_weight * soft + bone_weight * bone * (soft > 0)))
    image = _down(exposure) * rng.uniform(1.05, 1.4)
    base = rng.uniform(0.0, 0.1)
    image = base + (1 - base) * image
    if rng.random() < 0.06:  # a faint, under-exposed plate: bright everywhere
        image = rng.uniform(0.45, 0.65) + 0.4 * image
    image *= 1 + 0.5 * base * _down(frame.texture(rng, 2))
    if rng.random() < 0.75:  # lead marker with the side's letter
        height, width = rng.integers(5, 9), rng.integers(4, 7)
        row, column = rng.integers(2, 46), rng.choice([rng.integers(1, 8), rng.integers(50, 56)])
        patch = image[row : row + height, column : column + width]
        patch *= 0.3
        white = rng.uniform(0.7, 1)
        patch[1:-1, 1] = white
        if right:
            middle = height // 2
            patch[1, 1:-1] = white
            patch[middle, 1:-1] = white
            patch[1:middle, -2] = white
            patch[middle + 1 : -1, -2] = white
        else:
            patch[-2, 1:-1] = white
    if rng.random() < 0.5:  # collimator's edge
        edge, value = rng.integers(0, 2), rng.choice([0.0, 0.3, 0.6])
        for _ in range(2):
            image[: edge + 1, :] = value
            image[:, SIZE - edge - 1 :] = value
            image = image[::-1, ::-1]
    image += rng.normal(0, 0.012 * style.noise, image.shape) * np.sqrt(np.clip(image, 0, 1))
    return 1 - np.clip(image, 0, 1) if rng.random() < _INVERTED else image


def _cxr(rng, style):
    frame = _Frame(
        rng,
        rng.normal(0, 4),
        rng.uniform(0.88, 1.15),
        (rng.normal(0, 0.07), rng.normal(0, 0.08)),
        warp=0.02,
        aspect=rng.uniform(0.9, 1.1),
    )
    v = frame.v
    chest = rng.uniform(0.84, 1.05)
    distance = frame.box_distance(0, 0.9, chest, 1.5, 5)
    for side in (-1, 1):
        drop = rng.uniform(-0.05, 0.12)  # shoulders
        np.minimum(
            distance,
            frame.limb_distance((side * 0.2, -0.68), (side * 0.95, -0.52 + drop), 0.18, 0.28)[0],
            out=distance,
        )
        if rng.random() < 0.75:
            out = rng.uniform(0.1, 0.7)
            arm = frame.limb_distance((side * 1.0, -0.45 + drop), (side * (1.05 + out), 0.8), 0.24, 0.16)[0]
            np.minimum(distance, arm, out=distance)
    np.minimum(distance, frame.limb_distance((0, -1.3), (0, -0.6), 0.2, 0.36)[0], out=distance)
    body = frame.cover(distance)
    # The ray's way through the body gets shorter towards the skin.
    depth = (
        body
        * np.sqrt(np.clip(-distance / np.float32(rng.uniform(0.2, 0.4)), 0, 1))
        * np.float32(rng.uniform(0.64, 0.82))
    )

    top, bottom = rng.uniform(-0.72, -0.6), rng.uniform(0.15, 0.5)
    lungs = np.zeros_like(v)
    for side in (-1, 1):
        low = bottom + (0.05 if side > 0 else -0.02) + rng.normal(0, 0.03)
        inner, outer = 0.02, rng.uniform(0.62, 0.72) * (0.4 + 0.6 * chest / 0.85)
        centre, width = side * (inner + outer) / 2, (outer - inner) / 2 + 0.02
        floor = low + 0.5  # below the dome: the lung reaches farthest down at its outer edge
        lung = frame.box_distance(centre, (top + floor) / 2, width, (floor - top) / 2, 2.6)
        dome = (centre - side * 0.03, low + 0.34)
        np.maximum(lung, -frame.limb_distance(dome, (dome[0], 3.0), 0.34)[0], out=lung)  # diaphragm
        lungs += frame.cover(lung) * np.clip(0.35 - lung * 5, 0, 1) * rng.uniform(0.85, 1.0)
    lungs = ndimage.gaussian_filter(np.minimum(lungs, 1), 1.2)
    if rng.random() < 0.2:  # one lung clouded
        cloud = frame.ellipse_distance(rng.choice([-0.4, 0.4]), rng.uniform(-0.2, 0.3), 0.3, 0.3)
        lungs *= 1 - rng.uniform(0.3, 0.8) * np.clip(0.6 - cloud * 2.5, 0, 1)
    air = rng.uniform(0.36, 0.6) * (1.1 - 0.25 * np.clip(v - top, 0, 1.4))
    depth -= air * lungs
    depth += np.clip((v - bottom + 0.1) * 2, 0, 1) * body * (1 - lungs) * rng.uniform(0.05, 0.25)  # belly

    # Heart and great vessels; the apex points to the picture's right, the patient's left.
    heart = rng.uniform(0.8, 1.35)
    shadow = frame.limb(
        (0.02, bottom - 0.42), (rng.uniform(0.12, 0.24) * heart, bottom - 0.05), 0.13 * heart, 0.21 * heart
    )
    np.maximum(shadow, frame.limb((0, -0.9), (0.02, 1.1), rng.uniform(0.1, 0.14), 0.16), out=shadow)
    np.maximum(shadow, frame.ellipse(0.11, bottom - 0.62, 0.1, 0.12), out=shadow)  # aortic knob
    shadow = ndimage.gaussian_filter(shadow, 2.0)
    depth += shadow * lungs * air * rng.uniform(0.75, 1.0)
    spine = frame.limb((0, -1.3), (0, 1.3), 0.08)
    for k in range(16):  # discs between the vertebrae
        spine -= 0.5 * frame.limb((-0.07, -1.1 + 0.14 * k), (0.07, -1.1 + 0.14 * k), 0.012)
    depth += np.maximum(spine, 0) * rng.uniform(0.06, 0.16)
    depth -= frame.limb((0, -1.1), (-0.01, top + 0.4), 0.035) * rng.uniform(0.05, 0.16)  # trachea

    vessels = np.zeros_like(v)
    for _ in range(rng.integers(12, 24)):  # vessels leave the lungs' roots
        side, t, far = rng.choice([-1, 1]), rng.uniform(-1.1, 1.5), rng.uniform(0.4, 1)
        start = (side * 0.13, bottom - 0.45 + rng.normal(0, 0.06))
        end = (start[0] + side * 0.4 * far * np.cos(t), start[1] + 0.42 * far * np.sin(t))
        np.maximum(vessels, frame.limb(start, end, 0.026, 0.006) * rng.uniform(0.05, 0.17), out=vessels)
    depth += vessels * lungs
    pitch, strength = rng.uniform(0.115, 0.15), rng.uniform(0.03, 0.12)
    ribs = np.zeros_like(v)
    for k in range(9):  # behind they run outwards and level, at the side they turn down and forward
        y = top + 0.07 + pitch * k
        reach = 0.68 * np.sqrt(max(0.25, 1 - ((k - 6) / 8.0) ** 2)) * chest / 0.85
        for side in (-1, 1):
            path = ((0.12, 0.02), (0.45, -0.02), (0.8, 0.04), (1.0, 0.14), (0.97, 0.22), (0.75, 0.32))
            points = [(side * reach * f, y + g) for f, g in path]
            ribs += frame.curve(points[:5], 0.022)
            ribs += 0.5 * frame.curve(points[4:], 0.022)
    depth += ribs * body * strength * (0.35 + 0.65 * lungs)
    for side in (-1, 1):
        lift = rng.normal(0, 0.03)
        points = [(side * 0.08, top + 0.13), (side * 0.35, top + 0.06 + lift), (side * 0.75, top + 0.01 + lift)]
        depth += frame.curve(points, 0.026) * rng.uniform(0.08, 0.16)  # clavicle
        depth += frame.limb((side * 0.76, top + 0.12), (side * 0.62, top + 0.6), 0.06, 0.02) * 0.07  # scapula
        depth += frame.limb((side * 0.88, top + 0.12), (side * 1.05, 0.5), 0.075, 0.05) * body * 0.12  # humerus
    if rng.random() < 0.4:  # gas in the stomach
        gas = frame.ellipse(rng.uniform(0.2, 0.45), bottom + rng.uniform(0.14, 0.25), *rng.uniform(0.05, 0.14, 2))
        depth -= ndimage.gaussian_filter(gas, 1.5) * rng.uniform(0.05, 0.25)
    depth += 0.03 * frame.texture(rng, 3) * body
    image = _down(np.maximum(depth, 0)) * rng.uniform(1.05, 1.3)
    if rng.random() < 0.3:  # faint scatter outside the body
        image = np.maximum(image, rng.uniform(0, 0.12))
    if rng.random() < 0.6:  # lead marker
        row, column = rng.integers(1, 12), rng.choice([rng.integers(1, 5), rng.integers(56, 61)])
        image[row : row + rng.integers(2, 4), column : column + rng.integers(2, 4)] = 1
    image += rng.normal(0, 0.012 * style.noise, image.shape) * np.sqrt(np.clip(image, 0, 1))
    return 1 - np.clip(image, 0, 1) if rng.random() < _INVERTED else image


# ---- breast MRI ----


def _breast_mri(rng, style):
    frame = _Frame(
        rng, rng.normal(0, 3), rng.uniform(0.85, 1.08), (rng.normal(0, 0.06), rng.normal(0.05, 0.07)), warp=0.03
    )
    rx, ry, cy = rng.uniform(0.76, 0.98), rng.uniform(0.55, 0.72), 0.62
    wall = frame.box_distance(0, cy, rx, ry, 2.6)
    outer = wall
    length = rng.uniform(-0.05, 0.55) if rng.random() < 0.85 else rng.uniform(-0.15, 0.0)
    apart, width = rng.uniform(0.36, 0.5), rng.uniform(0.17, 0.27)
    centres = []
    for side in (-1, 1):
        own = length + rng.normal(0, 0.05)
        if rng.random() < 0.08:
            own -= 0.3  # after surgery, or this slice passes above it
        top = cy - ry - own + 0.1
        breast = frame.limb_distance(
            (side * apart, cy - ry + 0.15),
            (side * (apart + rng.normal(0, 0.04)), top),
            width * 1.2,
            width * rng.uniform(0.85, 1.1),
        )[0]
        # Smooth union: skin runs over from the chest wall to the breast without a kink.
        h = np.clip(0.5 + (outer - breast) / 0.24, 0, 1)
        outer = outer + h * (breast - outer) - np.float32(0.12) * h * (1 - h)
        centres.append((side * apart, top, own))
    fat = rng.uniform(0.6, 0.85)
    gland = fat * rng.uniform(0.15, 0.7)
    if rng.random() < 0.1:  # fat suppressed: glands shine instead
        fat, gland = rng.uniform(0.2, 0.3), rng.uniform(0.5, 0.8)
    image = frame.cover(outer) * fat
    rim = rng.uniform(0.06, 0.15)
    inside = frame.cover(wall + np.float32(rim))
    muscle = frame.cover(np.abs(wall + np.float32(rim + 0.03)) - 0.03)
    for x, top, own in centres:  # glandular tissue: darker strands inside the fat
        if own > 0.12:
            region = frame.ellipse(x, top + 0.12 + own * 0.35, width * 0.75, 0.08 + own * 0.5) * frame.cover(
                outer + 0.06
            )
            strands = np.clip(frame.texture(rng, 30) + rng.uniform(-1.2, 0.9), 0, 1)
            _paint(image, region * strands, gland)
    dark = rng.uniform(0.02, 0.12)
    _paint(image, inside, dark)
    _paint(image, inside * np.clip(frame.texture(rng, 12), 0, 1), dark * rng.uniform(1, 2.5))
    _paint(image, muscle * 0.7, dark * 2)
    if rng.random() < 0.5:
        _paint(image, frame.cover(np.abs(wall + np.float32(rim + 0.09)) - 0.012) * rng.uniform(0.2, 0.7), fat * 0.7)
    if rng.random() < 0.5:  # beating heart: bright and smeared
        for _ in range(3):
            _paint(
                image,
                frame.ellipse(
                    rng.normal(0.25, 0.12), rng.normal(cy - 0.1, 0.1), *rng.uniform(0.05, 0.2, 2), rng.uniform(0, 90)
                )
                * inside,
                rng.uniform(0.15, 0.7),
            )
    # The receive coil lies in front: signal falls towards the back.
    depth = np.clip((frame.v - (cy - ry)) / 1.0, -0.5, 1)
    image *= 1 - rng.uniform(0.1, 0.55) * np.clip(depth, 0, 1)
    image *= 1 + 0.08 * frame.texture(rng, 4)
    image = _down(image)
    image[rng.integers(52, 60) :] = 0  # end of the field of view
    image += rng.normal(0, 0.02 * style.noise, image.shape) * np.sqrt(np.clip(image, 0, 1))
    return _stored(rng, image)


# Each takes ``(rng, style)`` and gives grey values of about 0…1, ``(64, 64)``, before the scanner's style is applied.
_PAINTERS: dict[str, Callable] = {
    "AbdomenCT": _abdomen_ct,
    "BreastMRI": _breast_mri,
    "CXR": _cxr,
    "ChestCT": _chest_ct,
    "Hand": _hand,
    "HeadCT": _head_ct,
}


def _render(image, rng, style: ScannerStyle, ct: bool):
    """The scanner's and the archive's part: point spread, shading, contrast, 8 bits."""
    image = np.clip(image, 0, 1.2)
    if style.blur:
        image = ndimage.gaussian_filter(image, style.blur * rng.uniform(0.6, 1.2) * (0.8 if ct else 1))
    if style.shading and not ct:  # CT is calibrated to water: no drift over the picture
        axis = np.linspace(-1, 1, SIZE)
        a, b, c = rng.normal(0, style.shading, 3)
        image = image * (1 + a * axis[:, None] + b * axis[None] + c * axis[:, None] * axis[None])
    own = 0.5 if ct else 1.0  # share of the style's contrast that survives calibration
    gain, gamma = (np.array((style.gain, style.gamma)) * rng.normal(1, 0.03, 2)) ** own
    image = np.clip(image, 0, 1) ** gamma
    image = np.where(image > 0.01, image * gain + own * style.offset, image)
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)


def draw(class_name: str, rng: np.random.Generator, style: ScannerStyle | None = None) -> np.ndarray:
    """Draw one picture.

    Args:
        class_name: one of :data:`CLASSES`.
        rng: source of everything that varies; the same state gives the same picture.
        style: the scanner; default one of :data:`STYLES`, drawn from ``rng``.

    Returns:
        Grey values 0…255, ``(64, 64)`` uint8, rows from top to bottom.

    Raises:
        CourseError: for an unknown class.
    """
    if class_name not in _PAINTERS:
        raise CourseError(f"There is no class {class_name!r} to draw; choose one of {', '.join(CLASSES)}.")
    if style is None:
        style = STYLES[rng.integers(len(STYLES))]
    return _render(_PAINTERS[class_name](rng, style), rng, style, ct=class_name.endswith("CT"))


# ---- the folder ----


def _about_text(per_class: int, seed: int, styles: Sequence[ScannerStyle]) -> str:
    return (
        "These pictures are drawings, not patients.\n"
        "\n"
        "They were generated by this course (src/phantoms.py) as a stand-in for MedNIST, in its layout:\n"
        "64x64 grey JPEG, one folder a class. No real image is in them.\n"
        "Do not use them to judge a method for the clinic.\n"
        "Picture number i of a class shows scanner style i modulo the number of styles.\n"
        "\n"
        f"generator: src.phantoms, version {_VERSION}\n"
        f"seed: {seed}\n"
        f"per_class: {per_class}\n"
        f"styles: {'; '.join(str(style) for style in styles)}\n"
    )


def read_about(folder: Path) -> dict[str, str] | None:
    """What a MedNIST folder says about itself: ``{"generator", "seed", "per_class", "styles"}``, all text.

    Returns:
        None when the folder is not made by :func:`make_mednist` (real images, or nothing there). The text file goes
        into place with all pictures or not at all.
    """
    about = Path(folder) / ABOUT
    if not about.is_file():
        return None
    pairs = (line.split(": ", 1) for line in about.read_text(encoding="utf-8").splitlines() if ": " in line)
    found = {key: value for key, value in pairs if key in ("generator", "seed", "per_class", "styles")}
    return found if found.get("generator", "").startswith("src.phantoms") else None


def _already_there(folder: Path, about: str, per_class: int) -> bool:
    """True when the folder holds just what is asked for, False when there is nothing.

    Raises:
        CourseError: when it holds something else.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    remedy = f"Delete or rename {folder}, or choose another folder, and run again."
    marker = folder / ABOUT
    if not marker.is_file():
        raise CourseError(f"{folder} exists and was not made by this generator. {remedy}")
    if marker.read_text(encoding="utf-8") != about:
        made = read_about(folder) or {}
        raise CourseError(
            f"{folder} holds other drawings (seed {made.get('seed')}, {made.get('per_class')} a class, "
            f"{made.get('generator')}) than those asked for. {remedy}"
        )
    for name in CLASSES:
        count = sum(1 for _ in (folder / name).glob("*.jpeg"))
        if count != per_class:
            raise CourseError(f"{folder / name} has {count} pictures where {ABOUT} promises {per_class}. {remedy}")
    return True


def make_mednist(folder: Path, per_class: int = 200, seed: int = 0, styles: Sequence[ScannerStyle] = STYLES) -> Path:
    """Write drawings of all classes to ``<folder>/<class>/000000.jpeg`` and on, and ``<folder>/ABOUT.txt``.

    The folder appears complete or not at all: it is written beside and moved into place by one rename. The same
    arguments give the same bytes, on the same versions of NumPy and Pillow; picture ``i`` does not depend on
    ``per_class``. Two processes may make the same folder at once: the first to finish wins, the other uses its folder.

    Args:
        folder: the MedNIST folder itself.
        per_class: pictures per class, 1…1,000,000.
        seed: not negative.
        styles: scanners in turn: picture ``i`` of a class shows ``styles[i % len(styles)]``.

    Returns:
        ``folder``, at once if it is there already with the same parameters.

    Raises:
        CourseError: if the folder holds something else or cannot be written, or for arguments out of range.
    """
    folder, styles = Path(folder), tuple(styles)
    whole = isinstance(per_class, int) and isinstance(seed, int)
    if not whole or not 1 <= per_class <= 1_000_000 or seed < 0 or not styles:
        raise CourseError(
            f"Cannot draw per_class={per_class}, seed={seed} with {len(styles)} styles: "
            "per_class is a whole number from 1 to 1,000,000, seed one from 0, and at least one style is needed."
        )
    about = _about_text(per_class, seed, styles)
    try:
        if _already_there(folder, about, per_class):
            return folder
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as beside:
            made = Path(beside) / folder.name
            for number, name in enumerate(CLASSES):
                (made / name).mkdir(parents=True)
                for i in range(per_class):
                    rng = np.random.default_rng((seed, number, i))
                    jpeg = io.BytesIO()
                    Image.fromarray(draw(name, rng, styles[i % len(styles)])).save(jpeg, "JPEG")
                    # Pillow writing to disk by itself would report a full disk as "encoder error -2".
                    (made / name / f"{i:06d}.jpeg").write_bytes(jpeg.getvalue())
            (made / ABOUT).write_text(about, encoding="utf-8")
            try:
                made.rename(folder)
            except OSError:
                # Another process was faster: its folder serves as well, if it is the same.
                if not _already_there(folder, about, per_class):
                    raise
    except OSError as error:
        raise CourseError(
            f"Cannot write the drawings to {folder}: {error.strerror or error}. "
            "Free some space or set COURSE_DATA to a folder you can write to; nothing was left behind."
        ) from error
    return folder


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line of this module; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m src.phantoms", description="Generate stand-ins: drawings, not patients."
    )
    kinds = parser.add_subparsers(dest="kind", required=True)
    mednist = kinds.add_parser("mednist", help="six classes of 64x64 pictures in MedNIST's layout")
    mednist.add_argument("--folder", type=Path, required=True, help="the MedNIST folder to make")
    mednist.add_argument("--per-class", type=int, default=200)
    mednist.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    try:
        folder = make_mednist(options.folder, options.per_class, options.seed)
    except CourseError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{folder}: {options.per_class} drawings of each of {len(CLASSES)} classes, not patients; see {ABOUT}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
