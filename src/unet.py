"""The network of the prostate part: a 3D U-Net with residual units, as MONAI builds it."""

from torch import nn

from src.common.seeds import seeded
from src.federation.lean import monai

SIZES = {"channels": (16, 32, 64, 128, 256), "strides": (2, 2, 2, 2), "num_res_units": 2}


class UNet(monai.networks.nets.UNet):
    """Residual U-Net for volumes with one channel in and one out.

    The U of Ronneberger et al. (MICCAI 2015) in 3D, with the residual units and strided convolutions of Kerfoot et al.,
    *Left-Ventricle Quantification Using Residual U-Net* (STACOM 2018). ``(batch, in_channels, x, y, z)`` floats, each side a
    multiple of the product of the strides, 16 by default, become ``(batch, out_channels, x, y, z)`` logits. The weights bear
    MONAI's names; ``seed`` is that of the first ones. https://monai.readthedocs.io/en/stable/networks.html#unet

    It normalises by instance, MONAI's default: each volume by its own statistics, in training as in validation. BatchNorm would
    keep running statistics of one hospital's scanner, and the average of four scanners' need fit none of them."""

    def __init__(self, spatial_dims=3, in_channels=1, out_channels=1, seed: int | None = None, **kwargs):
        with seeded(seed):
            super().__init__(spatial_dims, in_channels, out_channels, **(SIZES | kwargs))
        self.seed = seed  # FLARE writes a model into a job by the attributes that bear its arguments' names

    def head(self) -> nn.Module:
        """The last unit, 28 numbers: its input is normalised, so that they alone decide how sure the network can be."""
        return self.model[-1][-1]
