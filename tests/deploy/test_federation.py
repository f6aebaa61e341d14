"""A real federation of two hospitals, each with a disk of its own, as far as one machine can show it; and that nothing is left."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from nvflare.fuel.flare_api.api_spec import AuthorizationError

from data_scripts.mednist_sites import share_out
from deploy.federation import Federation
from deploy.kits import ADMIN, LEAD, SERVER
from deploy.processes import processes_below
from src.common.datalists import DATALIST
from src.common.paths import sites_folder
from src.federation.recipes import client_recipe
from src.federation.run import Run
from src.mednist.card import Settings
from src.mednist.training import TASK
from tests.runs_support import drawings, holders, wait_until
from tests.tests_support import course_error

pytestmark = pytest.mark.slow

SITES = {"north": 30, "south": 18}  # images of each; not equal, so that it shows who is who
SETTINGS = Settings(rounds=2, batch_size=8)
PACKAGES = "packages of the user"
PACKAGE = "import os, pathlib\npathlib.Path(__file__).with_name(str(os.getpid())).touch()"  # says who has imported it


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Iterator[tuple[Federation, dict[str, Path]]]:
    """A federation and, for each of its sites, the data folder that this site alone knows."""
    root = tmp_path_factory.mktemp("two-folders")
    folders = {site: root / f"disk-of-{site}" for site in SITES}
    images = drawings(root, per_class=8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COURSE_DATA", str(root / "shared-out"))
        data = share_out(list(SITES), "counts", counts=list(SITES.values()), data=SETTINGS.data, folder=images)
        for site, folder in folders.items():
            shutil.move(sites_folder(data) / site, folder / "sites" / data / site)
        # What this process knows must not help either.
        patch.setenv("COURSE_DATA", str(root / "nothing"))
        (root / PACKAGES).mkdir()
        (root / PACKAGES / "sitecustomize.py").write_text(PACKAGE)
        patch.setenv("PYTHONPATH", os.path.relpath(root / PACKAGES))
        told = {site: {"COURSE_DATA": str(folder)} for site, folder in folders.items()}
        with Federation(root / "federation", told) as hospitals:
            hospitals.start()
            yield hospitals, folders


def test_all_import_the_owner_s_packages_and_who_runs_is_not_started_twice(place):
    hospitals, _ = place
    before = {process.pid for process in processes_below(hospitals.folder)}
    found = {file.name for file in (hospitals.folder.parent / PACKAGES).iterdir()}
    assert {str(pid) for pid in (*before, hospitals._guard.pid)} <= found
    hospitals.start()
    assert {process.pid for process in processes_below(hospitals.folder)} == before


def execute(hospitals: Federation) -> Path:
    """Run the job; what is fetched lies in the lead's kit, where FLARE would put it."""
    return hospitals.execute(client_recipe(TASK, len(SITES), SETTINGS), hospitals.kits[LEAD] / "transfer")


def datalist(folders: dict[str, Path], site: str) -> Path:
    return folders[site] / "sites" / SETTINGS.data / site / DATALIST


def test_each_site_trains_on_what_it_alone_can_find(place):
    hospitals, folders = place
    run = Run(result := execute(hospitals))
    assert (run.about["status"], run.sites, run.about["refused"]) == ("finished", sorted(SITES), {})
    assert 0 < run.seconds < 600
    assert len(run.contributions) == 4 and run.contributions["accepted"].all()
    reported = {(entry["round"], entry["site"]): entry["samples"] for entry in run.record if entry["event"] == "answer"}
    own = {site: len(json.loads(datalist(folders, site).read_text())["training"]) for site in SITES}
    assert own["north"] != own["south"]
    assert reported == {(number, site): own[site] for number in range(2) for site in SITES}
    assert {site for sites in run.final_validation.values() for site in sites} == set(SITES)
    assert sorted(run.curve("val_accuracy").columns) == sorted(SITES)
    assert len(run.weights(run.final_model)) > 100
    assert (result / "job" / "mednist" / "app" / "custom" / "src" / "mednist" / "training.py").is_file()
    for site, folder in folders.items():  # the lead's kit holds the job and its result too
        assert not any(holders(str(folder), kit) for name, kit in hospitals.kits.items() if name != site)


@pytest.mark.faults
def test_nobody_reads_a_site_s_files_from_afar(place):
    (place[0].kits["north"] / "error_log.txt").touch()
    with place[0].session(ADMIN) as session:
        log = {"file": "error_log.txt"}
        reads = [(read, log) for read in (session.cat_target, session.head_target, session.tail_target)]
        for read, what in [*reads, (session.ls_target, {}), (session.grep_target, {"pattern": "a", **log})]:
            with pytest.raises(AuthorizationError, match="not authorized"):
                read("north", **what)


