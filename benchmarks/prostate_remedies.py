"""What may help where prostates are imaged and outlined differently, beside fine-tuning: N4, coils at random, own normalisation."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import monai.transforms as mt
import nibabel as nib
import numpy as np
import torch
from monai.data import DataLoader, Dataset

from src.federation.methods import FedAvg, FedBN, Tensors
from src.federation.site import Site
from src.prostate.card import Settings
from src.prostate.transforms import augmentation, batches
from src.unet import UNet


def n4(items: Sequence[Mapping]) -> list[dict]:
    """The items with their images' slow changes of brightness estimated and divided out; computed once an image.

    Tustison et al., *N4ITK: Improved N3 Bias Correction*, IEEE TMI 29:1310 (2010)."""
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    found = []
    for item in items:
        file = Path(item["image"])
        out = file.parents[1] / "n4" / file.name
        if not out.exists():
            image = nib.load(file)
            values = image.get_fdata(dtype=np.float32)
            volume = sitk.GetImageFromArray(values)  # its axes come in the other order: z, y, x
            volume.SetSpacing([float(mm) for mm in image.header.get_zooms()[::-1]])
            small = sitk.Shrink(volume, [1, 4, 4])
            estimate = sitk.N4BiasFieldCorrectionImageFilter()
            estimate.Execute(small, small > 0)
            field = np.exp(sitk.GetArrayFromImage(estimate.GetLogBiasFieldAsImage(volume)))
            out.parent.mkdir(exist_ok=True)
            nib.Nifti1Image(values / field, image.affine, image.header).to_filename(out)
        found.append({**item, "image": str(out)})
    return found


class RandCoil(mt.RandomizableTransform):
    """See a prepared image as with a coil in the rectum, whose place and reach are drawn anew; its range is made 0 to 1 again."""

    def __init__(self, spacing: Sequence[float], prob: float = 0.5):
        super().__init__(prob)
        self.spacing, self.rescale = spacing, mt.ScaleIntensityRangePercentiles(0.5, 99.5, 0.0, 1.0, clip=True)

    def __call__(self, data: Mapping) -> dict:
        self.randomize(None)
        if not self._do_transform:
            return dict(data)
        where = self.R.normal(0, 8), self.R.uniform(-45, -20), self.R.normal(0, 8)  # mm from the middle of the image
        reach, power, floor = self.R.uniform(10, 25), self.R.uniform(2, 3.5), 10 ** self.R.uniform(-2.3, -0.7)
        sides = zip(data["image"].shape[1:], self.spacing, where, (1, 1, 0.55), strict=True)
        x, y, z = (weight * ((torch.arange(n) - (n - 1) / 2) * mm - one) for n, mm, one, weight in sides)
        distance = (x[:, None, None] ** 2 + y[:, None] ** 2 + z**2).sqrt()
        sensitivity = floor + 1 / (1 + (distance / reach) ** power)
        return {**data, "image": self.rescale(data["image"] * sensitivity)}


def batches_with_coils(prepared: Sequence[dict], settings: Settings, train: bool, seed: int = 0):
    """As :func:`src.prostate.transforms.batches`; half of the training volumes are seen as by :class:`RandCoil`."""
    if not train:
        return batches(prepared, settings, train, seed)
    data = Dataset(prepared, mt.Compose([RandCoil(settings.voxel_spacing), augmentation(settings)]))
    return DataLoader(data, settings.batch_size, shuffle=True, generator=torch.Generator().manual_seed(seed))


class AffineUNet(UNet):
    """The U-Net whose instance normalisation also scales and shifts, by numbers that are trained."""

    def __init__(self, seed: int | None = None):
        super().__init__(seed=seed, norm=("INSTANCE", {"affine": True}))


def affine_tensors(model: torch.nn.Module) -> list[str]:
    """Names of the scales and shifts of all instance normalisation in 3D."""
    layers = [name for name, layer in model.named_modules() if isinstance(layer, torch.nn.InstanceNorm3d)]
    return [name for name in model.state_dict() if name.rpartition(".")[0] in layers]


class OwnAffine(FedBN):
    """FedBN's idea for instance normalisation, which has no statistics: each site keeps its own scales and shifts."""

    def __init__(self, site: Site):
        FedAvg.__init__(self, site)
        self.stays, self.kept = affine_tensors(site.model), Tensors()
        site.keeps["model"] = self.kept
