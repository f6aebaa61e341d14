"""How the server turns the models of the sites into one: the weighted mean of FedAvg, and what it refuses."""

from collections.abc import Mapping, Sequence
from numbers import Real

import numpy as np
from nvflare.apis.fl_constant import FLMetaKey
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType
from nvflare.app_common.abstract.model import ModelLearnableKey
from nvflare.app_common.aggregators.model_aggregator import ModelAggregator
from nvflare.app_common.aggregators.weighted_aggregation_helper import WeightedAggregationHelper
from nvflare.app_common.app_constant import AppConstants

from src.common.task import shapes, unlike


class SampleWeightedMean(ModelAggregator):
    """The weighted mean of McMahan et al., *Communication-Efficient Learning* (AISTATS 2017), by number of samples.

    Unlike FLARE's, it sums in double precision, so that the order of the answers does not show; keeps integers (BatchNorm's
    ``num_batches_tracked``) integers; and goes on without an update that has a NaN or an infinity, other tensors than the global
    model's (less ``held_back``, which each site keeps), or no positive number of samples: ``refused`` says so by site. The mean of
    BatchNorm's ``running_var`` lacks the variance of the sites' means: of all samples it is their sum."""

    def __init__(self, held_back: Sequence[str] = ()):
        super().__init__()
        self.held_back = list(held_back)  # FLARE writes it into the job by this name
        self.reset_stats()

    def reset_stats(self) -> None:
        """Forget everything of the last round."""
        self._sums, self._dtypes, self._shapes, self._params_type = {}, {}, {}, None  # by name of the tensor
        self._metrics = WeightedAggregationHelper()
        self.accepted: dict[str, float] = {}
        self.refused: dict[str, str] = {}

    def accept_model(self, model: FLModel) -> None:
        """Add one site's model to the sum, or refuse it with a warning that names the site and the reason."""
        meta = model.meta or {}
        site, weight = meta.get("client_name", "unknown site"), meta.get(FLMetaKey.NUM_STEPS_CURRENT_ROUND)
        params = {name: np.asarray(value) for name, value in model.params.items()}
        if reason := self._reason_to_refuse(params, weight):
            self.refused[site] = reason
            self.warning(f"refused the update of {site} in round {model.current_round}: {reason}")
            return
        self._shapes, self._params_type = self._shapes or shapes(params), self._params_type or model.params_type
        for name, value in params.items():
            self._dtypes.setdefault(name, value.dtype)
            self._sums[name] = self._add(self._sums.get(name), value, float(weight))
        self._metrics.add(dict(model.metrics or {}), float(weight), site, model.current_round)
        self.accepted[site] = float(weight)

    def _add(self, held: np.ndarray | None, value: np.ndarray, weight: float) -> np.ndarray:
        """What is kept of a tensor with one more update, ``held`` of those before it, if any: here the weighted sum."""
        scaled = np.multiply(value, weight, dtype=np.float64)
        return scaled if held is None else held + scaled

    def _combine(self, held: np.ndarray) -> np.ndarray:
        """What it becomes at the end of the round."""
        return held / sum(self.accepted.values())

    def aggregate_model(self) -> FLModel:
        """One model of all accepted, in their types, and the mean of their metrics; a ``ValueError`` says why there is none."""
        if not self.accepted:
            reasons = "; ".join(f"{site}: {reason}" for site, reason in self.refused.items()) or "no site answered"
            raise ValueError(f"no usable update in this round ({reasons})")
        mean = {}
        for name, held in self._sums.items():
            value, integer = self._combine(held), np.issubdtype(self._dtypes[name], np.integer)
            mean[name] = np.asarray(np.rint(value) if integer else value).astype(self._dtypes[name])
        metrics = self._metrics.get_result() or None
        return FLModel(params_type=self._params_type or ParamsType.FULL, params=mean, metrics=metrics)

    def _reason_to_refuse(self, params: Mapping[str, np.ndarray], weight: object) -> str | None:
        if isinstance(weight, bool) or not isinstance(weight, Real) or not np.isfinite(weight) or weight <= 0:
            return f"its number of samples is {weight!r}, not a positive number"
        model = self.fl_ctx.get_prop(AppConstants.GLOBAL_MODEL) if self.fl_ctx else None  # none outside of a run
        due = shapes(model[ModelLearnableKey.WEIGHTS], self.held_back) if model else self._shapes
        return unlike(params, due or shapes(params), "the global model")


class CoordinateMedian(SampleWeightedMean):
    """The median of each weight by itself: Yin et al., *Byzantine-Robust Distributed Learning* (ICML 2018).

    As long as fewer than half of the sites lie, each weight stays within the range of the others'. All sites count alike; their
    metrics are averaged as before. Where sites differ it is not the mean, and it cannot be taken of ciphertext."""

    def _add(self, held: list | None, value: np.ndarray, weight: float) -> list:
        return [*(held or ()), value.astype(np.float64)]

    def _combine(self, held: list) -> np.ndarray:
        return np.median(held, axis=0)
