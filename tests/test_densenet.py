"""MedNIST's network: MONAI's DenseNet121 with seeded weights."""

import torch
from monai.networks.nets import DenseNet121 as MonaiDenseNet121

from src.densenet import DenseNet121


def test_its_checkpoint_is_monais():
    ours = DenseNet121().state_dict()
    theirs = MonaiDenseNet121(spatial_dims=2, in_channels=1, out_channels=6).state_dict()
    assert {name: value.shape for name, value in ours.items()} == {name: value.shape for name, value in theirs.items()}


def test_a_seed_fixes_its_weights_and_nothing_else_of_chance():
    before = torch.random.get_rng_state()
    one, again, other = (DenseNet121(seed=seed).state_dict() for seed in (3, 3, 4))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["features.conv0.weight"], other["features.conv0.weight"])
    torch.manual_seed(3)
    assert torch.equal(DenseNet121().state_dict()["features.conv0.weight"], one["features.conv0.weight"])


def test_images_become_one_number_a_class():
    with torch.inference_mode():
        assert DenseNet121().eval()(torch.zeros(2, 1, 64, 64)).shape == (2, 6)
        assert DenseNet121(2, 3, 4).eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 4)
