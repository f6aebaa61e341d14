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
def filters(monkeypatch):
    """FLARE's filters import a package for types that are not used here; where it is missing, an empty one stands in."""
    try:
        import bitsandbytes  # noqa: F401
    except ImportError:
        stand_in = ModuleType("bitsandbytes.functional")
        stand_in.__getattr__ = lambda name: Mock()
        monkeypatch.setitem(sys.modules, "bitsandbytes", ModuleType("bitsandbytes"))
        monkeypatch.setitem(sys.modules, "bitsandbytes.functional", stand_in)
    from benchmarks import half_precision

    yield half_precision
    for name in [name for name in sys.modules if "quantiz" in name or name == half_precision.__name__]:
        monkeypatch.delitem(sys.modules, name)


def test_floats_travel_in_half_precision_and_integers_as_they_are(filters):
    sent = {"weight": np.array([1.0, 1e-3, 1e9], np.float32), "batches": np.array(70_000)}
    message = DXO(DataKind.WEIGHTS, {name: value.copy() for name, value in sent.items()}).update_shareable(Shareable())
    small = filters.HalfPrecision().process(message, FLContext())
    travelling = from_shareable(small).data
    assert travelling["weight"].dtype == np.float16 and travelling["batches"].dtype == sent["batches"].dtype
    arrived = from_shareable(filters.ModelDequantizer().process(small, FLContext())).data
    assert arrived["weight"].dtype == np.float32 and arrived["batches"] == 70_000
    np.testing.assert_allclose(arrived["weight"], [1.0, 1e-3, 65504], rtol=1e-3)  # the largest number of 16 bits


def test_every_way_there_and_back_has_its_filter(filters):
    recipe = Mock()
    filters.send_half_precision(recipe)
    made = {call[0]: (type(call.args[0]).__name__, call.args[1]) for call in recipe.method_calls}
    both = ["train", "validate"]
    assert made == {
        "add_server_output_filter": ("HalfPrecision", both),
        "add_client_input_filter": ("ModelDequantizer", both),
        "add_client_output_filter": ("HalfPrecision", both),
        "add_server_input_filter": ("ModelDequantizer", both),
    }
