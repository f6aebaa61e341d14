"""What every supervised learner of a federation shares, whatever it learns: the way between FLARE and a local training."""

import time
from abc import ABC, abstractmethod

import numpy as np
import torch
from nvflare.apis.analytix import AnalyticsDataType
from nvflare.apis.dxo import DXO, DataKind, MetaKey, from_shareable
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.apis.signal import Signal
from nvflare.apis.utils.analytix_utils import create_analytic_dxo, send_analytic_dxo
from nvflare.app_common.abstract.learner_spec import Learner
from nvflare.app_common.app_constant import AppConstants, ValidateType

from src.federation.engine import train_for
from src.federation.reasons import REASON, short_reason
from src.federation.site import Site


class SupervisedLearner(Learner, ABC):
    """One site's part in FedAvg, for FLARE's ``LearnerExecutor``; a subclass says what is learned, in :meth:`set_up`.

    The executor calls :meth:`initialize` once, then for each ``train`` task :meth:`validate` (how good is the model that came
    in?) and :meth:`train`, and for each ``validate`` task :meth:`validate` alone; :meth:`abort` comes from another thread.
    https://nvflare.readthedocs.io/en/2.7/programming_guide/execution_api_type/model_learner.html

    What goes back are the *differences* of trained and received weights, the number of training items, and the received model's
    metrics. An error does not end the process: the site's own log has it, and the answer says in a few words why."""

    def __init__(self, aggregation_epochs: int = 1):
        super().__init__()
        self.aggregation_epochs, self._aborted = aggregation_epochs, False
        self.site = self._error = None

    @abstractmethod
    def set_up(self, name: str, fl_ctx: FLContext) -> Site:
        """Read settings and data, and put together what the site of this name trains with."""

    def evaluate(self, should_stop) -> dict[str, float]:
        """Metrics of the model on the site's validation items; a subclass may add its own."""
        return self.site.evaluate(should_stop)

    def initialize(self, parts: dict, fl_ctx: FLContext) -> None:
        """Set up once, before the first task; an error is kept and answered to every task."""
        try:
            self.site = self.set_up(fl_ctx.get_identity_name(), fl_ctx)
        except Exception as error:
            self._error = error
            self.log_exception(fl_ctx, f"this site cannot take part: {type(error).__name__}")

    def abort(self, fl_ctx: FLContext) -> None:
        """Stop the task that is running, at its next step."""
        self._aborted = True

    def finalize(self, fl_ctx: FLContext) -> None:
        """Let go of the data and the model."""
        self.site = None

    def validate(self, data: Shareable, fl_ctx: FLContext, abort_signal: Signal) -> Shareable:
        """Evaluate the received global model on this site's validation items; in a round, stream the metrics to the server."""
        self._aborted = False

        def evaluate() -> DXO:
            self._load(from_shareable(data))
            metrics = self.evaluate(lambda: self._stopped(abort_signal))
            if not np.isfinite(list(metrics.values())).all():
                raise FloatingPointError(f"the received model's metrics are {metrics}")
            if data.get_header(AppConstants.VALIDATE_TYPE) != ValidateType.BEFORE_TRAIN_VALIDATE:
                return DXO(DataKind.METRICS, data=metrics)
            # A round's validation; after the last round a model comes to be validated alone, and belongs to no round.
            self._stream({**metrics, **self.site.seconds}, data, fl_ctx)
            # The executor takes the metrics of the received model from here and puts them beside the update.
            return DXO(DataKind.METRICS, data={MetaKey.INITIAL_METRICS: metrics})

        return self._answer("validation", evaluate, fl_ctx, abort_signal)

    def train(self, data: Shareable, fl_ctx: FLContext, abort_signal: Signal) -> Shareable:
        """Train from the received global model and return the weight difference."""

        def train() -> DXO:
            start, received, epochs = time.time(), from_shareable(data), self.aggregation_epochs
            self._load(received)
            number = int(data.get_header(AppConstants.CURRENT_ROUND))
            loss = train_for(self.site.trainer, epochs, lambda: self._stopped(abort_signal), done=number * epochs)
            self.site.remember(number)
            self._stream({"train_loss": loss, "seconds_training": time.time() - start}, data, fl_ctx)
            trained = self.site.model.state_dict()
            change = {name: value.cpu().numpy() - np.asarray(received.data[name]) for name, value in trained.items()}
            return DXO(DataKind.WEIGHT_DIFF, data=change, meta=self.site.meta())

        return self._answer("training", train, fl_ctx, abort_signal)

    def _answer(self, what: str, work, fl_ctx: FLContext, abort_signal: Signal) -> Shareable:
        """What ``work`` returns, as FLARE sends it; or that it was stopped; or, in a few words, why it failed."""
        if self._error is None:
            try:
                answer = work()
                return make_reply(ReturnCode.TASK_ABORTED) if self._stopped(abort_signal) else answer.to_shareable()
            except Exception as error:
                self._error = error  # also of the training that the executor asks for after a failed validation
                self.log_exception(fl_ctx, f"{what} failed: {type(error).__name__}")
        error = self._error
        if what == "training" and self.site is not None:
            self._error = None  # the next round brings another model
        return make_reply(ReturnCode.EXECUTION_EXCEPTION, headers={REASON: short_reason(error)})

    def _stopped(self, abort_signal: Signal) -> bool:
        return self._aborted or abort_signal.triggered

    def _load(self, received: DXO) -> None:
        """Put the received weights into the model, each in the type that the model holds."""
        self.site.model.load_state_dict({k: torch.as_tensor(np.asarray(v)) for k, v in received.data.items()})

    def _stream(self, numbers: dict[str, float], data: Shareable, fl_ctx: FLContext) -> None:
        """Send numbers of this round to the server's tracker."""
        about = {"data_type": AnalyticsDataType.SCALAR, "global_step": int(data.get_header(AppConstants.CURRENT_ROUND))}
        for tag, value in numbers.items():
            send_analytic_dxo(self, create_analytic_dxo(tag, float(value), **about), fl_ctx)
