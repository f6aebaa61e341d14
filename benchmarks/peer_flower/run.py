"""Runs a study of the course with Flower, in an environment of its own, ``build/flower``: it wants other versions of packages."""

import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import venv
from pathlib import Path

import torch

from benchmarks.limits import limited

ROOT = Path(__file__).parents[2]
FLOWER = "flwr[simulation]==1.42.*"
INSTALL_SECONDS, RUN_SECONDS = 1800, 3600


def environment(folder: Path) -> Path | None:
    """Flower's Python, made once; it finds PyTorch and MONAI where this one does. None, with a sentence, if that fails."""
    python = folder / "bin" / "python"
    if python.exists():
        with limited("Flower's import", INSTALL_SECONDS) as seconds:
            look = [python, "-c", "import flwr.simulation, ray"]
            if subprocess.run(look, capture_output=True, timeout=seconds).returncode == 0:
                return python
    venv.create(folder, clear=True, with_pip=True)
    (packages,) = folder.glob("lib/*/site-packages")
    (packages / "course.pth").write_text(sysconfig.get_path("purelib") + "\n")
    command = [python, "-m", "pip", "--disable-pip-version-check", "install", "-q", FLOWER]
    with limited(FLOWER, INSTALL_SECONDS) as seconds:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["pip says nothing"])[-1]
        print(f"Flower is left out, for it cannot be installed here: {last}", file=sys.stderr)
        return None
    return python


def flower_seconds(task: str, folder: Path = ROOT / "build" / "flower") -> tuple[float, dict] | None:
    """Seconds that Flower's simulation takes for the study of a task, and the last weights; None where there is no Flower."""
    if not (python := environment(folder)):
        return None
    with tempfile.TemporaryDirectory() as place, limited("Flower's simulation", RUN_SECONDS) as seconds:
        kept = Path(place) / "weights.pt"
        own = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "FLWR_HOME": place, "RAY_USAGE_STATS_ENABLED": "0"}
        how = {"cwd": ROOT, "env": {**os.environ, **own}, "capture_output": True, "text": True, "check": True}
        done = subprocess.run([python, "-m", "benchmarks.peer_flower.app", task, str(kept)], timeout=seconds, **how)
        said = json.loads(done.stdout.strip().splitlines()[-1])
        return said["seconds"], torch.load(kept, weights_only=True)
