"""What happens in a real federation when something goes wrong, and in a workshop: real processes, real certificates.

``make test-faults`` runs them. ``make test`` leaves them out: most of it notebook 06 shows and asserts too.
"""

import datetime
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from nvflare.fuel.flare_api.api_spec import AuthorizationError

from deploy.federation import CONSOLE, Federation, handed_on
from deploy.kits import (
    ADMIN,
    MEMBER,
    REVIEWED,
    SERVER,
    knock,
    project,
    provision,
    set_up_site,
    sign_anew,
    use_installed_code,
)
from deploy.processes import end_processes_below, processes_below
from deploy.returning import TWICE
from src.federation.run import FINAL, Run
from src.federation.server import GONE
from src.learners.recipe import learner_recipe
from tests.runs_support import toy_recipe, wait_until
from tests.tests_support import course_error

pytestmark = [pytest.mark.slow, pytest.mark.faults, pytest.mark.long]

SITES = ("site-1", "site-2", "site-3")
GUEST = "guest"  # has a kit, and is not started


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory):
    """A server and three sites that run."""
    folder = tmp_path_factory.mktemp("faults") / "federation"
    with Federation(folder, {site: {} for site in (*SITES, GUEST)}) as running:
        running.start(SERVER, *SITES)
        yield running


@pytest.fixture
def all_there(hospitals):
    """After a test that took a site or the server away, all are there again."""
    yield
    if gone := [name for name in (SERVER, *SITES) if not hospitals.is_running(name)]:
        hospitals.start(*gone)
    wait_until_all_are_there(hospitals)


def registered(hospitals: Federation) -> set[str]:
    with hospitals.session(ADMIN) as session:
        return {client.name for client in session.get_connected_client_list()}


def wait_until_all_are_there(hospitals: Federation) -> None:
    """After a stop of the server the sites dial again by themselves."""
    wait_until(lambda: registered(hospitals) >= set(SITES))


def submit(hospitals: Federation, recipe) -> str:
    return recipe.execute(hospitals.environment()).get_job_id()


def submit_and_kill(hospitals: Federation, recipe, name: str, number: int) -> str:
    """Kill a participant's processes while the sites train in a round."""
    job = submit(hospitals, recipe)
    hospitals.wait_for(job, "round started", round=number)
    time.sleep(0.5)
    hospitals.kill(name)
    assert not hospitals.is_running(name)
    return job


def took_part(run: Run, site: str) -> list[bool]:
    return run.contributions.set_index(["round", "site"])["accepted"].xs(site, level="site").tolist()


def losses(run: Run) -> list[tuple[str, int]]:
    return [(entry["site"], entry["round"]) for entry in run.record if entry["event"] == "site lost"]


def test_a_site_killed_in_mid_round_is_missed_once_and_comes_back(hospitals, tmp_path, all_there, record_property):
    for name, value in killed_and_started_again(hospitals, tmp_path, grace=1.0).items():
        record_property(name, value)  # for benchmarks/faults.py


def test_a_site_that_is_back_before_the_server_notes_the_loss_waits_for_that(hospitals, tmp_path, all_there):
    moments = killed_and_started_again(hospitals, tmp_path, grace=8.0)
    assert moments["seconds until it was missed"] > 8.0


def wait_for_file(go: Path, number: int) -> str:
    """What ``site-1`` does in its round ``number``, however slow this machine is."""
    until = (
        f"""while site == "site-1" and number == {number} and not __import__("pathlib").Path({str(go)!r}).exists():"""
    )
    return f"time.sleep(1.5)\n{until}\n    time.sleep(0.1)"


