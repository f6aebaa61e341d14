"""Models in half precision by FLARE's filters: what travels is half as large, and integers arrive as they were."""

import sys
from types import ModuleType
from unittest.mock import Mock

import numpy as np
import pytest
from nvflare.apis.dxo import DXO, DataKind, from_shareable
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable


@pytest.fixture
def module(monkeypatch):
    """FLARE's filters import a package for types that are not used here; an empty one stands in for it."""
    for name in ("bitsandbytes", "bitsandbytes.functional"):
        stand_in = ModuleType(name)
        stand_in.__getattr__ = lambda name: Mock()
        monkeypatch.setitem(sys.modules, name, stand_in)
    from benchmarks import half_precision

    return half_precision


def test_floats_travel_in_half_precision_and_integers_as_they_are_by_a_filter_at_each_way_out_and_in(module):
    recipe = Mock()
    module.send_half_precision(recipe)
    filters = {call[0].removeprefix("add_"): call.args[0] for call in recipe.method_calls}
    assert all(call.args[1] == ["train", "validate"] for call in recipe.method_calls)
    for sender, receiver in (("server", "client"), ("client", "server")):
        sent = {"weight": np.array([1.0, 1e-3, 1e9], np.float32), "batches": np.array(70_000)}
        message = DXO(DataKind.WEIGHTS, dict(sent)).update_shareable(Shareable())
        small = filters[f"{sender}_output_filter"].process(message, FLContext())
        types = {name: value.dtype for name, value in from_shareable(small).data.items()}
        assert types == {"weight": np.float16, "batches": sent["batches"].dtype}
        arrived = from_shareable(filters[f"{receiver}_input_filter"].process(small, FLContext())).data
        assert (arrived["weight"].dtype, arrived["batches"]) == (np.float32, 70_000)
        np.testing.assert_allclose(arrived["weight"], [1.0, 1e-3, 65504], rtol=1e-3)  # the largest number of 16 bits
