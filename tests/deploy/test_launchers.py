"""The example configurations in ``deploy/`` are what FLARE 2.9 itself accepts: its own command prepares kits with them.

There is no Docker daemon, no Kubernetes and no Slurm here: what is tested is that FLARE takes the files, and what it makes of them.
"""

import json
import re
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from nvflare.app_opt.job_launcher.study_runtime import load_study_runtime_file
from nvflare.tool.deploy.deploy_commands import prepare_deployment

from deploy.federation import SERVER, project, provision, set_up_server, set_up_site

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
SITE = "site-1"
RUNTIMES = ("docker", "k8s", "slurm")


@pytest.fixture(scope="module")
def kits(tmp_path_factory):
    return provision(tmp_path_factory.mktemp("kits"), project([SITE], 8002, host="flare.example.org"))


def prepare(kit: Path, config: Path, output: Path) -> None:
    """``nvflare deploy prepare <kit> --config <config> --output <output>``; ends in SystemExit where FLARE refuses."""
    prepare_deployment(SimpleNamespace(kit=str(kit), config=str(config), output=str(output)))


@pytest.mark.parametrize("name", [SERVER, SITE])
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_flare_prepares_a_kit_with_each_example(kits, tmp_path, runtime, name):
    prepare(kits[name], DEPLOY / f"{runtime}.yaml", tmp_path / "prepared")
    resources = json.loads((tmp_path / "prepared" / "local" / "resources.json.default").read_text())
    (launcher,) = [one for one in resources["components"] if one["id"] == f"{runtime}_launcher"]
    config = yaml.safe_load((DEPLOY / f"{runtime}.yaml").read_text())
    assert launcher["args"]["default_python_path" if runtime != "slurm" else "python_path"].startswith("/")
    internal = json.loads((tmp_path / "prepared" / "local" / "comm_config.json").read_text())["internal"]
    assert internal["resources"]["connection_security"] == "mtls"
    if runtime == "docker":
        script = (tmp_path / "prepared" / "startup" / "start_docker.sh").read_text()
        assert config["parent"]["docker_image"] in script
        assert ("-p 8002:8002" in script) == (name == SERVER), "sites dial out and open no port"
        assert launcher["args"]["default_job_container_kwargs"]["cap_drop"] == ["ALL"]
    elif runtime == "k8s":
        values = yaml.safe_load((tmp_path / "prepared" / "helm_chart" / "values.yaml").read_text())
        assert values["securityContext"]["runAsNonRoot"] is True
        assert launcher["args"]["security_context"]["runAsUser"] == 10001
        assert launcher["args"]["namespace"] == config["namespace"]
    else:
        assert launcher["args"]["sbatch_directives"] == config["job_launcher"]["sbatch_directives"]
        assert (tmp_path / "prepared" / "startup" / "start_slurm.sh").is_file()


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_prepared_kit_is_set_up_after_it_is_prepared(kits, tmp_path, runtime):
    """FLARE's command removes ``local/resources.json``, in which a kit's owner has written, and has moved the server's folders."""
    prepared = {name: tmp_path / name for name in (SERVER, SITE)}
    set_up_server(kits[SERVER])
    for name, output in prepared.items():
        prepare(kits[name], DEPLOY / f"{runtime}.yaml", output)
        assert not (output / "local" / "resources.json").exists()
    set_up_server(prepared[SERVER], silence=60, storage=None)
    for output in prepared.values():
        set_up_site(output, ["src."], brings_code=False)
    for name, output in prepared.items():
        default = json.loads((output / "local" / "resources.json.default").read_text())
        found = json.loads((output / "local" / "resources.json").read_text())
        components = [one for one in found["components"] if one["id"] != "returning_sites"]
        assert components == default["components"], "launcher and folders as FLARE has prepared them"
        assert found["class_allow_list"][-1] == "src."
        if name == SERVER:
            assert found["servers"][0]["heart_beat_timeout"] == 60
            assert found["snapshot_persistor"] == default["snapshot_persistor"]
            assert str(kits[SERVER]) not in json.dumps(found), "a path of this machine is none in the container"
            if runtime != "slurm":
                assert str(tmp_path) not in json.dumps(found)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_flare_refuses_an_example_with_a_word_that_it_does_not_know(kits, tmp_path, capfd, runtime):
    """So that the test above says something."""
    config = yaml.safe_load((DEPLOY / f"{runtime}.yaml").read_text())
    config["job_launcher"]["no_such_word"] = 1
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(SystemExit):
        prepare(kits[SITE], tmp_path / "config.yaml", tmp_path / "prepared")
    assert "no_such_word" in "".join(capfd.readouterr())


@pytest.mark.parametrize("mode", ["docker", "k8s"])
def test_what_a_study_gets_at_a_site_is_read_by_flare(mode):
    study = load_study_runtime_file(str(DEPLOY / "study_runtime.yaml"), mode)
    text = str(study)
    assert "/srv/course/sites" in text and "COURSE_DATA" in text
    # FLARE mounts a dataset at /data/<study>/<dataset>; nothing else says where the data are.
    example = yaml.safe_load((DEPLOY / "study_runtime.yaml").read_text())["studies"]["default"]
    assert example["env"] == {"COURSE_DATA": "/data/default"} and set(example["datasets"]) == {"sites"}
    assert "COURSE_DATA" not in re.sub(r"#.*", "", (DEPLOY / "docker.yaml").read_text())


def test_a_server_s_study_has_an_image_and_no_data(tmp_path):
    """As docs/deploy.md has it: the same file without datasets and env."""
    study = yaml.safe_load((DEPLOY / "study_runtime.yaml").read_text())
    for name in ("datasets", "env"):
        del study["studies"]["default"][name]
    (tmp_path / "study_runtime.yaml").write_text(yaml.safe_dump(study))
    assert "course-flare:1.0.0" in str(load_study_runtime_file(str(tmp_path / "study_runtime.yaml"), "docker"))


def test_no_key_gets_into_the_image_s_context():
    ignored = (DEPLOY.parent / ".dockerignore").read_text().splitlines()
    assert {"workspace", "**/*.key", "**/cert.json", "data", ".git"} <= set(ignored)


def test_the_image_has_pinned_versions_no_root_and_no_kit():
    text = (DEPLOY / "Dockerfile").read_text()
    instructions = re.sub(r"^\s*#.*$", "", text, flags=re.MULTILINE)
    assert re.search(r"^FROM python:\d+\.\d+\.\d+-", instructions, re.MULTILINE)
    assert "-c constraints.txt" in instructions
    pins = (DEPLOY.parent / "constraints.txt").read_text()
    assert f"\nnvflare=={metadata.version('nvflare')}\n" in pins
    assert all("==" in package for package in re.findall(r'"(kubernetes[^"]*)"', instructions))
    users = re.findall(r"^USER (\S+)", instructions, re.MULTILINE)
    assert users and users[-1] not in ("root", "0")
    copied = re.findall(r"^COPY (.+)$", instructions, re.MULTILINE)
    assert [one for one in copied if re.search(r"kit|startup|data|\.key|\s\.\s|^\. ", one)] == []
    for source in {word for line in copied for word in line.split()[:-1]}:
        assert (DEPLOY.parent / source).exists(), source
