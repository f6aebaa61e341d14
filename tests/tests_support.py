"""Toy volumes that more than one test module needs."""

import nibabel as nib
import numpy as np


def ball_case(folder, name="case", spacing=(1.0, 1.0, 3.0), shape=(80, 80, 20), centre=(4.0, -6.0, 3.0), **options):
    """A bright ball of 15 mm radius (the gland) at ``centre`` mm from the middle of a noisy volume; returns the item."""
    codes, scale, radius = options.get("codes", "RAS"), options.get("scale", 1.0), options.get("radius", 15.0)
    folder.mkdir(parents=True, exist_ok=True)
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = -np.array(spacing) * (np.array(shape) - 1) / 2
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), axis=-1) * spacing + affine[:3, 3]
    label = (np.linalg.norm(grid - centre, axis=-1) < radius).astype(np.uint8)
    noise = np.random.default_rng(options.get("seed", 0)).normal(0, 2, shape)
    image = scale * (50 + 100 * label + noise)
    item = {"image": str(folder / f"{name}.nii.gz"), "label": str(folder / f"{name}_mask.nii.gz"), "site": "site-x"}
    for key, volume in (("image", image.astype(np.float32)), ("label", label)):
        stored = nib.Nifti1Image(volume, affine)
        turn = nib.orientations.ornt_transform(nib.io_orientation(affine), nib.orientations.axcodes2ornt(tuple(codes)))
        nib.save(stored.as_reoriented(turn), item[key])
    return item
