"""Sends models in half precision, by FLARE's quantisation filters; needs the package ``bitsandbytes``."""

import numpy as np
from nvflare.app_opt.pt.quantization.dequantizer import ModelDequantizer
from nvflare.app_opt.pt.quantization.quantizer import ModelQuantizer
from nvflare.recipe.spec import Recipe

TASKS = ["train", "validate"]
LEFT_ALONE = "bool"  # the one type that FLARE's filters let pass


class HalfPrecision(ModelQuantizer):
    """FLARE's quantiser to 16 bits, for models that also hold integers, such as BatchNorm's number of batches.

    FLARE's refuses these. Here they travel as they are.
    """

    def __init__(self):
        super().__init__(quantization_type="float16")

    def quantization(self, params: dict, fl_ctx) -> tuple[dict, dict, dict]:
        """Quantise in place, as FLARE's does: a model that goes to many sites is quantised once."""
        whole = {
            name: params.pop(name) for name, value in [*params.items()] if not np.issubdtype(value.dtype, np.floating)
        }
        _, states, types = super().quantization(params, fl_ctx)
        params |= whole
        return params, states | {name: {} for name in whole}, types | dict.fromkeys(whole, LEFT_ALONE)


def send_half_precision(recipe: Recipe) -> None:
    """Let what goes out be made small, and what comes in large again, at the server and at every site.

    https://nvflare.readthedocs.io/en/main/programming_guide/message_quantization.html
    """
    recipe.add_server_output_filter(HalfPrecision(), TASKS)
    recipe.add_client_input_filter(ModelDequantizer(), TASKS)
    recipe.add_client_output_filter(HalfPrecision(), TASKS)
    recipe.add_server_input_filter(ModelDequantizer(), TASKS)
