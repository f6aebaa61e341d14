"""What runs on the server: FLARE's FedAvg with one more validation at its end, and a record of what happened when."""

import json
import time
from pathlib import Path
from typing import ClassVar

from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import FLContextKey, FLMetaKey
from nvflare.apis.fl_context import FLContext
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType
from nvflare.app_common.abstract.model import ModelLearnableKey
from nvflare.app_common.app_constant import AppConstants
from nvflare.app_common.app_event_type import AppEventType
from nvflare.app_common.workflows.fedavg import FedAvg
from nvflare.widgets.widget import Widget

from src.runs import REASON_HEADER, RECORD_FILE


class FedAvgWithFinalValidation(FedAvg):
    """FLARE's ``FedAvg`` controller, plus a validation of the model that the last round made.

    In FedAvg every site validates the global model that it *receives*, before it trains. The model of the last
    round is never received, so nobody would know how good it is, and it could never be chosen as the best one.
    After the last round this controller sends it out once more, with the task ``validate``.

    Args:
        key_metric: name of the metric by which the best global model is chosen; higher is better.
        aggregator_id: id of the :class:`src.aggregation.SampleWeightedMean` that averages.
        selector_id: id of the ``IntimeModelSelector`` that remembers the best value of the earlier rounds.
        round_timeout: seconds that a round may take before it goes on with the answers it has; 0 waits for ever.
        *args: as ``FedAvg``.
        **kwargs: as ``FedAvg``.
    """

    def __init__(
        self,
        *args,
        key_metric: str,
        aggregator_id: str = "aggregator",
        selector_id: str = "model_selector",
        round_timeout: int = 0,
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        self.key_metric = key_metric
        self.aggregator_id = aggregator_id
        self.selector_id = selector_id
        self.round_timeout = round_timeout

    def start_controller(self, fl_ctx: FLContext) -> None:
        """As ``FedAvg``, with the aggregator that the job names."""
        super().start_controller(fl_ctx)
        self.aggregator = self.get_component(self.aggregator_id)

    def send_model(self, *args, **kwargs):
        """As ``ModelController.send_model``, with this controller's timeout for a round."""
        super().send_model(*args, **{"timeout": self.round_timeout, **kwargs})

    def run(self) -> None:
        """Run all rounds of FedAvg, then validate the final model and keep it if it is the best so far."""
        super().run()
        if self.abort_signal.triggered:
            return
        learnable = self.fl_ctx.get_prop(AppConstants.GLOBAL_MODEL)
        final = FLModel(
            params_type=ParamsType.FULL,
            params=learnable[ModelLearnableKey.WEIGHTS],
            current_round=self.start_round + self.num_rounds,
            total_rounds=self.num_rounds,
        )
        answers = self.send_model_and_wait(task_name="validate", data=final, timeout=self.round_timeout)
        reported = [(a.metrics[self.key_metric], self._samples(a)) for a in answers or [] if a.metrics]
        if not reported:
            self.warning("no site validated the final model; the best model stays that of an earlier round")
            return
        mean = sum(value * weight for value, weight in reported) / sum(weight for _, weight in reported)
        best_before = self.get_component(self.selector_id).best_val_metric
        self.info(f"final model: {self.key_metric} {mean:.4f}; best of the earlier rounds: {best_before:.4f}")
        if mean > best_before:
            self.event(AppEventType.GLOBAL_BEST_MODEL_AVAILABLE)

    @staticmethod
    def _samples(answer: FLModel) -> float:
        return float((answer.meta or {}).get(FLMetaKey.NUM_STEPS_CURRENT_ROUND, 1))


class RunRecorder(Widget):
    """Writes what happened on the server, and when, as one JSON object a line, for the tables of the notebooks.

    The file is ``course_record.jsonl`` in the job's run folder on the server. Every line has ``time`` (seconds since
    the epoch) and ``event``; lines about a site's answer also have ``site``, ``round``, ``accepted`` and ``reason``.

    Args:
        aggregator_id: id of the :class:`src.aggregation.SampleWeightedMean`, which knows what it refused and why.
    """

    EVENTS: ClassVar = {
        EventType.START_RUN: "run started",
        AppEventType.INITIAL_MODEL_LOADED: "initial model loaded",
        AppEventType.ROUND_STARTED: "round started",
        AppEventType.BEFORE_AGGREGATION: "all answers in",
        AppEventType.AFTER_LEARNABLE_PERSIST: "model saved",
        AppEventType.GLOBAL_BEST_MODEL_AVAILABLE: "best model",
        EventType.END_RUN: "run ended",
    }

    def __init__(self, aggregator_id: str = "aggregator"):
        super().__init__()
        self.aggregator_id = aggregator_id
        self._file: Path | None = None

    def handle_event(self, event_type: str, fl_ctx: FLContext):
        """Append one line for each event of interest."""
        if event_type == EventType.START_RUN:
            run_dir = fl_ctx.get_engine().get_workspace().get_run_dir(fl_ctx.get_job_id())
            self._file = Path(run_dir) / RECORD_FILE
        if self._file is None:
            return
        current_round = fl_ctx.get_prop(AppConstants.CURRENT_ROUND)
        if event_type in self.EVENTS:
            self._write(event=self.EVENTS[event_type], round=current_round)
        elif event_type == AppEventType.AFTER_CONTRIBUTION_ACCEPT:
            site = fl_ctx.get_peer_context().get_identity_name()
            answer = fl_ctx.get_peer_context().get_prop(FLContextKey.SHAREABLE)
            aggregator = fl_ctx.get_engine().get_component(self.aggregator_id)
            reason = aggregator.refused.get(site) if aggregator else None
            accepted = bool(fl_ctx.get_prop(AppConstants.AGGREGATION_ACCEPTED)) and reason is None
            if reason is None and not accepted:
                code = answer.get_return_code() if answer else "nothing"
                said = answer.get_header(REASON_HEADER) if answer else None
                reason = said or f"the site answered with {code}"
            self._write(event="answer", round=current_round, site=site, accepted=accepted, reason=reason)

    def _write(self, **entry):
        with self._file.open("a") as file:
            file.write(json.dumps({"time": time.time(), **entry}) + "\n")
