"""At a site MONAI comes without what a site does not use; in a notebook it comes whole."""

import os
import subprocess
import sys
from pathlib import Path

from tests.tests_support import rows

OPTIONAL = ("ignite", "matplotlib", "mlflow", "pandas")
MONAI = """
import contextlib, importlib
for name in ("ignite", "matplotlib", "mlflow", "pandas"):
    with contextlib.suppress(ImportError):
        importlib.import_module(name)
"""
PROGRAM = """
import sys
sys.orig_argv[:] = ["python", "-m", sys.argv[1]]
from src.federation.lean import monai
print(sorted({"ignite", "matplotlib", "mlflow", "pandas"} & set(sys.modules)))
import ignite, matplotlib, mlflow, pandas  # what was hidden from MONAI is there for whoever asks later
"""


@rows(
    ("a simulated site", "nvflare.private.fed.app.simulator.simulator_worker", ["ignite"]),
    ("a site", "nvflare.private.fed.app.client.worker_process", ["ignite"]),
    ("the simulator", "src.federation.simulated", []),
    ("a server", "nvflare.private.fed.app.server.runner_process", []),
    ("a notebook", "ipykernel_launcher", list(OPTIONAL)),
)
def test_what_a_process_of_flare_does_not_use_is_not_loaded(program, loaded, tmp_path):
    """In a process of its own, with a stand-in for MONAI that loads, as MONAI does, what is installed."""
    for name in OPTIONAL:
        (tmp_path / f"{name}.py").touch()
    (tmp_path / "monai.py").write_text(MONAI)
    environment, here = {**os.environ, "PYTHONPATH": str(tmp_path)}, Path(__file__).parents[2]
    command = [sys.executable, "-c", PROGRAM, program]
    done = subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == (str(loaded), "")
