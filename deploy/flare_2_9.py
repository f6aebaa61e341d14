"""What of FLARE 2.9's insides a *server* needs that takes a site back; the rest is in :mod:`src.federation.flare_2_9`.

A site that registers anew gets a new token, and its jobs neither start there again nor hear of it: a round without a time limit
waits for ever. The two functions do what the job runner does for a site at a job's start.
``test_flare_by_itself_does_not_take_a_site_back`` in tests/deploy/test_faults.py fails when FLARE does it.
"""

from nvflare.apis.job_def import ALL_SITES
from nvflare.apis.job_scheduler_spec import DispatchInfo
from nvflare.private.fed.server.admin import check_client_replies
from nvflare.private.fed.utils.fed_utils import extract_participants


def deploy_again(engine, job, client, fl_ctx) -> DispatchInfo:
    """Send the job to the site and reserve what it needs there. Raises RuntimeError if the site does not agree."""
    deployment = [(app, extract_participants(places)) for app, places in job.get_deployment().items()]
    app = next(app for app, names in deployment if {client.name, ALL_SITES} & set(names))
    message = engine.job_runner._make_deploy_message(job, job.get_application(app, fl_ctx), app, fl_ctx)
    admin = engine.server.admin_server
    _all_well(admin.send_requests({client.token: message}, fl_ctx, timeout_secs=admin.timeout), client.name, "deploy")
    needs = job.get_resource_requirements().get(client.name, {})
    enough, reserved = engine.check_client_resources(job, {client.name: needs}, fl_ctx)[client.name]
    if not enough:
        raise RuntimeError(f"it lacks resources: {reserved}")
    return DispatchInfo(app, needs, reserved)


def start_again(engine, job, site: str, dispatch: DispatchInfo, fl_ctx) -> None:
    """Start the job's process at the site; the job's end then waits for its last word too. Raises RuntimeError too."""
    with engine.job_runner.lock:
        engine.job_runner._pending_client_outcomes.setdefault(job.job_id, set()).add(site)
    _all_well(engine.start_client_job(job, {site: dispatch}, fl_ctx), site, "start")


def _all_well(replies: list, site: str, what: str) -> None:
    if check_client_replies(replies, [site], what, strict=True):
        raise RuntimeError(f"it did not answer to: {what}")
