"""What a project and its kits hold, and what their owners set: nothing here is started."""

import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from nvflare.app_common.default_component_policy import DEFAULT_CLASS_ALLOW_LIST
from nvflare.fuel.sec.authz import AuthzContext, Person
from nvflare.lighter.utils import load_crt
from nvflare.security.security import FLAuthorizer

from deploy import federation as deploy
from deploy.federation import (
    LEAD,
    REVIEWED,
    ROOT_DAYS,
    SERVER,
    USERS,
    knock,
    project,
    provision,
    set_up_server,
    set_up_site,
)
from src.common.datalists import PARTS
from src.common.errors import CourseError
from src.federation.processes import end_processes_below, processes_below
from src.federation.server import use_installed_code
from src.prostate.recipe import learner_recipe

SITES = ("north", "south")


@pytest.fixture(scope="module")
def kits(tmp_path_factory):
    return provision(tmp_path_factory.mktemp("provisioned"), project(SITES, deploy.free_port()))


def resources(kit: Path) -> dict:
    return json.loads((kit / "local" / "resources.json").read_text())


def rules(kit: Path) -> dict:
    return json.loads((kit / "local" / "authorization.json").read_text())


def test_everybody_gets_a_kit_with_one_key_and_sites_stream_no_logs(kits):
    assert set(kits) == {SERVER, *SITES, *USERS}
    for name, kit in kits.items():
        assert len(list(kit.rglob("*.key"))) == 1, name
        assert (kit / "startup" / "rootCA.pem").is_file()
    for site in SITES:
        default = json.loads((kits[site] / "local" / "resources.json.default").read_text())
        assert default["allow_log_streaming"] is False


def test_two_projects_share_no_key(kits, tmp_path):
    others = provision(tmp_path, project(SITES, 8002))
    roots = {(found[SERVER] / "startup" / "rootCA.pem").read_bytes() for found in (kits, others)}
    assert len(roots) == 2


def test_a_root_holds_for_years_and_a_certificate_is_renewed_by_taking_it_out_of_the_state(tmp_path):
    about = project(SITES, 8002)

    def certificate(kit: Path):
        return load_crt(str(kit / "startup" / "client.crt"))

    def days(found) -> int:
        return (found.not_valid_after_utc - found.not_valid_before_utc).days

    first = provision(tmp_path, about)
    root = load_crt(str(first["north"] / "startup" / "rootCA.pem"))
    assert (days(root), days(certificate(first["north"]))) == (ROOT_DAYS, 360)
    # Provisioning again takes what the state holds.
    again = provision(tmp_path, about)
    assert certificate(again["north"]) == certificate(first["north"])

    state = tmp_path / "course" / "state" / "cert.json"
    content = json.loads(state.read_text())
    del content["north"]
    state.write_text(json.dumps(content))
    new = provision(tmp_path, about)
    assert certificate(new["north"]).serial_number != certificate(first["north"]).serial_number
    assert certificate(new["north"]).public_key() != certificate(first["north"]).public_key()
    assert certificate(new["south"]) == certificate(first["south"])
    assert load_crt(str(new["north"] / "startup" / "rootCA.pem")) == root


@pytest.mark.parametrize("sites", [[], ["a b"], ["server"], ["a", "a"]])
def test_sites_that_cannot_be_are_refused(sites):
    with pytest.raises(CourseError):
        project(sites, 8002)


def test_a_server_keeps_its_jobs_to_itself_and_takes_sites_back(kits):
    kit = kits[SERVER]
    set_up_server(kit, silence=42.0)
    found = resources(kit)
    assert found["servers"][0]["heart_beat_timeout"] == 42.0
    (jobs,) = [one["args"]["uri_root"] for one in found["components"] if one["id"] == "job_manager"]
    snapshots = found["snapshot_persistor"]["args"]["storage"]["args"]["root_dir"]
    assert {Path(jobs).parent, Path(snapshots).parent} == {kit}
    set_up_server(kit, storage="elsewhere")
    (jobs,) = [one["args"]["uri_root"] for one in resources(kit)["components"] if one["id"] == "job_manager"]
    assert Path(jobs).parent == kit / "elsewhere"
    paths = [one["path"] for one in found["components"]]
    assert paths.count("deploy.returning.ReturningSites") == 1


def test_a_site_writes_down_what_jobs_may_do_and_may_change_its_mind(kits):
    kit = kits["north"]
    default = json.loads((kit / "local" / "resources.json.default").read_text())["class_allow_list"]
    set_up_site(kit, ["src."], brings_code=False)
    permissions = rules(kit)["permissions"]
    assert set(permissions) == {"project_admin", "org_admin", "lead", "member"}
    assert [role["byoc"] for role in permissions.values()] == ["none"] * 4
    assert permissions["lead"]["submit_job"] == "any"
    assert {right for right, whom in permissions["project_admin"].items() if whom == "any"} == {
        *("view", "operate", "manage_job", "submit_job", "clone_job", "download_job")
    }
    assert resources(kit)["class_allow_list"] == [*default, "src."]
    set_up_site(kit, ["src."])
    byoc = {role: rights.get("byoc") for role, rights in rules(kit)["permissions"].items()}
    assert byoc == {"project_admin": "any", "org_admin": "none", "lead": "any", "member": None}
    assert resources(kit)["class_allow_list"] == [*default, "src."]


def allows(rules: dict, role: str, right: str) -> bool:
    """What FLARE makes of a site's rules, for a user of the site's own organisation."""
    context = AuthzContext(right, Person("somebody", "hospital_north", role))
    return FLAuthorizer("hospital_north", rules).authorize(context)[0]


