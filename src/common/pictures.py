"""Pictures of any source as grey squares, and what had to be done to them."""

import numpy as np
from PIL import ExifTags, Image, ImageOps

SUFFIXES = (".jpeg", ".jpg", ".png", ".tif", ".tiff")


def _is_deep(picture: Image.Image) -> bool:
    return picture.mode in ("I", "F") or picture.mode.startswith("I;16")


def grey_square(picture: Image.Image, size: int) -> Image.Image:
    """A picture of any size and kind as grey values of 8 bits, ``(size, size)``; a ``ValueError`` for several, or for NaN.

    It is turned as its EXIF data say, and scaled as a whole, with black beside it where it is not square. Values of 8 bits stay as
    they are. Pixels of 16 bits or floating point have no scale in common, so the file's own range becomes 0 to 255.
    """
    # A telephone's MPO file holds a preview beside the photograph, which comes first.
    if getattr(picture, "n_frames", 1) > 1 and picture.format != "MPO":
        raise ValueError(f"it holds {picture.n_frames} pictures, not one")
    upright = ImageOps.exif_transpose(picture)
    if _is_deep(picture):
        values = np.asarray(upright, dtype=np.float32)
        if not np.isfinite(values).all():
            raise ValueError("it holds NaN or infinity")
        values = values - values.min()
        upright = Image.fromarray(np.rint(values * (255 / (values.max() or 1))).astype(np.uint8))
    else:
        upright = upright.convert("L")
    return ImageOps.pad(upright, (size, size))


def remarks(picture: Image.Image) -> list[str]:
    """What :func:`grey_square` does to a picture that a person should know of."""
    checks = {
        "scaled by the file's own range of values, for it has more than 8 bits": _is_deep(picture),
        "turned as its EXIF data say": picture.getexif().get(ExifTags.Base.Orientation, 1) != 1,
        "padded with black, for it is not square": picture.width != picture.height,
    }
    return [what for what, is_so in checks.items() if is_so]
