"""What happens in a real federation when something goes wrong: real processes, real certificates.

``make test`` runs the short ones, ``make test-faults`` all of them, those marked ``long`` too.
"""

import datetime
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from nvflare.fuel.flare_api.api_spec import AuthorizationError

from deploy.federation import (
    ADMIN,
    CONSOLE,
    MEMBER,
    REVIEWED,
    SERVER,
    Federation,
    knock,
    project,
    provision,
    set_up_site,
    sign_anew,
)
from src.common.errors import CourseError
from src.federation.processes import processes_below
from src.federation.run import FINAL, Run
from src.federation.server import GONE, use_installed_code
from src.prostate.recipe import learner_recipe
from tests.runs_support import toy_recipe

pytestmark = [pytest.mark.slow, pytest.mark.faults]

SITES = ("site-1", "site-2", "site-3")
GUEST = "guest"
"""Has a kit, and is not started."""


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory):
    """A server and three sites that run."""
    with Federation(
        tmp_path_factory.mktemp("faults") / "federation", {site: {} for site in (*SITES, GUEST)}
    ) as running:
        running.start(SERVER, *SITES)
        yield running


@pytest.fixture
def all_there(hospitals):
    """After a test that took a site or the server away, all are there again."""
    yield
    if gone := [name for name in (SERVER, *SITES) if not hospitals.is_running(name)]:
        hospitals.start(*gone)


def registered(hospitals: Federation) -> set[str]:
    with hospitals.session(ADMIN) as session:
        return {client.name for client in session.get_connected_client_list()}


def submit(hospitals: Federation, recipe) -> str:
    return recipe.execute(hospitals.environment()).get_job_id()


def status(hospitals: Federation, job: str) -> str:
    with hospitals.session() as session:
        return session.get_job_meta(job)["status"]


def kill_in_round(hospitals: Federation, job: str, name: str, number: int) -> None:
    """Kill a participant's processes while the sites train in a round."""
    hospitals.wait_for(job, "round started", round=number)
    time.sleep(0.5)
    hospitals.kill(name)
    assert not hospitals.is_running(name)


def took_part(run: Run, site: str) -> list[bool]:
    return run.contributions.set_index(["round", "site"])["accepted"].xs(site, level="site").tolist()


def mean(checkpoint: Path) -> float:
    """Of the toy's weights, which each round raises by one."""
    return float(Run.weights(checkpoint)["weight"].mean())


# -- a site that goes --------------------------------------------------------------------------------------------------


def test_a_site_killed_in_mid_round_is_missed_once_and_comes_back(hospitals, tmp_path, all_there, record_property):
    for name, value in killed_and_started_again(hospitals, tmp_path).items():
        record_property(name, value)  # for benchmarks/faults.py


@pytest.mark.long
def test_a_site_that_is_back_before_the_server_notes_the_loss_waits_for_that(hospitals, tmp_path, all_there):
    moments = killed_and_started_again(hospitals, tmp_path, {"dead_client_grace_period": 8.0})
    assert moments["seconds until it was missed"] > 8.0


def killed_and_started_again(hospitals: Federation, tmp_path: Path, options: dict | None = None) -> dict[str, float]:
    """Kill site-2 in the second round and start it at once; returns what happened when."""
    # However slow this machine is, site-1 ends its fourth round only when site-2 is back.
    go = tmp_path / "go"
    wait = f"""
time.sleep(1.5)
while site == "site-1" and number == 4 and not __import__("pathlib").Path({str(go)!r}).exists():
    time.sleep(0.1)
"""
    recipe = toy_recipe(tmp_path, len(SITES), 6, body=wait, at_least=2)
    if options:
        recipe.add_server_config(options)
    job = submit(hospitals, recipe)
    kill_in_round(hospitals, job, "site-2", 1)
    killed = time.time()
    hospitals.start("site-2")
    back = hospitals.wait_for(job, "site back", site="site-2")["round"]
    go.touch()

    run = Run(hospitals.fetch(job, tmp_path / "results"))
    assert [(entry["site"], entry["round"]) for entry in run.record if entry["event"] == "site lost"] == [("site-2", 1)]
    assert 1 <= back <= 3
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


