"""Lets a site that went down come back into the jobs that are running: a component of the *server*, not of a job.

FLARE 2.9 gives a site that registers again a new token, and the jobs that it was part of neither start again on it nor hear of it:
they wait for the process that is gone, without end where a round has no time limit. This component notices it, and does what the
job runner does for a site at a job's start: deploy, reserve resources, start. It stands in the server's ``local/resources.json``.
"""

import threading

from nvflare.apis.event_type import EventType
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_constant import ReturnCode, RunProcessKey, SystemComponents
from nvflare.apis.fl_context import FLContext
from nvflare.apis.job_def import ALL_SITES, JobMetaKey
from nvflare.apis.job_scheduler_spec import DispatchInfo
from nvflare.private.admin_defs import MsgHeader
from nvflare.private.admin_defs import ReturnCode as AdminReturnCode

SITE_IS_BACK = "course.site_is_back"
"""The command by which the server tells a job's process to look who its sites are now; see ``RunRecorder``."""


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
        try:
            with engine.new_context() as fl_ctx:
                problem = self._start(engine, job_id, client, fl_ctx)
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"
        finally:
            self._busy.discard((job_id, client.token))
        if problem:
            self.logger.warning(f"{client.name} cannot go on with job {job_id} ({problem}); at its next heartbeat again")
        else:
            self.logger.info(f"{client.name} is back in job {job_id}")

    def _start(self, engine, job_id: str, client, fl_ctx: FLContext) -> str | None:
        """Deploy and start the job at the site; returns what went wrong."""
        runner, process = engine.job_runner, engine.run_processes[job_id]
        job = engine.get_component(SystemComponents.JOB_MANAGER).get_job(job_id, fl_ctx)
        app = next(a for a, sites in job.get_deployment().items() if {client.name, ALL_SITES} & {str(s) for s in sites})
        message = runner._make_deploy_message(job, job.get_application(app, fl_ctx), app, fl_ctx)
        admin = engine.server.admin_server
        reply = admin.send_requests_and_get_reply_dict({client.token: message}, timeout_secs=admin.timeout)[client.token]
        if reply is None or reply.get_header(MsgHeader.RETURN_CODE, AdminReturnCode.OK) != AdminReturnCode.OK:
            return f"it did not take the job: {reply.body if reply else 'no answer'}"
        requirements = job.get_resource_requirements().get(client.name, {})
        enough, token = engine.check_client_resources(job, {client.name: requirements}, fl_ctx)[client.name]
        if not enough:
            return f"it lacks resources: {token}"

        # The job's process must know the new token before the site asks it for work.
        others = {t: one for t, one in process[RunProcessKey.PARTICIPANTS].items() if one.name != client.name}
        process[RunProcessKey.PARTICIPANTS] = {**others, client.token: client}
        told = engine.send_app_command(job_id, SITE_IS_BACK, {"site": client.name}, timeout=10.0)
        if told is None or told.get_return_code() != ReturnCode.OK:
            self.logger.warning(f"job {job_id} has no recorder that knows how to take a site back")
        job.meta[JobMetaKey.JOB_CLIENTS] = [one.to_dict() for one in process[RunProcessKey.PARTICIPANTS].values()]
        with runner.lock:
            runner._pending_client_outcomes.setdefault(job_id, set()).add(client.name)
        (started,) = engine.start_client_job(job, {client.name: DispatchInfo(app, requirements, token)}, fl_ctx)
        return None if started.reply and started.reply.body == "OK" else f"it did not start: {started.reply}"
