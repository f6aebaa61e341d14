"""FLARE's SCAFFOLD for the server of a job that keeps a record."""

from nvflare.app_common.abstract.fl_model import FLModel
from nvflare.app_common.app_constant import AlgorithmConstants
from nvflare.app_common.app_event_type import AppEventType
from nvflare.app_common.workflows.scaffold import Scaffold


class RecordedScaffold(Scaffold):
    """FLARE's SCAFFOLD with what its FedAvg has: an event at the start of each round, and checkpoints that can be read back.

    FLARE's leaves the control terms in the model's ``meta``, and so in the checkpoint, from which it then reads tensors alone.
    """

    def sample_clients(self, num_clients: int | None = None) -> list[str]:
        self.set_fl_context(self.model)
        self.event(AppEventType.ROUND_STARTED)
        return super().sample_clients(num_clients)

    def send_model_and_wait(self, **options) -> list[FLModel]:
        answers = super().send_model_and_wait(**options)
        self.model.meta.pop(AlgorithmConstants.SCAFFOLD_CTRL_GLOBAL, None)
        return answers

    def save_model(self, model: FLModel) -> None:
        model.meta.pop(AlgorithmConstants.SCAFFOLD_CTRL_DIFF, None)
        super().save_model(model)
