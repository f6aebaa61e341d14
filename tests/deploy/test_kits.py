"""What a project and its kits hold, and what their owners set: nothing here is started."""

import json
import re
import tempfile
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import yaml
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import RunProcessKey
from nvflare.app_opt.job_launcher.study_runtime import load_study_runtime_file
from nvflare.fuel.sec.authz import AuthzContext, Person
from nvflare.fuel.utils.network_utils import get_open_ports
from nvflare.lighter.utils import load_crt
from nvflare.security.security import FLAuthorizer
from nvflare.tool.deploy.deploy_commands import prepare_deployment

from deploy import processes, returning
from deploy.federation import Federation
from deploy.guard import clear_away
from deploy.kits import LEAD, ROOT_DAYS, SERVER, USERS, knock, project, provision, set_up_server, set_up_site
from src.common.datalists import PARTS
from tests.tests_support import course_error, names_in, rows

ROOT = Path(__file__).resolve().parents[2]
SITES, (PORT,) = ("north", "south"), get_open_ports(1)
ROLES, READS = ("project_admin", "org_admin", "lead", "member"), ("ls", "cat", "head", "tail", "grep", "pwd")


@pytest.fixture(scope="module")
def kits(tmp_path_factory):
    made = provision(tmp_path_factory.mktemp("provisioned"), project(SITES, PORT))
    set_up_server(made[SERVER])
    return made


def read(kit: Path, name: str) -> dict:
    return json.loads((kit / name).read_text())


def local(kit: Path, name: str) -> dict:
    return read(kit / "local", name)


def test_everybody_gets_a_kit_with_one_key_for_the_server_s_one_port(kits):
    assert set(kits) == {SERVER, *SITES, *USERS}
    assert {name: len(list(kit.rglob("*.key"))) for name, kit in kits.items()} == dict.fromkeys(kits, 1)
    assert read(kits[LEAD], "startup/fed_admin.json")["admin"]["port"] == PORT
    for site in SITES:
        assert local(kits[site], "resources.json.default")["allow_log_streaming"] is False
        (server,) = read(kits[site], "startup/fed_client.json")["servers"]
        assert server["service"]["target"] == f"localhost:{PORT}"
    assert knock(kits["north"]).startswith("no connection"), "nobody listens"
    example = yaml.safe_load((ROOT / "deploy" / "project.yml").read_text())
    assert example == project(["site-1", "site-2", "site-3"], 8002, host="flare.example.org")


def test_a_root_holds_for_years_and_a_certificate_is_renewed_by_taking_it_out_of_the_state(kits, tmp_path):
    def certificates(kits: dict[str, Path]) -> list:
        files = ("north/startup/rootCA.pem", "north/startup/client.crt", "south/startup/client.crt")
        return [load_crt(str(kits["north"].parent / file)) for file in files]

    about, state = project(SITES, 8002), tmp_path / "course" / "state" / "cert.json"
    root, north, south = first = certificates(provision(tmp_path, about))
    assert root != certificates(kits)[0], "two projects share no root"
    assert [(one.not_valid_after_utc - one.not_valid_before_utc).days for one in first] == [ROOT_DAYS, 360, 360]
    assert certificates(provision(tmp_path, about)) == first, "it is in the state"
    content = json.loads(state.read_text())
    del content["north"]
    state.write_text(json.dumps(content))
    same_root, new, same_south = certificates(provision(tmp_path, about))
    assert (same_root, same_south) == (root, south) and new.public_key() != north.public_key()


def test_a_server_keeps_its_jobs_to_itself_and_takes_sites_back(kits):
    for storage in ("elsewhere", "."):
        set_up_server(kits[SERVER], silence=42.0, storage=storage)
        found = local(kits[SERVER], "resources.json")
        (jobs,) = [one["args"]["uri_root"] for one in found["components"] if one["id"] == "job_manager"]
        snapshots = found["snapshot_persistor"]["args"]["storage"]["args"]["root_dir"]
        assert {Path(jobs).parent, Path(snapshots).parent} == {kits[SERVER] / storage}
        assert [one["path"] for one in found["components"]].count("deploy.returning.ReturningSites") == 1
        assert found["servers"][0]["heart_beat_timeout"] == 42.0


