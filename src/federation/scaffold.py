"""FLARE's SCAFFOLD for the server of a job that keeps a record."""

from nvflare.apis.fl_constant import FLMetaKey
from nvflare.app_common.abstract.fl_model import FLModel
from nvflare.app_common.app_constant import AlgorithmConstants
from nvflare.app_common.app_event_type import AppEventType
from nvflare.app_common.workflows.scaffold import Scaffold


class RecordedScaffold(Scaffold):
    """FLARE's SCAFFOLD with what its FedAvg has: an event a round, checkpoints that can be read back, rounds without a site.

    FLARE's leaves the control terms in the model's ``meta``, and so in the checkpoint, from which it then reads tensors alone."""

    def sample_clients(self, num_clients: int | None = None) -> list[str]:
        self.set_fl_context(self.model)
        self.event(AppEventType.ROUND_STARTED)
        return super().sample_clients(num_clients)

    def send_model_and_wait(self, **options) -> list[FLModel]:
        answers = super().send_model_and_wait(**options)
        self.model.meta.pop(AlgorithmConstants.SCAFFOLD_CTRL_GLOBAL, None)
        return [answer for answer in answers if answer.params]  # a site that failed sends a reason alone

    def aggregate(self, results: list[FLModel], aggregate_fn=None) -> FLModel:
        made = super().aggregate(results, aggregate_fn)
        # The global control is the mean of all sites' terms, also of those that are away and keep theirs as they are.
        now = {one.meta["client_name"]: one.meta[FLMetaKey.NUM_STEPS_CURRENT_ROUND] for one in results}
        self.samples = getattr(self, "samples", {}) | now  # of each site that has answered
        share = sum(now.values()) / sum(self.samples.values())
        changes = made.meta[AlgorithmConstants.SCAFFOLD_CTRL_DIFF]
        made.meta[AlgorithmConstants.SCAFFOLD_CTRL_DIFF] = {name: share * change for name, change in changes.items()}
        return made

    def save_model(self, model: FLModel) -> None:
        model.meta.pop(AlgorithmConstants.SCAFFOLD_CTRL_DIFF, None)
        super().save_model(model)