@pytest.mark.long
def test_the_others_go_on_when_a_site_stays_away(hospitals, tmp_path, all_there):
    job = submit(hospitals, toy_recipe(tmp_path, len(SITES), 3, body="time.sleep(1.5)", at_least=2))
    kill_in_round(hospitals, job, "site-2", 1)
    run = Run(hospitals.fetch(job, tmp_path / "results"))
    assert run.about["status"] == "finished"
    assert [(entry["site"], entry["round"]) for entry in run.record if entry["event"] == "site lost"] == [("site-2", 1)]
    assert took_part(run, "site-2") == [True, False, False]
    assert registered(hospitals) == {"site-1", "site-3"}


@pytest.mark.long
def test_a_run_that_needs_all_ends_when_one_is_lost(hospitals, tmp_path, all_there):
    job = submit(hospitals, toy_recipe(tmp_path, len(SITES), 3, body="time.sleep(1.5)"))
    kill_in_round(hospitals, job, "site-2", 1)
    with pytest.raises(CourseError, match="The job ended with FINISHED:EXECUTION_EXCEPTION"):
        hospitals.fetch(job, tmp_path / "results")
    (place,) = (tmp_path / "results").iterdir()
    run = Run(place)
    assert run.about["status"] == "failed"
    assert [(entry["site"], entry["round"]) for entry in run.record if entry["event"] == "site lost"] == [("site-2", 1)]


# -- who may come in ---------------------------------------------------------------------------------------------------


def test_a_foreign_and_an_expired_certificate_are_refused(hospitals, tmp_path):
    """The first two know the server and its root; only their own certificates are wrong."""
    foreign, expired = tmp_path / "foreign", tmp_path / "expired"
    strangers = provision(tmp_path, project([GUEST], hospitals.port, name="strangers"))
    for kit in (foreign, expired):
        shutil.copytree(hospitals.kits[GUEST], kit)
    for name in ("client.crt", "client.key"):
        shutil.copyfile(strangers[GUEST] / "startup" / name, foreign / "startup" / name)
    now = datetime.datetime.now(datetime.timezone.utc)
    sign_anew(hospitals.folder / "course", expired, now - datetime.timedelta(days=1))

    assert knock(hospitals.kits[GUEST]) is None
    # FLARE compares the server's name in the project with its certificate, and not by which address it was called.
    called = shutil.copytree(hospitals.kits[GUEST], tmp_path / "by its address")
    about = called / "startup" / "fed_client.json"
    about.write_text(about.read_text().replace(f"localhost:{hospitals.port}", f"127.0.0.1:{hospitals.port}"))
    assert knock(called) is None and "127.0.0.1" in about.read_text()
    assert knock(foreign).startswith("the server refuses the site")
    assert knock(expired).startswith("the server refuses the site")
    assert knock(strangers[GUEST]).startswith("the site refuses the server: self-signed certificate")
    sign_anew(hospitals.folder / "course", expired, now + datetime.timedelta(days=1))
    assert knock(expired) is None


@pytest.mark.long
def test_a_site_whose_certificate_has_expired_does_not_register_and_does_with_a_new_one(hospitals):
    kit = hospitals.kits[GUEST]
    now = datetime.datetime.now(datetime.timezone.utc)
    sign_anew(hospitals.folder / "course", kit, now - datetime.timedelta(days=1))
    hospitals.start(GUEST, wait=False)
    time.sleep(15)
    assert GUEST not in registered(hospitals)
    assert hospitals.is_running(GUEST) and "ERROR" not in (kit / CONSOLE).read_text()  # it does not say why
    hospitals.kill(GUEST)
    sign_anew(hospitals.folder / "course", kit, now + datetime.timedelta(days=1))
    hospitals.start(GUEST)
    assert GUEST in registered(hospitals)
    hospitals.kill(GUEST)
    deadline = time.monotonic() + 90
    while GUEST in registered(hospitals):
        assert time.monotonic() < deadline
        time.sleep(2)


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