@pytest.mark.parametrize("brings_code", [True, False], ids=["code is allowed", "code is forbidden"])
def test_no_role_reads_a_site_s_files_and_none_brings_code_where_that_is_forbidden(kits, brings_code):
    def who_may(right: str, rules: dict) -> list[str]:
        """What FLARE makes of a site's rules, for users of the site's own organisation and for one whom a server invents."""
        people = {role: Person("somebody", "hospital_north", role) for role in (*ROLES, "super")}
        decide = FLAuthorizer("hospital_north", rules).authorize
        return [role for role, person in people.items() if decide(AuthzContext(right, person))[0]]

    set_up_site(kits["south"], ["src."], brings_code=not brings_code)  # a site may change its mind
    set_up_site(kits["south"], ["src."], brings_code=brings_code)
    classes = local(kits["south"], "resources.json.default")["class_allow_list"]
    assert local(kits["south"], "resources.json")["class_allow_list"] == [*classes, "src."]
    ours, default = (local(kits["south"], f"authorization.json{end}") for end in ("", ".default"))
    assert set(ours["permissions"]) == set(ROLES)
    assert who_may("cat", default) == ["project_admin", "org_admin", "lead", "super"]
    # FLARE 2.9 believes the server who a user is, and asks no rules for a role that only a server can claim. So no rules protect a
    # site whose server is taken over; its account must.
    assert [read for read in READS if who_may(read, ours) != ["super"]] == []
    assert who_may("byoc", ours) == (["project_admin", "lead", "super"] if brings_code else ["super"])
    for right in ("check_status", "list_jobs", "shutdown", "disable_client", "submit_job", "download_job"):
        assert who_may(right, ours) == who_may(right, default)


def test_the_commands_of_the_deployment_page_set_kits_up(tmp_path):
    """As they stand there, but for the folder."""
    made = provision(tmp_path, project(["site-1"], 8002))
    page = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
    commands = [code for code in re.findall(r'python -c "\n(.+?)"\n', page, re.DOTALL) if "set_up" in code]
    assert len(commands) == 2
    for code in commands:
        assert code.count("/srv/flare/") == 1
        exec(code.replace("/srv/flare", str(made[SERVER].parent)), {})
    resources = local(made[SERVER], "resources.json")
    assert resources["servers"][0]["heart_beat_timeout"] == 60
    assert str(made[SERVER] / "jobs-storage") in json.dumps(resources)
    for name in (SERVER, "site-1"):
        permissions = local(made[name], "authorization.json")["permissions"]
        assert {role["shell_commands"] for role in permissions.values()} == {"none"}
    example = re.search(r"```json\n(.+?)```", page, re.DOTALL)[1]
    assert set(json.loads(example)) == set(PARTS)


@rows(
    ("there already", "plain", "a", "is there already"),
    ("a blank here and in the temporary folder", "with a blank", "a", "set TMPDIR"),
    ("a site that cannot be", "new", "a b", "name of a site"),
)
def test_a_folder_that_flare_cannot_use_is_refused_and_not_made(folder, site, said, tmp_path, monkeypatch):
    (tmp_path / "plain").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "odd place"))
    course_error(said, Federation, tmp_path / folder, {site: {}})
    assert names_in(tmp_path) == ["plain"]


@rows(
    ("comes back in vain", None, "it stays away from this job: it does not answer"),
    ("its kit runs twice", "already registered", returning.TWICE),
)
def test_a_site_is_brought_back_some_times_and_a_twin_is_told_once(twin, last, monkeypatch, caplog):
    engine, heartbeat, client = Mock(), Mock(), SimpleNamespace(name="north", token="new")
    engine.notify_dead_job.side_effect = RuntimeError("it does not answer")
    engine.client_manager.get_client_from_name = {"north": client}.get
    engine.run_processes = {"j": {RunProcessKey.PARTICIPANTS: {"new" if twin else "old": client}}}
    heartbeat.get_engine.return_value, heartbeat.get_prop.return_value = engine, twin
    heartbeat.get_peer_context().get_identity_name.return_value = "north"
    monkeypatch.setattr(returning.threading.Thread, "start", lambda thread: thread.run())
    component = returning.ReturningSites()
    for _ in range(20):
        component.handle_event(EventType.CLIENT_HEARTBEAT_PROCESSED, heartbeat)
    tries, told = engine.notify_dead_job.call_count, engine.send_app_command.call_count
    assert (tries, told) == ((0, 1) if twin else (returning.MOST_TRIES, 0))
    assert len(caplog.messages) == tries + told and caplog.messages[-1].endswith(last)


def test_keys_go_even_where_a_process_does_not_end(tmp_path, monkeypatch):
    stuck = SimpleNamespace(pid=4711, terminate=lambda: None, kill=lambda: None)
    monkeypatch.setattr(processes, "processes_below", lambda *folders: [stuck])
    monkeypatch.setattr(processes.psutil, "wait_procs", lambda family, timeout: ([], family))
    monkeypatch.setattr(processes, "END_SECONDS", 0.01)
    (tmp_path / "kits").mkdir()
    course_error("End them by hand: kill -9 4711", clear_away, tmp_path / "kits")
    assert names_in(tmp_path) == []


# -- examples for containers and clusters: no Docker, Kubernetes or Slurm is here, FLARE's own command reads the files --------


def prepare(kit: Path, config: Path, output: Path) -> None:
    """``nvflare deploy prepare <kit> --config <config> --output <output>``; ends in SystemExit where FLARE refuses."""
    prepare_deployment(SimpleNamespace(kit=str(kit), config=str(config), output=str(output)))


