"""What a server receives, kept as it came: for a look at what leaves a site."""

from pathlib import Path

from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.app_common.app_constant import AppConstants
from nvflare.app_common.app_event_type import AppEventType
from nvflare.fuel.utils import fobs
from nvflare.recipe.spec import Recipe
from nvflare.widgets.widget import Widget

from src.federation.flare_2_9 import job_of

FOLDER = "received"


class KeepReceived(Widget):
    """Writes the sites' answers of one round to ``received/<site>.fobs`` in the server's run folder, in FLARE's format and as they
    came, before the server's own filters. Any server can do so, and no site notices."""

    def __init__(self, number: int = 0):
        super().__init__()
        self.number, self._now = number, None

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        if event_type in (AppEventType.ROUND_STARTED, EventType.START_WORKFLOW):
            in_rounds = event_type == AppEventType.ROUND_STARTED
            self._now = fl_ctx.get_prop(AppConstants.CURRENT_ROUND) if in_rounds else None
        elif event_type == EventType.BEFORE_TASK_RESULT_FILTER and self._now == self.number:
            folder = Path(fl_ctx.get_engine().get_workspace().get_run_dir(fl_ctx.get_job_id())) / FOLDER
            folder.mkdir(exist_ok=True)
            site, answer = fl_ctx.get_peer_context().get_identity_name(), fl_ctx.get_prop(FLContextKey.TASK_RESULT)
            (folder / f"{site}.fobs").write_bytes(fobs.dumps(answer))


def keep_received(recipe: Recipe, number: int = 0) -> None:
    """Let the server of a recipe's job keep what it receives in round ``number``."""
    job_of(recipe).to_server(KeepReceived(number), id=FOLDER)
