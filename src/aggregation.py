"""How the server turns the models of the sites into one: the weighted mean of FedAvg, and what it refuses."""

import numpy as np
from nvflare.apis.fl_constant import FLMetaKey
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType
from nvflare.app_common.aggregators.model_aggregator import ModelAggregator
from nvflare.app_common.aggregators.weighted_aggregation_helper import WeightedAggregationHelper


class SampleWeightedMean(ModelAggregator):
    """The weighted mean of McMahan et al., *Communication-Efficient Learning* (AISTATS 2017), by number of samples.

    The sum is FLARE's own ``WeightedAggregationHelper``. This class adds what a real average over hospitals needs:

    * sums run in double precision, so that the order in which sites answer does not show in the result;
    * integer tensors (BatchNorm's ``num_batches_tracked``) are rounded and stay integers: a plain cast would turn
      a mean of 13.999999 into 13;
    * an update that holds a NaN or an infinity is refused by name and the round goes on without it.
    """

    def __init__(self):
        super().__init__()
        self.reset_stats()

    def reset_stats(self):
        """Forget everything of the last round."""
        self._helper = WeightedAggregationHelper()
        self._dtypes = {}
        self._params_type = None
        self.accepted: dict[str, float] = {}
        self.refused: dict[str, str] = {}

    def accept_model(self, model: FLModel):
        """Add one site's model to the sum, or refuse it with a warning that names the site and the reason."""
        site = (model.meta or {}).get("client_name", "unknown site")
        weight = (model.meta or {}).get(FLMetaKey.NUM_STEPS_CURRENT_ROUND)
        params = {name: np.asarray(value) for name, value in model.params.items()}
        reason = self._reason_to_refuse(params, weight)
        if reason:
            self.refused[site] = reason
            self.warning(f"refused the update of {site} in round {model.current_round}: {reason}")
            return
        self._params_type = self._params_type or model.params_type
        for name, value in params.items():
            self._dtypes.setdefault(name, value.dtype)
        self._helper.add(
            data={name: value.astype(np.float64) for name, value in params.items()},
            weight=float(weight),
            contributor_name=site,
            contribution_round=model.current_round,
        )
        self.accepted[site] = float(weight)

    def aggregate_model(self) -> FLModel:
        """Return the weighted mean of the accepted models, each tensor in the type in which it arrived.

        Raises:
            ValueError: if no update was accepted in this round; the message lists who was refused and why.
        """
        if not self.accepted:
            reasons = "; ".join(f"{site}: {reason}" for site, reason in self.refused.items()) or "no site answered"
            raise ValueError(f"no usable update in this round ({reasons})")
        mean = {}
        for name, value in self._helper.get_result().items():
            dtype = self._dtypes[name]
            integer = np.issubdtype(dtype, np.integer)
            mean[name] = np.asarray(np.rint(value) if integer else value).astype(dtype)
        return FLModel(params_type=self._params_type or ParamsType.FULL, params=mean)

    @staticmethod
    def _reason_to_refuse(params: dict[str, np.ndarray], weight) -> str | None:
        if not isinstance(weight, int | float) or not np.isfinite(weight) or weight <= 0:
            return f"its number of samples is {weight!r}, not a positive number"
        broken = [name for name, value in params.items() if not np.isfinite(value).all()]
        if broken:
            return f"{len(broken)} of {len(params)} tensors hold NaN or infinity, the first is {broken[0]!r}"
        return None