def test_nobody_reads_a_site_s_files_from_afar(hospitals):
    (hospitals.kits["site-1"] / "error_log.txt").touch()
    with hospitals.session(ADMIN) as session:
        for read in (session.cat_target, session.head_target, session.tail_target):
            with pytest.raises(AuthorizationError, match="not authorized"):
                read("site-1", file="error_log.txt")
        with pytest.raises(AuthorizationError, match="not authorized"):
            session.ls_target("site-1")
        with pytest.raises(AuthorizationError, match="not authorized"):
            session.grep_target("site-1", pattern="a", file="error_log.txt")


@pytest.mark.long
def test_by_flare_s_own_rules_an_administrator_reads_a_site_s_log(hospitals, all_there):
    """So that the test above says something."""
    kit = hospitals.kits["site-3"]
    hospitals.kill("site-3")
    (kit / "local" / "authorization.json").unlink()
    (kit / "error_log.txt").write_text("case_007.nii.gz is broken\n")
    hospitals.start("site-3")
    try:
        with hospitals.session(ADMIN) as session:
            assert "case_007.nii.gz is broken" in session.cat_target("site-3", file="error_log.txt")
    finally:
        set_up_site(kit)
        hospitals.kill("site-3")


# -- which code may come in --------------------------------------------------------------------------------------------


def test_a_site_that_allows_no_code_refuses_a_job_that_brings_some(hospitals, tmp_path, all_there):
    hospitals.kill("site-3")
    set_up_site(hospitals.kits["site-3"], brings_code=False)
    hospitals.start("site-3")
    try:
        with pytest.raises(CourseError, match="site-3: BYOC not permitted"):
            hospitals.execute(toy_recipe(tmp_path, len(SITES), 1), tmp_path / "all")
        run = Run(hospitals.execute(toy_recipe(tmp_path, len(SITES), 1, at_least=2), tmp_path / "two"))
        assert run.about["refused"] == {"site-3": "BYOC not permitted"}
        rows = run.contributions.set_index("site")
        assert rows["accepted"].to_dict() == {"site-1": True, "site-2": True, "site-3": False}
        assert rows.loc["site-3", "reason"] == "BYOC not permitted"
        assert list((hospitals.kits["site-1"] / run.folder.name).rglob("toy_client.py")), "FLARE removes none of it"
        # Of an earlier job there may be code: the site was killed before it had cleared that job away.
        of_the_job = hospitals.kits["site-3"] / run.folder.name
        assert not list(of_the_job.rglob("toy_client.py")), "the code must not stay there"
    finally:
        set_up_site(hospitals.kits["site-3"])
        hospitals.kill("site-3")


@pytest.mark.long
def test_a_site_refuses_a_class_that_is_not_on_its_list(hospitals, tmp_path, all_there):
    """The job brings no code, and names a class that the site has installed and not allowed."""
    for name in (SERVER, "site-1", "site-2"):
        hospitals.kill(name)
        set_up_site(hospitals.kits[name], REVIEWED)
    hospitals.start(SERVER)
    hospitals.start("site-1", "site-2")
    (tmp_path / "config").mkdir()
    recipe = learner_recipe(tmp_path / "config", len(SITES))
    use_installed_code(recipe)
    recipe.export(str(tmp_path / "job"))
    assert not list((tmp_path / "job").rglob("*.py")) and not list((tmp_path / "job").rglob("custom"))
    deadline = time.monotonic() + 90
    while registered(hospitals) < set(SITES):
        assert time.monotonic() < deadline
        time.sleep(1)
    with pytest.raises(CourseError, match="The job ended with FINISHED:"):
        hospitals.execute(recipe, tmp_path / "results")
    refusals = {site: "is not in allow_list" in (hospitals.kits[site] / CONSOLE).read_text() for site in SITES}
    assert refusals == {"site-1": False, "site-2": False, "site-3": True}
    assert "is not in allow_list" not in (hospitals.kits[SERVER] / CONSOLE).read_text()


