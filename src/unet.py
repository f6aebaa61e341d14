"""The network of the prostate part: a 3D U-Net with residual units, as MONAI builds it."""

# ruff: noqa: E402
from collections.abc import Sequence

from src.federation.lean import import_monai

import_monai()  # before anything else imports it

from monai.networks.nets import UNet as MonaiUNet
from torch import nn

from src.common.seeds import seeded


class UNet(MonaiUNet):
    """Residual U-Net for volumes with one channel in and one out.

    The U of Ronneberger et al. (MICCAI 2015) in 3D, with the residual units and strided convolutions of Kerfoot et al.,
    *Left-Ventricle Quantification Using Residual U-Net* (STACOM 2018). ``(batch, in_channels, x, y, z)`` floats, each side a
    multiple of the product of the strides, 16 by default, become ``(batch, out_channels, x, y, z)`` logits. The weights bear
    MONAI's names; ``seed`` is that of the first ones. https://monai.readthedocs.io/en/stable/networks.html#unet

    It normalises by instance, MONAI's default, and in a federation that matters: each volume is centred and scaled by its own
    statistics, in training as in validation. Batch normalisation would keep running statistics of one hospital's scanner, and
    the average of four scanners' statistics fits none of them.
    """

    def __init__(
        self,
        spatial_dims: int = 3,
        in_channels: int = 1,
        out_channels: int = 1,
        channels: Sequence[int] = (16, 32, 64, 128, 256),
        strides: Sequence[int] = (2, 2, 2, 2),
        num_res_units: int = 2,
        seed: int | None = None,
        **kwargs,
    ):
        with seeded(seed):
            sizes = spatial_dims, in_channels, out_channels, channels, strides
            super().__init__(*sizes, num_res_units=num_res_units, **kwargs)
        self.seed = seed  # FLARE writes a model into a job by the attributes that bear its arguments' names

    def head(self) -> nn.Module:
        """The last unit, 28 numbers: its input is normalised, so that they alone decide how sure the network can be."""
        return self.model[-1][-1]
