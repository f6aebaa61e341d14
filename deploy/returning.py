"""Lets a site that went down come back into the jobs that are running: a component of the *server*, not of a job.

FLARE 2.9 gives a site that registers again a new token, and the jobs that it was part of neither start again on it nor hear of it:
they wait for the process that is gone, without end where a round has no time limit. This component notices it, and does what the
job runner does for a site at a job's start: deploy, reserve resources, start. It stands in the server's ``local/resources.json``.
"""

import threading
import time

from nvflare.apis.event_type import EventType
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_constant import ReturnCode, RunProcessKey, ServerCommandKey, SystemComponents
from nvflare.apis.fl_context import FLContext
from nvflare.apis.job_def import ALL_SITES, JobMetaKey
from nvflare.apis.job_scheduler_spec import DispatchInfo
from nvflare.private.fed.server.admin import check_client_replies
from nvflare.private.fed.utils.fed_utils import extract_participants

SITE_IS_BACK = "course.site_is_back"
"""The command by which the server tells a job's process to look who its sites are now; see ``RunRecorder``."""

LOSS_IS_NOTED = "loss is noted"
"""A key of its answer."""

LOSS_SECONDS = 120.0
"""How long to wait for that; FLARE takes up to 60 s, and a second with the recipes of the course."""


class ReturningSites(FLComponent):
    """Starts running jobs again on a site whose process was lost and that has registered anew.

    Which data and models the site had in memory is lost; it gets the global model of the round, as in each round. The site decides
    anew whether it runs the job: its policy is asked as it was the first time.
    """

    def __init__(self):
        super().__init__()
        self._busy: set[tuple[str, str]] = set()

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Look at each heartbeat, of which the first follows a registration, whether its site is missed by a job."""
        # Not on registration itself: the site takes orders only a moment later.
        if event_type != EventType.CLIENT_HEARTBEAT_PROCESSED:
            return
        engine = fl_ctx.get_engine()
        client = engine.client_manager.get_client_from_name(fl_ctx.get_peer_context().get_identity_name())
        for job_id, process in list(engine.run_processes.items()) if client else ():
            before = {token for token, one in process[RunProcessKey.PARTICIPANTS].items() if one.name == client.name}
            if before and client.token not in before and (job_id, client.token) not in self._busy:
                self._busy.add((job_id, client.token))
                # In a thread of its own: the site waits for the answer to its heartbeat before it takes orders.
                threading.Thread(target=self._bring_back, args=(engine, job_id, client), daemon=True).start()

    def _bring_back(self, engine, job_id: str, client) -> None:
        process = engine.run_processes[job_id]
        before = process[RunProcessKey.PARTICIPANTS]
        try:
            # What it did there is over: a round that waits for it goes on.
            engine.notify_dead_job(job_id, client.name, "registered anew")
            with engine.new_context() as fl_ctx:
                self._start(engine, job_id, client, fl_ctx)
            self.logger.info(f"{client.name} is back in job {job_id}")
        except Exception as error:
            process[RunProcessKey.PARTICIPANTS] = before
            self.logger.warning(f"{client.name} cannot go on with job {job_id}; at its next heartbeat again: {error}")
        finally:
            self._busy.discard((job_id, client.token))

    @staticmethod
    def _start(engine, job_id: str, client, fl_ctx: FLContext) -> None:
        """Deploy and start the job at the site.

        Raises:
            RuntimeError: if the site or the job's process did not agree.
        """
        name, runner, process = client.name, engine.job_runner, engine.run_processes[job_id]
        job = engine.get_component(SystemComponents.JOB_MANAGER).get_job(job_id, fl_ctx)
        app = next(
            app for app, places in job.get_deployment().items() if {name, ALL_SITES} & set(extract_participants(places))
        )
        message = runner._make_deploy_message(job, job.get_application(app, fl_ctx), app, fl_ctx)
        admin = engine.server.admin_server
        replies = admin.send_requests({client.token: message}, fl_ctx, timeout_secs=admin.timeout)
        _all_well(replies, name, "deploy")
        requirements = job.get_resource_requirements().get(name, {})
        enough, token = engine.check_client_resources(job, {name: requirements}, fl_ctx)[name]
        if not enough:
            raise RuntimeError(f"it lacks resources: {token}")

        # The job's process must know the new token before the site asks it for work.
        others = {token: one for token, one in process[RunProcessKey.PARTICIPANTS].items() if one.name != name}
        process[RunProcessKey.PARTICIPANTS] = {**others, client.token: client}
        # And it must have noted the loss: a site that is quicker than that would be back without ever having been away.
        deadline = time.monotonic() + LOSS_SECONDS
        while not _tell(engine, job_id, name)[LOSS_IS_NOTED]:
            if time.monotonic() > deadline:
                raise RuntimeError("the job's process does not note the loss")
            time.sleep(0.1)
        job.meta[JobMetaKey.JOB_CLIENTS] = [one.to_dict() for one in process[RunProcessKey.PARTICIPANTS].values()]
        with runner.lock:
            runner._pending_client_outcomes.setdefault(job_id, set()).add(name)
        _all_well(engine.start_client_job(job, {name: DispatchInfo(app, requirements, token)}, fl_ctx), name, "start")


def _tell(engine, job_id: str, site: str) -> dict[str, bool]:
    told = engine.send_app_command(job_id, SITE_IS_BACK, {"site": site}, timeout=10.0)
    if told is None or told.get_return_code() != ReturnCode.OK:
        raise RuntimeError("the job's process does not take sites back; its recipe needs add_record()")
    return told[ServerCommandKey.DATA]


def _all_well(replies, site: str, what: str) -> None:
    if check_client_replies(replies, [site], what, strict=True):
        raise RuntimeError(f"it did not answer to: {what}")
