"""The prostate's network: MONAI's U-Net with the course's shapes."""

import torch
from monai.networks.nets import UNet as MonaiUNet

from src.unet import UNet
from tests.training_support import same


def test_its_weights_are_monais_by_name_and_by_seed():
    torch.manual_seed(3)
    theirs = MonaiUNet(3, 1, 1, channels=(16, 32, 64, 128, 256), strides=(2, 2, 2, 2), num_res_units=2)
    ours = UNet(seed=3)
    assert ours.state_dict().keys() == theirs.state_dict().keys() and same(ours, theirs)
    assert not list(ours.buffers()), "no statistics of a hospital are kept or averaged"


def test_a_volume_comes_back_in_its_size_with_every_argument_of_the_tutorial():
    model = UNet(spatial_dims=2, in_channels=2, out_channels=3, channels=[4, 8], strides=[2], num_res_units=1)
    with torch.inference_mode():
        assert UNet()(torch.zeros(2, 1, 32, 48, 16)).shape == (2, 1, 32, 48, 16)
        assert model(torch.zeros(1, 2, 16, 16)).shape == (1, 3, 16, 16)


def test_the_head_is_all_that_follows_the_last_normalisation():
    model = UNet()
    head = dict(model.head().named_parameters())
    assert sum(value.numel() for value in head.values()) == 28
    assert list(model.parameters())[-1] is list(head.values())[-1]
