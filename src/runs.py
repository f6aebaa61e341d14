"""Reads a finished run: curves, contributions, timings and checkpoints. Nothing here writes or trains."""

import json
import re
from functools import cached_property
from pathlib import Path

from src.errors import CourseError

RECORD_FILE = "course_record.jsonl"
REASON_HEADER = "course_reason"
"""Header of a site's failed answer: its own error in one line, for the server's record."""
MLFLOW_FILE = "mlflow.db"


class Run:
    """One run folder, as :func:`src.simulation.simulate` leaves it.

    Args:
        folder: the run folder.

    Raises:
        CourseError: if the folder holds no finished run.
    """

    def __init__(self, folder: Path | str):
        self.folder = Path(folder)
        try:
            self.about = json.loads((self.folder / "run.json").read_text())
        except (OSError, json.JSONDecodeError) as error:
            raise CourseError(
                f"{self.folder} is not a finished run: run.json is missing or unreadable ({error}). Run the job again."
            ) from error
        self.sites: list[str] = self.about["sites"]
        self.rounds: int = self.about["rounds"]
        self.workspace = self.folder / self.about["job"]
        self.server = self.workspace / "server" / "simulate_job"

    def __repr__(self):
        return f"Run({str(self.folder)!r}, {self.about['status']}, {self.about['seconds']:.0f} s)"

    @property
    def tensorboard_folder(self) -> Path:
        """Folder for ``tensorboard --logdir``: one subfolder a site, written by the server."""
        return self.server / "tb_events"

    @property
    def best_model(self) -> Path:
        """Checkpoint of the global model with the best validation metric."""
        return self._checkpoint("best_FL_global_model.pt")

    @property
    def final_model(self) -> Path:
        """Checkpoint of the global model after the last round."""
        return self._checkpoint("FL_global_model.pt")

    def _checkpoint(self, name: str) -> Path:
        path = self.server / "app_server" / name
        if not path.is_file():
            raise CourseError(f"The run in {self.folder} ({self.about['status']}) saved no {name}.")
        return path

    @staticmethod
    def weights(checkpoint: Path) -> dict:
        """The ``state_dict`` inside one of FLARE's checkpoints."""
        import torch

        return torch.load(checkpoint, map_location="cpu", weights_only=True)["model"]

    @cached_property
    def metrics(self):
        """Everything that the sites streamed, as a table with the columns ``site``, ``tag``, ``step`` and ``value``.

        Read from whichever tracker the run used, TensorBoard or MLflow.
        """
        import pandas as pd

        if self.tensorboard_folder.is_dir():
            rows = list(_tensorboard_rows(self.tensorboard_folder))
        else:
            rows = list(_mlflow_rows(self.folder / MLFLOW_FILE, self.sites))
        return pd.DataFrame(rows, columns=["site", "tag", "step", "value"])

    def curve(self, tag: str):
        """One streamed metric as a table: a row a step, a column a site.

        Raises:
            CourseError: if no site streamed that metric.
        """
        chosen = self.metrics[self.metrics.tag == tag]
        if chosen.empty:
            raise CourseError(f"No site streamed {tag!r}; there are {sorted(self.metrics.tag.unique())}.")
        return chosen.pivot_table(index="step", columns="site", values="value", aggfunc="last")

    @cached_property
    def record(self) -> list[dict]:
        """What the server noted, oldest first; see :class:`src.workflow.RunRecorder`."""
        return read_record(self.workspace)

    @cached_property
    def contributions(self):
        """Who took part: a row for each round and site with ``accepted`` and, where not, the ``reason``."""
        import pandas as pd

        answers = [entry for entry in self.record if entry["event"] == "answer" and entry["round"] < self.rounds]
        table = pd.DataFrame(answers, columns=["round", "site", "accepted", "reason"])
        missing = [
            {"round": number, "site": site, "accepted": False, "reason": "no answer"}
            for number in range(self.rounds)
            for site in self.sites
            if not ((table["round"] == number) & (table["site"] == site)).any()
        ]
        if missing:
            table = (
                pd.concat([table, pd.DataFrame(missing)], ignore_index=True) if len(table) else pd.DataFrame(missing)
            )
        return table.sort_values(["round", "site"], ignore_index=True)


