"""The same images as sites with different scanners would have them: a step of data preparation, for experiments."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from data_scripts.folders import generated
from data_scripts.sharing import random_numbers
from src.common.errors import CourseError
from src.common.files import stamp
from src.mednist.card import Settings

VERSION = 2  # changes whenever the same style gives other pixels


@dataclass(frozen=True)
class ScannerStyle:
    """How a scanner, and whoever set it up, changes a grey image with values from 0 to 1."""

    description: str
    gamma: float = 1.0  # exponent: above 1, dark tissue gets darker
    contrast: float = 1.0  # factor on the distance from middle grey
    blur: float = 0.0  # standard deviation of the point spread function in pixels
    noise: float = 0.0  # standard deviation
    inverted: bool = False  # black for white, as DICOM's MONOCHROME1 stores it


STYLES = (
    ScannerStyle("as it was"),
    ScannerStyle("bright and soft", gamma=0.45, blur=0.8),
    ScannerStyle("dark and noisy", gamma=2.2, noise=0.06),
    ScannerStyle("inverted, flat", contrast=0.6, inverted=True),
)


def scan(image: np.ndarray, style: ScannerStyle, rng: np.random.Generator) -> np.ndarray:
    """A grey image ``(height, width)`` of uint8 in the style of a scanner."""
    values = ndimage.gaussian_filter(image / 255.0, style.blur) if style.blur else image / 255.0
    values = 0.5 + style.contrast * (values**style.gamma - 0.5)
    values = values + style.noise * rng.standard_normal(values.shape)
    values = 1 - values if style.inverted else values
    return np.rint(255 * np.clip(values, 0, 1)).astype(np.uint8)


def rescan(shares: Mapping[str, Sequence[dict]], folder: Path, out: Path, seed: int = 0) -> dict[str, list[dict]]:
    """Write every site's images as its scanner shows them, the first site's by the first of :data:`STYLES`, and so on: what a
    network would see of each, 64×64 of 8 bits. The new images go to ``out`` as they lay below ``folder``; what was made there from
    the same is used again. ``seed`` fixes the noise. Returns ``shares`` with the new paths. A ``CourseError`` for too many sites,
    an image that cannot be read, or an ``out`` that holds something else."""
    if len(shares) > len(STYLES):
        raise CourseError(f"There are {len(STYLES)} scanners, too few for {len(shares)} sites.")
    places = {site: [Path(item["image"]).relative_to(folder) for item in items] for site, items in shares.items()}
    made_from = [[site, place.as_posix(), stamp(folder / place)] for site in places for place in places[site]]
    parameters = {"note": "Made from other images by data_scripts.scanners.", "version": VERSION, "seed": seed}
    parameters |= {"styles": [asdict(style) for style in STYLES]}
    parameters |= {"made_from": hashlib.sha256(json.dumps(made_from).encode()).hexdigest()}

    def draw(new: Path) -> None:
        from src.mednist.transforms import prepare

        for (site, own), style in zip(places.items(), STYLES, strict=False):
            rng = random_numbers(seed, site)
            for place, item in zip(own, prepare(shares[site], Settings()), strict=True):
                target = new / place
                target.parent.mkdir(parents=True, exist_ok=True)
                image = np.rint(255 * item["image"][0].numpy()).astype(np.uint8)
                Image.fromarray(scan(image, style, rng)).save(target, quality=95)

    generated(out, parameters, draw)
    moved = {site: zip(items, places[site], strict=True) for site, items in shares.items()}
    return {site: [{**item, "image": str(out / place)} for item, place in pairs] for site, pairs in moved.items()}
