"""At a site MONAI comes without what a site does not use; in a notebook it comes whole."""

import os
import subprocess
import sys
from pathlib import Path

from tests.tests_support import rows

OPTIONAL = ("gdown", "ignite", "jsonschema", "matplotlib", "mlflow", "pandas", "sklearn", "tensorboard")
MONAI = """
import contextlib, importlib
for name in OPTIONAL:
    with contextlib.suppress(ImportError):
        importlib.import_module(name)
"""
PROGRAM = """
import sys
sys.orig_argv[:] = ["python", "-m", sys.argv[1]]
from src.federation.lean import monai
print(sorted({*OPTIONAL} & {*sys.modules}))
# What was hidden from MONAI is there for whoever asks later.
import gdown, ignite, jsonschema, matplotlib, mlflow, pandas, sklearn, tensorboard
"""


@rows(
    ("a simulated site", "nvflare.private.fed.app.simulator.simulator_worker", ["ignite"]),
    ("a site", "nvflare.private.fed.app.client.worker_process", ["ignite"]),
    ("the simulator", "nvflare.private.fed.app.simulator.simulator", []),
    ("a server", "nvflare.private.fed.app.server.runner_process", []),
    ("a notebook", "ipykernel_launcher", list(OPTIONAL)),
)
def test_what_a_process_of_flare_does_not_use_is_not_loaded(program, loaded, tmp_path):
    """In a process of its own, with a stand-in for MONAI that loads, as MONAI does, what is installed."""
    for name in OPTIONAL:
        (tmp_path / f"{name}.py").touch()
    (tmp_path / "monai.py").write_text(MONAI.replace("OPTIONAL", repr(OPTIONAL)))
    environment, here = {**os.environ, "PYTHONPATH": str(tmp_path)}, Path(__file__).parents[2]
    command = [sys.executable, "-c", PROGRAM.replace("OPTIONAL", repr(OPTIONAL)), program]
    done = subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == (str(loaded), "")