def read_record(workspace: Path) -> list[dict]:
    """The lines of a workspace's ``course_record.jsonl``; empty as long as the server has not started."""
    file = Path(workspace) / "server" / "simulate_job" / RECORD_FILE
    if not file.is_file():
        return []
    # The last line may still be in the writing while the run goes on.
    lines = [line for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")]
    return [json.loads(line) for line in lines]


def _tensorboard_rows(folder: Path):
    from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

    for site in sorted(path for path in folder.iterdir() if path.is_dir()):
        events = EventAccumulator(str(site), size_guidance={SCALARS: 0})
        events.Reload()
        for tag in events.Tags()[SCALARS]:
            for event in events.Scalars(tag):
                yield site.name, tag, event.step, event.value


def _mlflow_rows(database: Path, sites: list[str]):
    from mlflow import MlflowClient

    if not database.is_file():
        raise CourseError(f"The run streamed no metrics: neither TensorBoard events nor {database} are there.")
    client = MlflowClient(tracking_uri=f"sqlite:///{database}")
    for run in client.search_runs([experiment.experiment_id for experiment in client.search_experiments()]):
        # FLARE names a run <site>-<job id>-…; the longest site that fits is the one ("site-1" against "site-11").
        site = max((name for name in sites if run.info.run_name.startswith(f"{name}-")), key=len)
        for tag in run.data.metrics:
            for metric in client.get_metric_history(run.info.run_id, tag):
                yield site, tag, metric.step, metric.value


def failure_report(run_folder: Path, workspace: Path, sites: list[str]) -> str:
    """Why a run failed, in one message: the round, and each failing site's own error with the line that raised it.

    Args:
        run_folder: holds ``console.log``, what the simulator printed.
        workspace: the simulator's workspace; each site and the server left an ``error_log.txt`` in theirs.
        sites: names of the sites.
    """
    causes = {site: cause for site in sites if (cause := _first_error(Path(workspace) / site))}
    if not causes:
        # The process itself was ended from outside, by the operating system short of memory for one.
        console = (Path(run_folder) / "console.log").read_text(errors="replace")
        died = re.findall(r"Subprocess died for client (\S+?),? .*?exit code: (\S+)", console)
        causes = {site: f"its process ended with exit code {code}; often a lack of memory" for site, code in died}
    if not causes and (cause := _first_error(Path(workspace) / "server")):
        causes = {"server": cause}
    started = [entry["round"] for entry in read_record(workspace) if entry["event"] == "round started"]
    where = f"in round {started[-1] + 1}" if started else "before the first round"
    what = "; ".join(f"{name}: {cause}" for name, cause in causes.items()) or "no process left an error message"
    return f"The run failed {where}. {what}. All logs are in {run_folder}."


def _first_error(folder: Path) -> str | None:
    """The exception that came first in a process's log: later ones only report it upwards."""
    file = folder / "error_log.txt"
    text = file.read_text(errors="replace") if file.is_file() else ""
    error = None
    for block in text.split("Traceback (most recent call last):\n")[1:]:
        # A traceback ends where the first line that is not indented stands: the exception and its message.
        if found := re.search(r"^[A-Za-z_][\w.]*(?:Error|Exception|Interrupt|Exit)\b.*$", block, re.MULTILINE):
            places = re.findall(r'File "(.+?)", line (\d+)', block[: found.start()])
            at = f" ({Path(places[-1][0]).name}, line {places[-1][1]})" if places else ""
            error = found[0].removeprefix("src.errors.").rstrip(".") + at
        # In a chain of exceptions the last one is what was said to the reader.
        if not re.search(r"^(The above exception was|During handling of the above)", block, re.MULTILINE):
            break
    if error is None and (found := re.search(r" - ERROR - (?:\[.*?\] - )?(.+)", text)):
        error = found[1].rstrip(".")
    # A site that was told to stop because another one failed is not a cause.
    return None if error and "request to abort the job" in error else error