def killed_and_started_again(hospitals: Federation, tmp_path: Path, grace: float) -> dict[str, float]:
    """Kill site-2 in the second round and start it at once; the server notes a loss after ``grace`` seconds."""
    go = tmp_path / "go"  # when site-2 is back
    recipe = toy_recipe(tmp_path, len(SITES), 6, body=wait_for_file(go, 4), min_clients=2)
    recipe.add_server_config({"dead_client_grace_period": grace})
    job = submit_and_kill(hospitals, recipe, "site-2", 1)
    killed = time.time()
    hospitals.start("site-2")
    back = hospitals.wait_for(job, "site back", site="site-2")["round"]
    go.touch()

    run = Run(hospitals.fetch(job, tmp_path / "results"))
    assert losses(run) == [("site-2", 1)] and 1 <= back <= 3
    accepted = took_part(run, "site-2")
    assert (accepted[0], accepted[1], accepted[back:]) == (True, False, [True] * (6 - back))
    assert run.contributions["reason"].dropna().unique().tolist() == [GONE]
    assert all(all(took_part(run, site)) for site in ("site-1", "site-3"))
    assert run.final_validation[FINAL].keys() == set(SITES)
    moments = {entry["event"]: entry["time"] - killed for entry in run.record if entry["event"].startswith("site")}
    return {
        "seconds until it was missed": round(moments["site lost"], 1),
        "seconds until it was back": round(moments["site back"], 1),
        "rounds without it": accepted.count(False),
    }


def test_flare_by_itself_does_not_take_a_site_back(hospitals, tmp_path, all_there):
    """On the day when this fails, ``ReturningSites`` can go, and its part of ``flare_2_9``: the site runs, and misses all."""
    file = hospitals.kits[SERVER] / "local" / "resources.json"
    ours = file.read_text()
    others = json.loads(ours)
    assert others["components"].pop()["id"] == "returning_sites"
    hospitals.kill(SERVER)
    file.write_text(json.dumps(others))
    try:
        hospitals.start(SERVER)
        wait_until_all_are_there(hospitals)
        job = submit(hospitals, toy_recipe(tmp_path, len(SITES), 4, min_clients=2, round_timeout=10.0))
        hospitals.wait_for(job, "all answers in", round=0)
        hospitals.kill("site-2")
        hospitals.start("site-2")
        course_error("The job ended with FINISHED:ABNORMAL", hospitals.fetch, job, tmp_path / "results")
        assert took_part(Run(tmp_path / "results" / job), "site-2") == [True, False, False, False]
    finally:
        file.write_text(ours)
        hospitals.kill(SERVER)


def test_the_others_go_on_when_a_site_stays_away(hospitals, tmp_path, all_there):
    recipe = toy_recipe(tmp_path, len(SITES), 3, "time.sleep(1.5)", min_clients=2)
    job = submit_and_kill(hospitals, recipe, "site-2", 1)
    run = Run(hospitals.fetch(job, tmp_path / "results"))
    assert run.about["status"] == "finished" and losses(run) == [("site-2", 1)]
    assert took_part(run, "site-2") == [True, False, False]
    assert registered(hospitals) == {"site-1", "site-3"}


def test_a_job_for_more_sites_than_there_are_is_taken_out_of_the_queue(hospitals, tmp_path):
    job = submit(hospitals, toy_recipe(tmp_path, len(SITES) + 1, 1))
    said = rf"Job {job} not started: 3 of 4 sites are there \(missing: {GUEST}\); it needs 4"
    course_error(said, hospitals.fetch, job, tmp_path / "results", timeout=5)
    with hospitals.session() as session:
        assert session.get_job_meta(job)["status"] == "FINISHED:ABORTED"


