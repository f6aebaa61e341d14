"""The classifiers of MedNIST: DenseNet121, as MONAI builds it, and two small ones."""

from torch import nn

from src.common.seeds import seeded
from src.federation.lean import monai


class DenseNet121(monai.networks.nets.DenseNet121):
    """DenseNet121 (Huang et al., *Densely Connected Convolutional Networks*, CVPR 2017) for grey 2D images.

    ``(batch, in_channels, height, width)`` floats, 64×64 here, become ``(batch, out_channels)`` logits, one a class. The weights
    bear MONAI's names; a server and a notebook that name the same ``seed`` start from the same ones."""

    def __init__(self, spatial_dims=2, in_channels=1, out_channels=6, seed: int | None = None, **kwargs):
        with seeded(seed):
            super().__init__(spatial_dims, in_channels, out_channels, **kwargs)
        self.seed = seed  # FLARE writes a model into a job by the attributes that bear its arguments' names


class CompactDenseNet(DenseNet121):
    """The same with fewer and thinner layers, to compare many federations on a CPU: 25 thousand weights instead of 7 million."""

    def __init__(self, seed: int | None = None):
        super().__init__(seed=seed, init_features=16, growth_rate=8, block_config=(2, 4, 4, 2), bn_size=2)


class SmallNet(nn.Sequential):
    """Three convolutions and a linear layer, 26 thousand weights, without normalisation or pooling: what can be trained privately,
    and what is attacked most easily. ``(batch, 1, 64, 64)`` floats become ``(batch, 6)`` logits. An ELU has a smooth gradient."""

    def __init__(self, seed: int | None = None):
        with seeded(seed):
            layers = [nn.Conv2d(one, 12, 5, stride, padding=2) for one, stride in ((1, 2), (12, 2), (12, 1))]
            body = [part for layer in layers for part in (layer, nn.ELU())]
            super().__init__(*body, nn.Flatten(), nn.Linear(12 * 16 * 16, 6))
        self.seed = seed  # FLARE writes a model into a job by the attributes that bear its arguments' names
