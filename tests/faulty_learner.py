"""A prostate learner that fails on purpose; the name of the site says how."""

import os

import numpy as np
from nvflare.apis.dxo import from_shareable
from nvflare.app_common.app_constant import AppConstants

from src.learners.supervised_monai_prostate_learner import SupervisedMonaiProstateLearner


class FaultyLearner(SupervisedMonaiProstateLearner):
    """``dies``: its process ends in round 2. ``poisons``: sends NaN weights. Any other name: no fault of this class."""

    def train(self, data, fl_ctx, abort_signal):
        site = fl_ctx.get_identity_name()
        if site == "dies" and data.get_header(AppConstants.CURRENT_ROUND) == 1:
            os._exit(9)
        answer = super().train(data, fl_ctx, abort_signal)
        if site == "poisons":
            weights = from_shareable(answer).data
            weights["model.0.conv.unit0.conv.weight"] = np.full_like(weights["model.0.conv.unit0.conv.weight"], np.nan)
        return answer
