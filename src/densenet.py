"""The classifier of MedNIST: DenseNet121, as MONAI builds it."""

# ruff: noqa: E402
from src.federation.lean import import_monai

import_monai()  # before anything else imports it

from monai.networks.nets import DenseNet121 as MonaiDenseNet121

from src.common.seeds import seeded


class DenseNet121(MonaiDenseNet121):
    """DenseNet121 (Huang et al., *Densely Connected Convolutional Networks*, CVPR 2017) for grey 2D images.

    ``(batch, in_channels, height, width)`` floats, 64×64 here, become ``(batch, out_channels)`` logits, one a class. The weights
    bear MONAI's names; a server and a notebook that name the same ``seed`` start from the same ones.
    """

    def __init__(
        self, spatial_dims: int = 2, in_channels: int = 1, out_channels: int = 6, seed: int | None = None, **kwargs
    ):
        with seeded(seed):
            super().__init__(spatial_dims=spatial_dims, in_channels=in_channels, out_channels=out_channels, **kwargs)
        self.seed = seed  # FLARE writes a model into a job by the attributes that bear its arguments' names


class CompactDenseNet(DenseNet121):
    """The same with fewer and thinner layers, to compare many federations on a CPU: 25 thousand weights instead of 7 million."""

    def __init__(self, seed: int | None = None):
        super().__init__(seed=seed, init_features=16, growth_rate=8, block_config=(2, 4, 4, 2), bn_size=2)
