"""The networks: MONAI's, with seeded weights and the course's shapes."""

import pytest
import torch
from monai.networks.nets import DenseNet121 as MonaiDenseNet121
from monai.networks.nets import UNet as MonaiUNet

from src.densenet import DenseNet121
from src.unet import UNet
from tests.training_support import same

SIZES = {"channels": (16, 32, 64, 128, 256), "strides": (2, 2, 2, 2)}
NETWORKS = {DenseNet121: lambda: MonaiDenseNet121(2, 1, 6), UNet: lambda: MonaiUNet(3, 1, 1, **SIZES, num_res_units=2)}


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.__name__)
def test_its_weights_are_monais_by_name_and_by_seed(network):
    torch.manual_seed(3)
    theirs, ours = NETWORKS[network](), network(seed=3)
    assert ours.state_dict().keys() == theirs.state_dict().keys() and same(ours, theirs)


def test_images_become_one_number_a_class_and_a_volume_comes_back_in_its_size():
    small = UNet(spatial_dims=2, in_channels=2, out_channels=3, channels=[4, 8], strides=[2], num_res_units=1)
    with torch.inference_mode():
        assert DenseNet121().eval()(torch.zeros(2, 1, 64, 64)).shape == (2, 6)
        assert DenseNet121(2, 3, 4).eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 4)
        assert UNet()(torch.zeros(2, 1, 32, 48, 16)).shape == (2, 1, 32, 48, 16)
        assert small(torch.zeros(1, 2, 16, 16)).shape == (1, 3, 16, 16)


def test_the_head_of_the_unet_is_all_that_follows_the_last_normalisation():
    model = UNet()
    head = list(model.head().parameters())
    assert sum(value.numel() for value in head) == 28 and list(model.parameters())[-1] is head[-1]
    assert not list(model.buffers()), "no statistics of a hospital are kept or averaged"
