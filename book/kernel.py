"""Run one notebook in a kernel of its own, of which nothing is left afterwards: neither processes nor live outputs."""

import atexit
import contextlib
import os
import re
import sys
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import psutil
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpecManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from nbformat import NotebookNode

_MARK = "COURSE_NOTEBOOK_PROCESS"  # environment variable by which all that a notebook started can be found again


def execute(notebook: NotebookNode, folder: Path, tick: Callable[[int], None]) -> str:
    """Run a notebook in ``folder`` and this very Python; its outputs are put in place, up to a cell that fails.

    ``tick`` is called every second with the number of the code cell that is running. Returns what went wrong, if anything: where
    and what in the first line, then the traceback.
    """
    started = []
    client = NotebookClient(
        notebook,
        # Whatever kernel the notebook names and whichever are installed: none is looked for, so this Python's is taken.
        km=AsyncKernelManager(kernel_spec_manager=KernelSpecManager(kernel_dirs=[])),
        # What a cell raises comes back with its reply; the kernel's own log says only that it is being stopped.
        extra_arguments=["--log-level=CRITICAL"],
        startup_timeout=180,
        resources={"metadata": {"path": str(folder)}},
        on_cell_execute=lambda cell, cell_index: started.append(cell_index),
    )
    mark = uuid.uuid4().hex
    # Notebooks call `tensorboard` and FLARE `python3` by name: only an activated environment has them on PATH.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    with ThreadPoolExecutor(max_workers=1) as thread:  # of its own, so that an interruption reaches this one at once
        done = thread.submit(client.execute, cleanup_kc=True, env={**os.environ, "PATH": path, _MARK: mark})
        try:
            while not wait([done], timeout=1).done:
                tick(len(started))
        finally:
            _end_processes(mark)
            while not wait([done], timeout=1).done:  # interrupted while its kernel was being started
                _end_processes(mark)
            atexit.unregister(client._cleanup_kernel)  # nbclient forgets this when a kernel does not come up
    _still(notebook, client.widget_state)
    error, place = done.exception(), f"code cell {len(started)} of {count_cells(notebook)}"
    if error is None:
        return ""
    if isinstance(error, CellExecutionError):
        what = f"{error.ename}: {error.evalue}".strip().splitlines()[0]
        return f"{place}: {what}\n" + re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip()
    if isinstance(error, DeadKernelError):
        return f"{place}: The kernel died: often a lack of memory."
    if isinstance(error, RuntimeError) and not started:
        return f"The kernel did not start: {error}"
    raise error


def count_cells(notebook: NotebookNode) -> int:
    """The number of code cells that will be run."""
    return sum(cell.cell_type == "code" and bool(cell.source.strip()) for cell in notebook.cells)


def _end_processes(mark: str) -> None:
    """End what a kernel left running, TensorBoard or the sites of a cut-off run: first asked to, then made to.

    A process group would not do: FLARE starts its sites in sessions of their own.
    """
    for stop in (psutil.Process.terminate, psutil.Process.kill, psutil.Process.kill):
        left = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):  # it has just ended, or is not ours
                if process.status() != psutil.STATUS_ZOMBIE and process.environ().get(_MARK) == mark:
                    left.append(process)
                    stop(process)
        psutil.wait_procs(left, timeout=2)


def _still(notebook: NotebookNode, widgets: dict[str, dict]) -> None:
    """Replace what lives only with its kernel: progress bars as they last stood, a word in TensorBoard's place."""

    def html(model: str) -> str:
        state = widgets.get(model.removeprefix("IPY_MODEL_"), {})
        if state.get("_model_name") == "FloatProgressModel":  # of tqdm, which counts from 0
            return f'<progress max="{state.get("max", 1)}" value="{state.get("value", 0)}"></progress>'
        return f"<span>{state['value']}</span>" if "value" in state else "".join(map(html, state.get("children", ())))

    notebook.metadata.pop("widgets", None)
    for output in (output for cell in notebook.cells for output in cell.get("outputs", ())):
        data = output.get("data", {})
        if "tensorboard-frame" in data.get("text/html", ""):
            text = "TensorBoard is shown here while the notebook runs."
            output["data"] = {"text/html": f"<em>{text}</em>", "text/plain": text}
        elif widget := data.pop("application/vnd.jupyter.widget-view+json", None):
            data["text/html"] = f'<div class="course-bar">{html(widget["model_id"])}</div>'