def test_a_kit_that_runs_twice_is_named_and_the_job_goes_on(hospitals, tmp_path, all_there):
    twin, go = shutil.copytree(hospitals.kits["site-3"], hospitals.folder / "twin"), tmp_path / "go"
    own = {"HOME": str(twin), "TMPDIR": str(twin), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    job = submit(hospitals, toy_recipe(tmp_path, len(SITES), 4, body=wait_for_file(go, 2), min_clients=2))
    hospitals.wait_for(job, "round started", round=1)
    other = subprocess.Popen([twin / "startup" / "sub_start.sh", "--once"], cwd=twin, env=handed_on(**own))
    try:
        hospitals.wait_for(job, "site lost", timeout=1800, site="site-3", reason=TWICE)  # mostly within a minute
        go.touch()
        run = Run(hospitals.fetch(job, tmp_path / "results"))
    finally:
        end_processes_below(twin)
        other.wait()
        hospitals.kill("site-3")
    assert TWICE in (hospitals.kits[SERVER] / CONSOLE).read_text()
    assert all(all(took_part(run, site)) for site in ("site-1", "site-2"))


def test_a_run_that_needs_all_ends_when_one_is_lost(hospitals, tmp_path, all_there):
    job = submit_and_kill(hospitals, toy_recipe(tmp_path, len(SITES), 3, "time.sleep(1.5)"), "site-2", 1)
    course_error("The job ended with FINISHED:EXECUTION_EXCEPTION", hospitals.fetch, job, tmp_path / "results")
    run = Run(tmp_path / "results" / job)
    assert run.about["status"] == "failed" and losses(run) == [("site-2", 1)]


def in_days(number: int) -> datetime.datetime:
    return datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(days=number)


def test_a_foreign_and_an_expired_certificate_are_refused(hospitals, tmp_path):
    """The first two know the server and its root; only their own certificates are wrong."""
    foreign, expired = (shutil.copytree(hospitals.kits[GUEST], tmp_path / name) for name in ("foreign", "expired"))
    strangers = provision(tmp_path, project([GUEST], hospitals.port, name="strangers"))
    for name in ("client.crt", "client.key"):
        shutil.copyfile(strangers[GUEST] / "startup" / name, foreign / "startup" / name)
    sign_anew(hospitals.folder / "course", expired, in_days(-1))
    assert knock(hospitals.kits[GUEST]) is None
    assert all(knock(kit).startswith("the server refuses the site") for kit in (foreign, expired))
    assert knock(strangers[GUEST]).startswith("the site refuses the server: self-signed certificate")


def test_a_site_whose_certificate_has_expired_does_not_register_and_does_with_a_new_one(hospitals):
    kit = hospitals.kits[GUEST]
    sign_anew(hospitals.folder / "course", kit, in_days(-1))
    hospitals.start(GUEST, wait=False)
    time.sleep(15)
    assert GUEST not in registered(hospitals)
    assert hospitals.is_running(GUEST) and "ERROR" not in (kit / CONSOLE).read_text()  # it does not say why
    hospitals.kill(GUEST)
    sign_anew(hospitals.folder / "course", kit, in_days(1))
    hospitals.start(GUEST)
    assert GUEST in registered(hospitals)
    hospitals.kill(GUEST)
    wait_until(lambda: GUEST not in registered(hospitals))


def test_a_user_without_the_role_may_look_and_not_submit(hospitals, tmp_path):
    recipe = toy_recipe(tmp_path, len(SITES), 1)
    recipe.export(str(tmp_path / "job"))
    with hospitals.session(MEMBER) as session:
        assert {client.name for client in session.get_connected_client_list()} >= set(SITES)
        before = len(session.list_jobs())
        with pytest.raises(AuthorizationError, match="not authorized for 'submit_job'"):
            session.submit_job(str(tmp_path / "job" / recipe.name))
        assert len(session.list_jobs()) == before
    with pytest.raises(RuntimeError, match="not authorized"):
        recipe.execute(hospitals.environment(MEMBER))


def test_a_site_that_allows_no_code_refuses_a_job_that_brings_some(hospitals, tmp_path, all_there):
    hospitals.kill("site-3")
    set_up_site(hospitals.kits["site-3"], brings_code=False)
    hospitals.start("site-3")
    try:
        needs_all = toy_recipe(tmp_path, len(SITES), 1)
        course_error("site-3: BYOC not permitted", hospitals.execute, needs_all, tmp_path / "all")
        run = Run(hospitals.execute(toy_recipe(tmp_path, len(SITES), 1, min_clients=2), tmp_path / "two"))
    finally:
        set_up_site(hospitals.kits["site-3"])
        hospitals.kill("site-3")
    assert run.about["refused"] == {"site-3": "BYOC not permitted"}
    assert [took_part(run, site) for site in SITES] == [[True], [True], [False]]
    # In this job's folders alone: of an earlier one there may be code, if the site was killed before it had cleared that away.
    code = {site for site in SITES if list((hospitals.kits[site] / run.folder.name).rglob("toy_client.py"))}
    assert "site-1" in code and "site-3" not in code, "FLARE removes none of it, and at site-3 it must not stay"


def test_a_site_refuses_a_class_that_is_not_on_its_list(hospitals, tmp_path, all_there):
    """The job brings no code, and names a class that the site has installed and not allowed."""
    for name in (others := (SERVER, "site-1", "site-2")):
        hospitals.kill(name)
        set_up_site(hospitals.kits[name], REVIEWED)
    hospitals.start(*others)
    (tmp_path / "config").mkdir()
    recipe = learner_recipe(tmp_path / "config", len(SITES))
    use_installed_code(recipe)
    wait_until_all_are_there(hospitals)
    course_error("The job ended with FINISHED:", hospitals.execute, recipe, tmp_path / "results")
    said = {name: (hospitals.kits[name] / CONSOLE).read_text() for name in (SERVER, *SITES)}
    assert [name for name, log in said.items() if "is not in allow_list" in log] == ["site-3"]


def test_a_server_that_stops_in_round_three_loses_the_round_and_not_the_model(hospitals, tmp_path, all_there):
    job = submit_and_kill(hospitals, toy_recipe(tmp_path, len(SITES), 5, "time.sleep(1.5)"), SERVER, 2)
    last = hospitals.kits[SERVER] / job / "app_server" / FINAL
    assert [entry["round"] for entry in hospitals.record(job) if entry["event"] == "model saved"] == [0, 1]
    hospitals.start(SERVER)
    wait_until_all_are_there(hospitals)
    kits = [hospitals.kits[site] for site in SITES]
    wait_until(lambda: not any(job in str(one.cmdline()) for one in processes_below(*kits)))  # they gave the job up
    # FLARE 2.9 leaves the job marked as running; nobody works on it.
    with hospitals.session() as session:
        assert session.get_job_meta(job)["status"] == "RUNNING"

    rest = toy_recipe(tmp_path, len(SITES), 3, initial=last)
    run = Run(hospitals.execute(rest, tmp_path / "results"))
    # Each round raises the toy's weights by one.
    before, after = (float(Run.weights(checkpoint)["weight"].mean()) for checkpoint in (last, run.final_model))
    assert after == pytest.approx(before + 3)


def test_five_learners_join_from_folders_of_their_own_by_five_addresses(tmp_path):
    try:
        socket.create_server(("127.0.0.2", 0)).close()
    except OSError:
        pytest.skip("this system's loopback has one address")
    learners = [f"site-{number}" for number in range(1, 6)]
    with Federation(tmp_path / "federation", {site: {} for site in learners}) as school:
        school.start(SERVER)
        for number, site in enumerate(learners, 2):
            # What a learner unpacks; below the federation's folder, so that it is cleared away with it.
            school.kits[site] = Path(shutil.move(school.kits[site], school.folder / "learners" / site))
            file = school.kits[site] / "startup" / "fed_client.json"
            file.write_text(file.read_text().replace("localhost:", f"127.0.0.{number}:"))
            assert f"127.0.0.{number}:{school.port}" in file.read_text()
        school.start(*learners)
        run = Run(school.execute(toy_recipe(tmp_path, len(learners), 2), tmp_path / "results"))
    assert run.sites == learners
    assert run.contributions["accepted"].all() and len(run.contributions) == 2 * len(learners)
