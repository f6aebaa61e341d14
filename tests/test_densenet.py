"""MedNIST's network: MONAI's DenseNet121 with seeded weights."""

import torch
from monai.networks.nets import DenseNet121 as MonaiDenseNet121

from src.densenet import DenseNet121
from tests.training_support import same


def test_its_weights_are_monais_by_name_and_by_seed():
    torch.manual_seed(3)
    theirs = MonaiDenseNet121(spatial_dims=2, in_channels=1, out_channels=6)
    ours = DenseNet121(seed=3)
    assert ours.state_dict().keys() == theirs.state_dict().keys() and same(ours, theirs)


def test_images_become_one_number_a_class():
    with torch.inference_mode():
        assert DenseNet121().eval()(torch.zeros(2, 1, 64, 64)).shape == (2, 6)
        assert DenseNet121(2, 3, 4).eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 4)
