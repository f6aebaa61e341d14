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

from deploy.kits import SERVER, project, provision, set_up_server, set_up_site

ROOT = Path(__file__).resolve().parents[2]
SITE = "site-1"


@pytest.fixture(scope="module")
def kits(tmp_path_factory):
    made = provision(tmp_path_factory.mktemp("kits"), project([SITE], 8002, host="flare.example.org"))
    set_up_server(
        made[SERVER]
    )  # FLARE's command removes what a kit's owner has written, and moves the server's folders
    return made


def prepare(kit: Path, config: Path, output: Path) -> None:
    """``nvflare deploy prepare <kit> --config <config> --output <output>``; ends in SystemExit where FLARE refuses."""
    prepare_deployment(SimpleNamespace(kit=str(kit), config=str(config), output=str(output)))


@pytest.mark.parametrize("name", [SERVER, SITE])
@pytest.mark.parametrize("runtime", ["docker", "k8s", "slurm"])
def test_flare_prepares_a_kit_with_each_example_and_it_is_set_up_after_that(kits, tmp_path, capfd, runtime, name):
    example, made = ROOT / "deploy" / f"{runtime}.yaml", tmp_path / "prepared"
    prepare(kits[name], example, made)
    config = yaml.safe_load(example.read_text())
    default = json.loads((made / "local" / "resources.json.default").read_text())
    (launcher,) = [one["args"] for one in default["components"] if one["id"] == f"{runtime}_launcher"]
    assert launcher["default_python_path" if runtime != "slurm" else "python_path"].startswith("/")
    internal = json.loads((made / "local" / "comm_config.json").read_text())["internal"]
    assert internal["resources"]["connection_security"] == "mtls"
    if runtime == "docker":
        script = (made / "startup" / "start_docker.sh").read_text()
        assert config["parent"]["docker_image"] in script
        assert ("-p 8002:8002" in script) == (name == SERVER), "sites dial out and open no port"
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
    found = json.loads((made / "local" / "resources.json").read_text())
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