def test_a_name_that_is_not_to_be_known_stays_at_its_site(place):
    (hospitals, folders), name = place, "SURNAME_FIRSTNAME_1950"  # spoils north's data, so this test is the last here
    file = datalist(folders, "north")
    (file.parent / f"{name}.jpeg").write_text("not an image")
    content = json.loads(file.read_text())
    content["training"][0]["image"] = f"{name}.jpeg"
    file.write_text(json.dumps(content))
    course_error("EXECUTION_EXCEPTION", execute, hospitals)
    kits = hospitals.kits
    assert holders(name, kits["north"]), "the site itself must be able to find out what was wrong"
    assert not any(holders(name, kits[other]) for other in (SERVER, LEAD, "south"))
    said = [line for record in kits[LEAD].rglob("course_record.jsonl") for line in record.read_text().splitlines()]
    assert any("north" in line and "an image cannot be read" in line for line in said)


def private_keys(folder: Path) -> list[Path]:
    return [file for file in folder.rglob("*") if file.is_file() and b"PRIVATE KEY" in file.read_bytes()]


@pytest.mark.faults
@pytest.mark.parametrize("folder", ["plain", "with a blank"])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, 0], ids=["killed", "terminated", "alive"])
def test_no_key_is_left_after_close_whatever_became_of_the_guard(tmp_path, monkeypatch, how, folder):
    temporary = tmp_path.resolve() / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    hospitals = Federation(tmp_path / folder, {"site-1": {}})
    right = tmp_path.resolve() / "plain" if folder == "plain" else temporary
    assert hospitals.folder.is_relative_to(right) and " " not in str(hospitals.folder) and private_keys(right)
    hospitals._guard.send_signal(how)
    hospitals.close()
    hospitals.close()
    assert [*tmp_path.rglob("*")] == [tmp_path / "temporary"]
    course_error("This federation is closed", hospitals.start)


FORKED = """
import os, sys, time
from pathlib import Path
from deploy.federation import Federation
hospitals = Federation(Path(sys.argv[1]), {"site-1": {}})
if child := os.fork():
    print(child, flush=True)
time.sleep(600)
"""


@pytest.mark.faults
def test_no_key_is_left_after_a_kernel_whose_child_outlives_it(tmp_path):
    """A forked child holds what the guard listens to."""
    owner = subprocess.Popen([sys.executable, "-c", FORKED, str(tmp_path / "new")], stdout=subprocess.PIPE, text=True)
    child = psutil.Process(int(owner.stdout.readline()))
    assert private_keys(tmp_path)
    owner.kill()
    wait_until(lambda: not any(tmp_path.iterdir()))
    child.kill()  # it was alive
    owner.wait()


OWNER = """
import json, os, sys, time
from pathlib import Path
from deploy.federation import Federation
os.chdir(sys.argv[3])
with Federation(Path(sys.argv[1]), {"site-1": {}}) as hospitals:
    hospitals.start()
    print(json.dumps([str(hospitals.folder), hospitals.port]), flush=True)
    if sys.argv[2] == "error":
        raise RuntimeError("a cell failed")
    time.sleep(600)
"""
LONG = {"interrupted": signal.SIGINT, "terminated": signal.SIGTERM, "an error": "error"}
LONG_ONES = [pytest.param(how, id=name, marks=pytest.mark.long) for name, how in LONG.items()]


@pytest.mark.faults
@pytest.mark.parametrize("how", [pytest.param(signal.SIGKILL, id="killed"), *LONG_ONES])
def test_however_its_owner_ends_no_process_port_or_file_is_left(tmp_path, how):
    temporary = tmp_path / "temporary"
    (tmp_path / "deploy").mkdir()
    (tmp_path / "deploy" / "guard.py").touch()  # somebody else's, in the owner's current folder
    temporary.mkdir()
    program = [sys.executable, "-c", OWNER, str(tmp_path / "with a blank" / "federation"), str(how), str(tmp_path)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    owner = subprocess.Popen(program, env={**os.environ, "TMPDIR": str(temporary)}, start_new_session=True, **pipes)
    try:
        folder, port = json.loads(next(line for line in owner.stdout if line.startswith("[")))
        if how != "error":
            assert len(processes_below(folder)) >= 2
            socket.create_connection(("localhost", port), 5.0).close()
            owner.send_signal(how)
        owner.wait(60)
    finally:
        owner.kill()
        owner.wait()

    def left() -> list[list[str]]:
        commands = [process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])]
        return [words for words in commands if str(tmp_path) in " ".join(words)]

    wait_until(lambda: not (Path(folder).exists() or any(temporary.iterdir()) or left()))  # the guard itself ends last
    assert processes_below(folder, temporary, tmp_path) == []
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("localhost", port), 5.0)
    assert private_keys(tmp_path) == []
