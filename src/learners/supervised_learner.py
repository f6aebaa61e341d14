"""What every supervised learner of a federation shares, whatever it learns: the way between FLARE and a local training."""

import resource
import sys
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
from nvflare.security.logging import secure_format_exception

from src.runs import REASON_HEADER
from src.training_loop import LocalTrainer


class SupervisedLearner(Learner, ABC):
    """One site's part in FedAvg, for FLARE's ``LearnerExecutor``.

    The executor calls :meth:`initialize` once, then for each ``train`` task :meth:`validate` (how good is the model that came
    in?) and :meth:`train`, and for each ``validate`` task :meth:`validate` alone; :meth:`abort` comes from another thread.
    https://nvflare.readthedocs.io/en/2.7/programming_guide/execution_api_type/model_learner.html

    What goes back to the server is the *difference* between the trained and the received weights, with the number of training
    cases, which is the weight of the site in the average, and the metrics of the received model. The optimiser, with its state,
    stays here from round to round, see :class:`src.training_loop.LocalTrainer`.

    An error at a site (a file that cannot be read, a loss that became NaN) does not end the process: it is logged in the site's
    log, and the reply says that the task failed, and in the header ``course_reason`` why. What the server makes of it is the
    server's business. A site whose :meth:`set_up` failed says the same thing again in each round.

    A subclass says what is learned, in :meth:`set_up` and :meth:`evaluate`.

    Args:
        aggregation_epochs: passes over the site's training cases in each round.
    """

    def __init__(self, aggregation_epochs: int = 1):
        super().__init__()
        self.aggregation_epochs = aggregation_epochs
        # Given by set_up():
        self.trainer: LocalTrainer | None = None
        self.train_batches = None
        self.training_cases = 0
        self._set_up_error: Exception | None = None
        self._validation_error: Exception | None = None
        self._aborted = False
        self._started = 0.0
        self._set_up_seconds = 0.0
        self._first_step_seen = False

    @abstractmethod
    def set_up(self, site: str, fl_ctx: FLContext) -> None:
        """Read the settings and the data; set ``trainer``, ``train_batches`` and ``training_cases``."""

    @abstractmethod
    def evaluate(self, should_stop) -> dict[str, float]:
        """Metrics of the model in ``trainer.model`` on this site's validation cases, higher is better; names are plain text.

        Args:
            should_stop: to be asked from time to time; true means that the result will not be used.
        """

    # -- the life cycle ------------------------------------------------------------------------------------------------

    def initialize(self, parts: dict, fl_ctx: FLContext) -> None:
        """Set up once, before the first task; an error is kept and answered to every task."""
        self._started = time.perf_counter()
        try:
            self.set_up(fl_ctx.get_identity_name(), fl_ctx)
        except Exception as error:
            self._set_up_error = error
        self._set_up_seconds = time.perf_counter() - self._started

    def abort(self, fl_ctx: FLContext) -> None:
        """Stop the task that is running, at its next step."""
        self._aborted = True

    def finalize(self, fl_ctx: FLContext) -> None:
        """Let go of the data and the model."""
        self.trainer = None
        self.train_batches = None

    # -- the tasks -----------------------------------------------------------------------------------------------------

    def validate(self, data: Shareable, fl_ctx: FLContext, abort_signal: Signal) -> Shareable:
        """Evaluate the received global model on this site's validation cases and stream the metrics to the server."""
        self._aborted = False
        self._validation_error = None
        try:
            self._raise_if_not_set_up()
            start = time.perf_counter()
            self._load(from_shareable(data))
            metrics = self.evaluate(self._should_stop(abort_signal))
            if self._should_stop(abort_signal)():
                return make_reply(ReturnCode.TASK_ABORTED)
            self._check_metrics(metrics)
        except Exception as error:
            self._validation_error = error
            return self._failure("validation", error, data, fl_ctx)
        current_round = data.get_header(AppConstants.CURRENT_ROUND)
        for name, value in metrics.items():
            self.stream(name, value, current_round, fl_ctx)
        if not self._first_step_seen:
            self.stream("seconds_set_up", self._set_up_seconds, current_round, fl_ctx)
        self.stream("seconds_validation", time.perf_counter() - start, current_round, fl_ctx)
        # The executor takes the metrics of the received model from under INITIAL_METRICS and puts them beside the update.
        before_training = data.get_header(AppConstants.VALIDATE_TYPE) == ValidateType.BEFORE_TRAIN_VALIDATE
        answer = {MetaKey.INITIAL_METRICS: metrics} if before_training else metrics
        return DXO(DataKind.METRICS, data=answer, meta=self._weight()).to_shareable()

    def train(self, data: Shareable, fl_ctx: FLContext, abort_signal: Signal) -> Shareable:
        """Train from the received global model and return the weight difference."""
        if self._validation_error is not None:  # of this very task: it has been logged, and its cause is still there
            return self._failed_reply(self._validation_error)
        try:
            received = from_shareable(data)
            self._load(received)
            current_round = data.get_header(AppConstants.CURRENT_ROUND)
            rounds = data.get_header(AppConstants.NUM_ROUNDS)
            start = time.perf_counter()
            losses = self.local_train(current_round, rounds, self._should_stop(abort_signal), fl_ctx)
            if self._should_stop(abort_signal)():
                return make_reply(ReturnCode.TASK_ABORTED)
            difference = self._difference(received.data)
        except Exception as error:
            return self._failure("training", error, data, fl_ctx)
        for number, loss in enumerate(losses, start=1):
            self.stream("train_loss", loss, current_round * self.aggregation_epochs + number, fl_ctx)
        self.stream("seconds_training", time.perf_counter() - start, current_round, fl_ctx)
        self.stream("peak_memory_mb", _peak_memory_mb(), current_round, fl_ctx)
        return DXO(DataKind.WEIGHT_DIFF, data=difference, meta=self._weight()).to_shareable()

    def local_train(self, current_round: int, rounds: int, should_stop, fl_ctx: FLContext) -> list[float]:
        """Train ``aggregation_epochs`` passes of the site's cases; returns the mean loss of each.

        Args:
            current_round: number of this round, from 0.
            rounds: how many rounds there are; fixes the learning rate's schedule.
            should_stop: asked before every step.
            fl_ctx: FLARE's context of this task.
        """

        def asked_before_a_step():
            if not self._first_step_seen:
                self._first_step_seen = True
                self.stream("seconds_to_first_step", time.perf_counter() - self._started, current_round, fl_ctx)
            return should_stop()

        return self.trainer.run(
            self.train_batches,
            epochs=self.aggregation_epochs,
            first_epoch=current_round * self.aggregation_epochs,
            total_epochs=rounds * self.aggregation_epochs,
            should_stop=asked_before_a_step,
        )

    # -- the pieces ----------------------------------------------------------------------------------------------------

    def stream(self, tag: str, value: float, step: int, fl_ctx: FLContext) -> None:
        """Send one number to the server's tracker. ``tag`` becomes plain text: FLARE drops an enum without an error here."""
        dxo = create_analytic_dxo(
            tag=str(tag), value=float(value), data_type=AnalyticsDataType.SCALAR, global_step=int(step)
        )
        send_analytic_dxo(self, dxo, fl_ctx)

    def _load(self, received: DXO) -> None:
        """Put the received weights into the model, each in the type that the model holds."""
        weights = {name: torch.as_tensor(np.asarray(value)) for name, value in received.data.items()}
        self.trainer.model.load_state_dict(weights)

    def _difference(self, received: dict) -> dict[str, np.ndarray]:
        trained = self.trainer.model.state_dict()
        return {name: trained[name].cpu().numpy() - np.asarray(received[name]) for name in trained}

    def _weight(self) -> dict:
        return {MetaKey.NUM_STEPS_CURRENT_ROUND: self.training_cases}

    def _should_stop(self, abort_signal: Signal):
        return lambda: self._aborted or abort_signal.triggered

    def _raise_if_not_set_up(self) -> None:
        if self._set_up_error is not None:
            raise self._set_up_error

    @staticmethod
    def _check_metrics(metrics: dict[str, float]) -> None:
        broken = {name: value for name, value in metrics.items() if not np.isfinite(value)}
        if broken:
            raise FloatingPointError(f"the received model's metrics are {broken}")

    def _failure(self, what: str, error: Exception, data: Shareable, fl_ctx: FLContext) -> Shareable:
        number = data.get_header(AppConstants.CURRENT_ROUND)
        self.log_exception(fl_ctx, f"{what} failed in round {number}: {secure_format_exception(error)}")
        return self._failed_reply(error)

    @staticmethod
    def _failed_reply(error: Exception) -> Shareable:
        return make_reply(
            ReturnCode.EXECUTION_EXCEPTION, headers={REASON_HEADER: secure_format_exception(error).splitlines()[0]}
        )


def _peak_memory_mb() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024**2 if sys.platform == "darwin" else 1024)