@pytest.mark.parametrize("brings_code", [True, False])
def test_no_role_reads_a_site_s_files_and_none_brings_code_where_that_is_forbidden(kits, brings_code):
    set_up_site(kits["south"], brings_code=brings_code)
    ours = rules(kits["south"])
    default = json.loads((kits["south"] / "local" / "authorization.json.default").read_text())
    roles, reads = ("project_admin", "org_admin", "lead", "member"), ("ls", "cat", "head", "tail", "grep", "pwd")
    assert [role for role in roles if allows(default, role, "cat")] == ["project_admin", "org_admin", "lead"]
    assert [(role, read) for role in roles for read in reads if allows(ours, role, read)] == []
    assert [role for role in roles if allows(ours, role, "byoc")] == (["project_admin", "lead"] if brings_code else [])
    # The rest is as it was.
    for role in roles:
        for right in ("check_status", "list_jobs", "shutdown", "disable_client", "submit_job", "download_job"):
            assert allows(ours, role, right) == allows(default, role, right), (role, right)


def test_flare_asks_no_rules_for_a_role_that_only_a_server_can_claim(kits):
    """FLARE 2.9 believes the server who a user is. So no rules protect a site whose server is taken over; its account must."""
    set_up_site(kits["south"], brings_code=False)
    assert allows(rules(kits["south"]), "super", "byoc") and allows(rules(kits["south"]), "super", "cat")


def test_the_commands_of_the_deployment_page_set_kits_up(tmp_path):
    """As they stand there, but for the folder."""
    made = provision(tmp_path, project(["site-1"], 8002))
    page = (Path(deploy.__file__).resolve().parents[2] / "docs" / "deploy.md").read_text(encoding="utf-8")
    commands = [code for code in re.findall(r'python -c "\n(.+?)"\n', page, re.DOTALL) if "set_up" in code]
    assert len(commands) == 2
    for code in commands:
        assert code.count("/srv/flare/") == 1
        exec(code.replace("/srv/flare", str(made[SERVER].parent)), {})
    assert resources(made[SERVER])["servers"][0]["heart_beat_timeout"] == 60
    assert str(made[SERVER] / "jobs-storage") in json.dumps(resources(made[SERVER]))
    for name in (SERVER, "site-1"):
        assert {role["shell_commands"] for role in rules(made[name])["permissions"].values()} == {"none"}
    example = re.search(r"```json\n(.+?)```", page, re.DOTALL)[1]
    assert set(json.loads(example)) == set(PARTS)


def test_who_knocks_where_nobody_listens_is_told_so(kits):
    assert knock(kits["north"]).startswith("no connection")


@pytest.mark.parametrize(
    ("duration", "seconds"), [("0:01:02.5", 62.5), ("1:00:00", 3600.0), ("0:00:00.25", 0.25), ("N/A", 0.0)]
)
def test_flare_s_durations_are_read(duration, seconds):
    assert deploy._seconds(duration) == seconds


def test_a_path_that_flare_cannot_use_gets_a_plain_one_instead(tmp_path, monkeypatch):
    assert deploy._plain_folder(tmp_path / "plain") == (tmp_path / "plain").resolve()
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    instead = deploy._plain_folder(tmp_path / "with a blank")
    assert instead.parent == tmp_path / "temporary" and not (tmp_path / "with a blank").exists()
    with pytest.raises(CourseError, match="is there already"):
        deploy._plain_folder(tmp_path / "plain")
    (tmp_path / "odd place").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "odd place"))
    with pytest.raises(CourseError, match="Set TMPDIR"):
        deploy._plain_folder(tmp_path / "with a blank")


def test_only_flare_s_processes_of_this_folder_end(tmp_path):
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(60)"
    words = (
        ["nvflare.x", str(tmp_path / "kit")],
        ["nvflare.x", f"{tmp_path}-other"],
        ["tensorboard", str(tmp_path)],
    )
    started = [subprocess.Popen([sys.executable, "-c", code, *one], stdout=subprocess.PIPE) for one in words]
    try:
        for process in started:
            process.stdout.readline()
        assert [one.pid for one in processes_below(tmp_path)] == [started[0].pid]
        end_processes_below(tmp_path, patience=0.2)
        deadline = time.monotonic() + 10
        while started[0].poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        assert [process.poll() is None for process in started] == [False, True, True]
    finally:
        for process in started:
            process.kill()
            process.wait()


def test_what_the_learner_s_job_names_is_on_the_reviewed_list(tmp_path):
    """Without code in the job, server and sites build only what their lists name."""

    def classes(part: object) -> set[str]:
        found = {part["path"]} if isinstance(part, dict) and isinstance(part.get("path"), str) else set()
        inner = part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
        return found.union(*map(classes, inner))

    recipe = learner_recipe(tmp_path, len(SITES))
    use_installed_code(recipe)
    recipe.export(str(tmp_path / "job"))
    named = set().union(
        *(classes(json.loads(file.read_text())) for file in (tmp_path / "job").rglob("config_fed_*.json"))
    )
    whole = {*DEFAULT_CLASS_ALLOW_LIST, *REVIEWED}
    packages = tuple(one for one in whole if one.endswith("."))
    assert {"src.unet.UNet", "src.federation.server.RunRecorder"} <= named
    assert {name for name in named - whole if not name.startswith(packages)} == set()
    assert not list((tmp_path / "job").rglob("custom")), "that would be code, which a site may forbid"
    assert list((tmp_path / "job").rglob("config_train.json"))


def test_a_lead_s_kit_names_the_server_s_one_port(kits):
    admin = json.loads((kits[LEAD] / "startup" / "fed_admin.json").read_text())["admin"]
    target = json.loads((kits["north"] / "startup" / "fed_client.json").read_text())["servers"][0]["service"]["target"]
    assert target == f"localhost:{admin['port']}"
