"""Notices when the process of a site is gone, so that a round does not wait for an answer that cannot come."""

import threading

from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.widgets.widget import Widget

CHECK_SECONDS = 0.5


class SiteWatch(Widget):
    """Tells the workflow of a site whose connection is lost.

    In a deployment, heartbeats between the sites and the server do this. The simulator has none, so that a site that is killed,
    for one because memory ran out, would be waited for until the round's timeout, in each round. This widget looks whether the
    connection of every site's process that was there still is, and reports one that is not as FLARE's server would.

    The job must shorten FLARE's patience for a site to come back (``dead_client_grace_period`` and
    ``dead_client_check_lead_time``, 60 s and 30 s by default), see :data:`PATIENCE`.
    """

    PATIENCE = {"dead_client_grace_period": 1.0, "dead_client_check_lead_time": 2.0}  # noqa: RUF012

    def __init__(self):
        super().__init__()
        self._ended = threading.Event()

    def handle_event(self, event_type: str, fl_ctx: FLContext):
        """Watch from the start of the run to its end."""
        if event_type == EventType.START_RUN:
            engine = fl_ctx.get_engine()
            arguments = (engine, fl_ctx.get_job_id())
            threading.Thread(target=self._watch, args=arguments, name="site_watch", daemon=True).start()
        elif event_type in (EventType.ABOUT_TO_END_RUN, EventType.END_RUN):
            self._ended.set()

    def _watch(self, engine, job_id: str) -> None:
        seen: set[str] = set()
        lost: set[str] = set()
        while not self._ended.wait(CHECK_SECONDS):
            cell = engine.server.cell
            for site in {client.name for client in engine.get_clients()} - lost:
                if cell.is_cell_connected(f"{site}.{job_id}"):
                    seen.add(site)
                elif site in seen and not self._ended.is_set():
                    lost.add(site)
                    self._report(engine, site)

    def _report(self, engine, site: str) -> None:
        with engine.new_context() as fl_ctx:
            self.log_warning(fl_ctx, f"the process of {site} has ended; going on without it", fire_event=False)
            fl_ctx.get_prop(FLContextKey.RUNNER).handle_dead_job(site, fl_ctx)