@pytest.mark.parametrize("name", [SERVER, "north"])
@pytest.mark.parametrize("runtime", ["docker", "k8s", "slurm"])
def test_flare_prepares_a_kit_with_each_example_and_it_is_set_up_after_that(kits, tmp_path, capfd, runtime, name):
    example, made = ROOT / "deploy" / f"{runtime}.yaml", tmp_path / "prepared"
    prepare(kits[name], example, made)
    config = yaml.safe_load(example.read_text())
    default, line = local(made, "resources.json.default"), local(made, "comm_config.json")
    (launcher,) = [one["args"] for one in default["components"] if one["id"] == f"{runtime}_launcher"]
    assert launcher["default_python_path" if runtime != "slurm" else "python_path"].startswith("/")
    assert line["internal"]["resources"]["connection_security"] == "mtls"
    if runtime == "docker":
        script = (made / "startup" / "start_docker.sh").read_text()
        assert config["parent"]["docker_image"] in script
        assert (f"-p {PORT}:{PORT}" in script) == (name == SERVER), "sites dial out and open no port"
        assert launcher["default_job_container_kwargs"]["cap_drop"] == ["ALL"]
    elif runtime == "k8s":
        values = yaml.safe_load((made / "helm_chart" / "values.yaml").read_text())
        assert values["securityContext"]["runAsNonRoot"] is True
        assert launcher["security_context"]["runAsUser"] == 10001 and launcher["namespace"] == config["namespace"]
    else:
        assert launcher["sbatch_directives"] == config["job_launcher"]["sbatch_directives"]
        assert (made / "startup" / "start_slurm.sh").is_file()

    assert not (made / "local" / "resources.json").exists()
    if name == SERVER:
        set_up_server(made, silence=60, storage=None)
    set_up_site(made, ["src."], brings_code=False)
    found = local(made, "resources.json")
    components = [one for one in found["components"] if one["id"] != "returning_sites"]
    assert components == default["components"], "launcher and folders as FLARE has prepared them"
    assert found["class_allow_list"][-1] == "src."
    if name == SERVER:
        assert found["servers"][0]["heart_beat_timeout"] == 60
        assert found["snapshot_persistor"] == default["snapshot_persistor"]
        here = kits[name] if runtime == "slurm" else tmp_path
        assert str(here) not in json.dumps(found), "a path of this machine is none in the container"

    config["job_launcher"]["no_such_word"] = 1  # so that "FLARE takes it" says something
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(SystemExit):
        prepare(kits[name], tmp_path / "config.yaml", tmp_path / "refused")
    assert "no_such_word" in "".join(capfd.readouterr())


def test_what_a_study_gets_at_a_site_and_at_the_server_is_read_by_flare(tmp_path):
    study = ROOT / "deploy" / "study_runtime.yaml"
    for mode in ("docker", "k8s"):
        text = str(load_study_runtime_file(str(study), mode))
        assert "/srv/course/sites" in text and "COURSE_DATA" in text
    # FLARE mounts a dataset at /data/<study>/<dataset>; nothing else says where the data are.
    example = yaml.safe_load(study.read_text())
    about = example["studies"]["default"]
    assert about.pop("env") == {"COURSE_DATA": "/data/default"} and set(about.pop("datasets")) == {"sites"}
    assert "COURSE_DATA" not in re.sub(r"#.*", "", (ROOT / "deploy" / "docker.yaml").read_text())
    # At the server, as docs/deploy.md has it: the same file without datasets and env.
    (tmp_path / "study_runtime.yaml").write_text(yaml.safe_dump(example))
    assert "course-flare:1.0.0" in str(load_study_runtime_file(str(tmp_path / "study_runtime.yaml"), "docker"))


def test_the_image_has_pinned_versions_no_root_no_kit_and_all_that_a_server_s_resources_name():
    instructions = re.sub(r"^\s*#.*$", "", (ROOT / "deploy" / "Dockerfile").read_text(), flags=re.MULTILINE)
    assert re.search(r"^FROM python:\d+\.\d+\.\d+-", instructions, re.MULTILINE)
    assert "-c constraints.txt" in instructions
    assert f"\nnvflare=={metadata.version('nvflare')}\n" in (ROOT / "constraints.txt").read_text()
    assert all("==" in package for package in re.findall(r'"(kubernetes[^"]*)"', instructions))
    users = re.findall(r"^USER (\S+)", instructions, re.MULTILINE)
    assert users and users[-1] not in ("root", "0")
    copied = re.findall(r"^COPY (.+)$", instructions, re.MULTILINE)
    assert [one for one in copied if re.search(r"kit|startup|data|\.key|\s\.\s|^\. ", one)] == []
    sources = {word for line in copied for word in line.split()[:-1]}
    assert {"src", "deploy"} <= sources and all((ROOT / source).exists() for source in sources)
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert {"workspace", "**/*.key", "**/cert.json", "data", ".git"} <= set(ignored)
