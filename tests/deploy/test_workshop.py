"""A workshop, as ``docs/deploy.md`` describes it: five learners join with a kit in a folder of their own, by five addresses."""

import json
import shutil
import socket
from pathlib import Path

import pytest
import yaml

from deploy.federation import LEAD, SERVER, Federation, project
from src.federation.run import Run
from tests.runs_support import toy_recipe

LEARNERS = {f"site-{number}": f"127.0.0.{number + 1}" for number in range(1, 6)}
ROOT = Path(__file__).resolve().parents[2]


def loopback_has_more_than_one_address() -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.2", 0))
        except OSError:
            return False
    return True


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.long
@pytest.mark.skipif(not loopback_has_more_than_one_address(), reason="this system's loopback has one address")
def test_five_learners_join_from_folders_of_their_own_by_five_addresses(tmp_path):
    with Federation(tmp_path / "federation", {site: {} for site in LEARNERS}) as school:
        school.start(SERVER)
        for site, address in LEARNERS.items():
            # What a learner unpacks; below the federation's folder, so that it is cleared away with it.
            own = school.folder / "learners" / site
            shutil.move(school.kits[site], own)
            school.kits[site] = own
            file = own / "startup" / "fed_client.json"
            file.write_text(file.read_text().replace(f"localhost:{school.port}", f"{address}:{school.port}"))
            assert json.loads(file.read_text())["servers"][0]["service"]["target"] == f"{address}:{school.port}"
        school.start(*LEARNERS)
        run = Run(school.execute(toy_recipe(tmp_path, len(LEARNERS), 2), tmp_path / "results"))
    assert run.sites == sorted(LEARNERS)
    assert run.contributions["accepted"].all() and len(run.contributions) == 2 * len(LEARNERS)


def test_the_example_project_is_the_course_s_own():
    example = yaml.safe_load((ROOT / "deploy" / "project.yml").read_text())
    assert example == project(["site-1", "site-2", "site-3"], 8002, host="flare.example.org")
    assert LEAD in {one["name"] for one in example["participants"]}
    assert example["allow_log_streaming"] is False
