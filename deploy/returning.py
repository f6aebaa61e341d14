"""Lets a site that went down come back into the jobs that are running: a component of the *server*, in its ``resources.json``."""

import threading
import time
from collections import Counter

from nvflare.apis.event_type import EventType
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_constant import FLContextKey, ReturnCode, RunProcessKey, ServerCommandKey, SystemComponents
from nvflare.apis.fl_context import FLContext
from nvflare.apis.job_def import JobMetaKey

from deploy.flare_2_9 import deploy_again, start_again
from src.federation.flare_2_9 import LOSS_IS_NOTED, SITE_IS_BACK

LOSS_SECONDS = 120.0
"""How long a job's process may take to note the loss; FLARE takes up to 60 s, and a second with the recipes of the course."""
MOST_TRIES = 5
"""How often, at one heartbeat after another, a job is brought to a site that has registered anew."""
TWICE = "its start-up kit runs on two machines, and each takes the other's place; stop one of them"


class ReturningSites(FLComponent):
    """Starts running jobs again on a site that was lost and has registered anew; FLARE does not, see :mod:`deploy.flare_2_9`.

    Such a site gets the model of the round, reads what it kept (:meth:`src.federation.site.Site.recall`), and its policy is asked
    anew. If a kit runs on two machines, FLARE tells nobody. The server knows by a heartbeat of the one that was replaced, which a
    dead one does not send: it says so in its log and, once, in the record of each job of that site.
    """

    def __init__(self):
        super().__init__()
        self._busy: set[tuple[str, str]] = set()
        self._tries: Counter[tuple[str, str]] = Counter()
        self._told: set[str | tuple[str, str]] = set()

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Look at each heartbeat, of which the first follows a registration, whether its site is missed by a job."""
        # Not on registration itself: the site takes orders only a moment later.
        if event_type != EventType.CLIENT_HEARTBEAT_PROCESSED:
            return
        engine, name = fl_ctx.get_engine(), fl_ctx.get_peer_context().get_identity_name()
        client = engine.client_manager.get_client_from_name(name)
        replaced = fl_ctx.get_prop(FLContextKey.COMMUNICATION_ERROR)  # the name is registered, and not by who sent this
        if client and replaced and client.token not in self._told:
            self._told.add(client.token)
            self.logger.warning(f"{name}: {TWICE}")
        for job_id, process in list(engine.run_processes.items()) if client else ():
            before = {token for token, one in process[RunProcessKey.PARTICIPANTS].items() if one.name == name}
            case = (job_id, client.token)
            if before and replaced and case not in self._told:
                self._told.add(case)
                engine.send_app_command(job_id, SITE_IS_BACK, {"site": name, "reason": TWICE}, timeout=2.0)
            elif before and client.token not in before and case not in self._busy and self._tries[case] < MOST_TRIES:
                self._busy.add(case)
                self._tries[case] += 1
                # In a thread of its own: the site waits for the answer to its heartbeat before it takes orders.
                threading.Thread(target=self._bring_back, args=(engine, job_id, process, client), daemon=True).start()

    def _bring_back(self, engine, job_id: str, process: dict, client) -> None:
        name, before = client.name, process[RunProcessKey.PARTICIPANTS]
        try:
            # What it did there is over: a round that waits for it goes on.
            engine.notify_dead_job(job_id, name, "registered anew")
            with engine.new_context() as fl_ctx:
                job = engine.get_component(SystemComponents.JOB_MANAGER).get_job(job_id, fl_ctx)
                dispatch = deploy_again(engine, job, client, fl_ctx)
                # The job's process must know the new token before the site asks it for work.
                others = {token: one for token, one in process[RunProcessKey.PARTICIPANTS].items() if one.name != name}
                process[RunProcessKey.PARTICIPANTS] = now = {**others, client.token: client}
                _wait_until_loss_is_noted(engine, job_id, name)
                job.meta[JobMetaKey.JOB_CLIENTS] = [one.to_dict() for one in now.values()]
                start_again(engine, job, name, dispatch, fl_ctx)
            self.logger.info(f"{name} is back in job {job_id}")
        except Exception as error:
            process[RunProcessKey.PARTICIPANTS] = before
            left = MOST_TRIES - self._tries[job_id, client.token]
            again = f"at its next heartbeat again, {left} times at most" if left else "it stays away from this job"
            self.logger.warning(f"{name} cannot go on with job {job_id}; {again}: {error}")
        finally:
            self._busy.discard((job_id, client.token))


def _wait_until_loss_is_noted(engine, job_id: str, site: str) -> None:
    """A site that is quicker than the job's process notes its loss would be back without ever having been away."""
    deadline = time.monotonic() + LOSS_SECONDS
    while True:
        told = engine.send_app_command(job_id, SITE_IS_BACK, {"site": site}, timeout=10.0)
        if told is None or told.get_return_code() != ReturnCode.OK:
            raise RuntimeError("the job's process does not take sites back; its recipe needs add_record()")
        if told[ServerCommandKey.DATA][LOSS_IS_NOTED]:
            return
        if time.monotonic() > deadline:
            raise RuntimeError("the job's process does not note the loss")
        time.sleep(0.1)
