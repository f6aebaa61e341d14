"""The classifier of MedNIST: DenseNet121, as MONAI builds it."""

# ruff: noqa: E402
from src.common.lean import import_monai

import_monai()  # before anything else imports it

from monai.networks.nets import DenseNet121 as MonaiDenseNet121

from src.common.seeds import seeded


class DenseNet121(MonaiDenseNet121):
    """DenseNet121 (Huang et al., *Densely Connected Convolutional Networks*, CVPR 2017) for grey 2D images.

    Input: ``(batch, in_channels, height, width)`` floats, 64×64 here. Output: ``(batch, out_channels)`` logits.
    The names of the weights are MONAI's own, so that a checkpoint of either class fits the other.

    Args:
        spatial_dims: 2 for images, 3 for volumes.
        in_channels: channels of the image, 1 for grey.
        out_channels: number of classes, 6 in MedNIST.
        seed: of the first weights; a server and a notebook that name the same seed start from the same model.
        **kwargs: everything else that ``monai.networks.nets.DenseNet121`` takes.
    """

    def __init__(
        self, spatial_dims: int = 2, in_channels: int = 1, out_channels: int = 6, seed: int | None = None, **kwargs
    ):
        with seeded(seed):
            super().__init__(spatial_dims=spatial_dims, in_channels=in_channels, out_channels=out_channels, **kwargs)
        self.seed = seed  # FLARE writes a model into a job by the attributes that bear its arguments' names


class CompactDenseNet(DenseNet121):
    """The same with fewer and thinner layers: 25 thousand weights instead of 7 million.

    It has BatchNorm in the same places, and learns MedNIST nearly as well: enough to compare many federations on a CPU.

    Args:
        seed: of the first weights.
    """

    def __init__(self, seed: int | None = None):
        super().__init__(seed=seed, init_features=16, growth_rate=8, block_config=(2, 4, 4, 2), bn_size=2)
