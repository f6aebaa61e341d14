"""The prostate's network: MONAI's U-Net with the course's shapes."""

import pytest
import torch
from monai.networks.nets import UNet as MonaiUNet

from src.unet import UNet


def test_its_checkpoint_is_monais():
    ours = UNet().state_dict()
    theirs = MonaiUNet(3, 1, 1, channels=(16, 32, 64, 128, 256), strides=(2, 2, 2, 2), num_res_units=2).state_dict()
    assert {name: value.shape for name, value in ours.items()} == {name: value.shape for name, value in theirs.items()}


def test_a_volume_comes_back_in_its_size():
    with torch.inference_mode():
        assert UNet()(torch.zeros(2, 1, 32, 48, 16)).shape == (2, 1, 32, 48, 16)


def test_every_argument_of_the_tutorial_is_taken():
    model = UNet(spatial_dims=2, in_channels=2, out_channels=3, channels=[4, 8], strides=[2], num_res_units=1)
    with torch.inference_mode():
        assert model(torch.zeros(1, 2, 16, 16)).shape == (1, 3, 16, 16)


def test_no_statistics_of_a_hospital_are_kept_or_averaged():
    assert not list(UNet().buffers())


def test_the_head_is_all_that_follows_the_last_normalisation():
    model = UNet()
    head = dict(model.head().named_parameters())
    assert sum(value.numel() for value in head.values()) == 28
    assert list(model.parameters())[-1] is list(head.values())[-1]


def test_a_seed_fixes_its_weights_and_nothing_else_of_chance():
    before = torch.random.get_rng_state()
    one, again, other = (UNet(seed=seed).state_dict() for seed in (3, 3, 4))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_a_side_that_cannot_be_halved_four_times_is_an_error():
    with pytest.raises(RuntimeError):
        UNet()(torch.zeros(1, 1, 30, 32, 16))