# -- the server that goes ----------------------------------------------------------------------------------------------


@pytest.mark.long
def test_a_server_that_stops_in_round_three_loses_the_round_and_not_the_model(hospitals, tmp_path, all_there):
    job = submit(hospitals, toy_recipe(tmp_path, len(SITES), 5, body="time.sleep(1.5)"))
    kill_in_round(hospitals, job, SERVER, 2)
    last = hospitals.kits[SERVER] / job / "app_server" / FINAL
    saved = [entry["round"] for entry in hospitals.record(job) if entry["event"] == "model saved"]
    assert saved == [0, 1]
    hospitals.start(SERVER)
    deadline = time.monotonic() + 90
    while registered(hospitals) < set(SITES):  # they dial again by themselves
        assert time.monotonic() < deadline
        time.sleep(1)
    while any(
        job in " ".join(process.cmdline()) for site in SITES for process in processes_below(hospitals.kits[site])
    ):
        assert time.monotonic() < deadline, "the sites must have given the old job up"
        time.sleep(1)
    # FLARE 2.9 leaves the job marked as running; nobody works on it.
    assert status(hospitals, job) == "RUNNING"

    rest = toy_recipe(tmp_path, len(SITES), 3, initial=last)
    run = Run(hospitals.execute(rest, tmp_path / "results"))
    assert mean(run.final_model) == pytest.approx(mean(last) + 3)


# -- nothing is left ---------------------------------------------------------------------------------------------------

OWNER = """
import json, sys, time
from pathlib import Path
from deploy.federation import Federation
with Federation(Path(sys.argv[1]), {"site-1": {}}) as hospitals:
    hospitals.start()
    print(json.dumps([str(hospitals.folder), hospitals.port]), flush=True)
    if sys.argv[2] == "error":
        raise RuntimeError("a cell failed")
    time.sleep(600)
"""


def words_with(folder: Path) -> list[str]:
    """Command lines of all processes that name a folder."""
    lines = [" ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"])]
    return [line for line in lines if str(folder) in line]


@pytest.mark.parametrize(
    "how",
    [
        signal.SIGKILL,
        pytest.param(signal.SIGINT, marks=pytest.mark.long),
        pytest.param(signal.SIGTERM, marks=pytest.mark.long),
        pytest.param("error", marks=pytest.mark.long),
    ],
)
def test_however_its_owner_ends_no_process_port_or_file_is_left(tmp_path, how):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path / "with a blank" / "federation"), str(how)],
        env={**os.environ, "TMPDIR": str(temporary)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    try:
        line = next(line for line in owner.stdout if line.startswith("["))
        folder, port = json.loads(line)
        if how != "error":
            assert len(processes_below(folder)) >= 2
            with socket.create_connection(("localhost", port), 5.0):
                pass
            owner.send_signal(how)
        owner.wait(60)
    finally:
        owner.kill()
        owner.wait()
    deadline = time.monotonic() + 60
    while Path(folder).exists() or any(temporary.iterdir()) or words_with(tmp_path):  # the guard itself ends last
        assert time.monotonic() < deadline, words_with(tmp_path)
        time.sleep(0.2)
    assert processes_below(folder, temporary, tmp_path) == []
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("localhost", port), 5.0)
    assert list(tmp_path.rglob("*.key")) == []


def test_a_federation_s_folder_is_its_own(tmp_path):
    with pytest.raises(CourseError, match="is there already"):
        Federation(tmp_path, {"site-1": {}})
    with pytest.raises(CourseError):
        Federation(tmp_path / "new", {"a b": {}})
    assert list(tmp_path.iterdir()) == []
