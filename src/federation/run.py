"""Reads a run, simulated or real: who took part, curves, timings and checkpoints. Nothing here writes or trains."""

import json
import re
from functools import cached_property
from math import inf
from pathlib import Path

from src.common.errors import CourseError
from src.common.files import read_json
from src.federation.server import RECORD

RUN = "run.json"
RESULTS = "cross_val_results.json"
FINAL, BEST = "FL_global_model.pt", "best_FL_global_model.pt"


class Run:
    """One run folder: what an environment's ``get_result()`` names.

    Args:
        folder: holds the server's results somewhere below.

    Raises:
        CourseError: if the folder holds no run with a record; see :func:`src.federation.server.add_record`.
    """

    def __init__(self, folder: Path | str):
        self.folder = Path(folder)
        records = sorted(self.folder.rglob(RECORD))
        if len(records) != 1:
            raise CourseError(
                f"{self.folder} holds {len(records)} runs with a record ({RECORD}), not one. Give the folder of one run "
                "whose recipe went through add_record()."
            )
        self.server = records[0].parent
        self.about = read_json(self.folder / RUN) or {}
        self.record = read_record(self.folder)

    def __repr__(self) -> str:
        absent = [f"{site}: {reason}" for site, reason in self.left_out.items()]
        sites = f", {len(absent)} of {len(self.sites)} sites left out: {'; '.join(absent)}" if absent else ""
        gone = ~self.contributions["accepted"]
        updates = f", {gone.sum()} of {len(gone)} updates are missing, see contributions" if gone.any() else ""
        return f"Run({str(self.folder)!r}, {self.about.get('status', 'fetched')}, {self.seconds:.0f} s{sites}{updates})"

    @property
    def left_out(self) -> dict[str, str]:
        """Sites without an update in any round, each with its reason. What the model does on their cases is no result of theirs."""
        absent = self.contributions.groupby("site").filter(lambda rows: not rows["accepted"].any())
        first = absent.drop_duplicates("site")
        return dict(zip(first["site"], first["reason"], strict=True))

    @property
    def sites(self) -> list[str]:
        """Names of the sites that should have taken part."""
        return self.about.get("sites") or sorted({entry["site"] for entry in self.record if "site" in entry})

    @property
    def rounds(self) -> int:
        """How many rounds the job has."""
        return progress(self.record)[1]

    @property
    def seconds(self) -> float:
        """Wall time: of the whole execution where that is known, else between the first and the last line of the record."""
        return self.about.get("seconds", self.record[-1]["time"] - self.record[0]["time"])

    @cached_property
    def parts(self) -> dict[str, float]:
        """Where the wall time went, in seconds.

        ``training`` and ``validation`` are what the slowest site of each round streamed. ``start-up`` ends when the first site
        has the model and begins to work, ``transfer and averaging`` is what is left of the rounds, ``final validation`` comes
        after them, and ``shut-down`` after that.
        """
        times = self.curve("seconds_training"), self.curve("seconds_validation").loc[: self.rounds - 1]
        # Only what the slower site needs is waited for: the sum of both, per site, then the maximum.
        busy = times[0].add(times[1], fill_value=0)
        first = [entry for entry in self.record if entry["event"] == "answer" and entry["round"] == 0]
        at = {entry["event"]: entry["time"] for entry in self.record}
        work = min(entry["time"] - busy.loc[0, entry["site"]] for entry in first if entry["site"] in busy.columns)
        rounds_end = at.get("final validation", at["run ended"])
        started = self.about.get("started", self.record[0]["time"])
        slowest = busy.idxmax(axis=1)
        training, validation = (sum(one.loc[number, site] for number, site in slowest.items()) for one in times)
        return {
            "start-up": float(work - started),
            "training": float(training),
            "validation": float(validation),
            "transfer and averaging": float(rounds_end - work - training - validation),
            "final validation": float(at["run ended"] - rounds_end),
            "shut-down": float(started + self.seconds - at["run ended"]),
        }

    @property
    def megabytes_per_round(self) -> float:
        """Weights that travel in one round to all sites and back, in units of 1,000,000 bytes."""
        weights = self.weights(self.final_model).values()
        return 2 * len(self.sites) * sum(one.numel() * one.element_size() for one in weights) / 1e6

    @property
    def tensorboard_folder(self) -> Path:
        """Folder for ``tensorboard --logdir``: one subfolder a site, written by the server."""
        return self.server / "tb_events"

    @cached_property
    def final_validation(self) -> dict[str, dict[str, dict[str, float]]]:
        """Model file → site → metrics of FLARE's ``add_final_global_evaluation``; empty where the recipe has none."""
        results = next(iter(self.server.rglob(RESULTS)), None)
        found: dict[str, dict] = {}
        for site, models in (read_json(results) or {}).items() if results else ():
            for model, metrics in models.items():
                if metrics:
                    found.setdefault(model.removeprefix("SRV_"), {})[site] = metrics
        return found

    def cross_site(self, metric: str):
        """Scores of FLARE's ``add_cross_site_evaluation``, on the sites' validation parts.

        Returns:
            pandas.DataFrame: a row for the last model of each site and, last, for the final global one, ``all``; a column a site.
        """
        import pandas as pd

        rows = {("all" if model == FINAL else model): sites for model, sites in self.final_validation.items()}
        scores = {
            model: {site: metrics[metric] for site, metrics in sites.items()}
            for model, sites in rows.items()
            if model in (*self.sites, "all")
        }
        return pd.DataFrame(scores, index=self.sites, columns=[*self.sites, "all"]).T

    @property
    def final_model(self) -> Path:
        """Checkpoint of the global model after the last round."""
        return self._checkpoint(FINAL)

    def best_model(self, key_metric: str) -> Path:
        """Checkpoint of the global model with the best ``key_metric`` on the sites' validation parts.

        FLARE's model selector compares the models that were sent out to be trained; the one of the last round never is. The final
        validation judges it beside the selector's choice, and the better of the two is the best. Sites count by their number of
        training items, as in the selector.
        """
        weights = {entry["site"]: entry["samples"] for entry in self.record if entry.get("samples")}
        scores = {
            model: sum(m[key_metric] * weights.get(site, 1) for site, m in sites.items())
            / sum(weights.get(s, 1) for s in sites)
            for model, sites in self.final_validation.items()
        }
        return self._checkpoint(BEST if scores.get(BEST, -inf) > scores.get(FINAL, -inf) else FINAL)

    def _checkpoint(self, name: str) -> Path:
        path = next(iter(self.server.rglob(name)), None)
        if path is None:
            raise CourseError(f"The run in {self.folder} ({self.about.get('status')}) saved no {name}.")
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

        rows = list(
            _tensorboard_rows(self.tensorboard_folder) if self.tensorboard_folder.is_dir() else _mlflow_rows(self)
        )
        for site, metrics in self.final_validation.get(FINAL, {}).items():
            rows += [(site, tag, self.rounds, value) for tag, value in metrics.items()]
        return pd.DataFrame(rows, columns=["site", "tag", "step", "value"])

    def curve(self, tag: str):
        """One metric as a table: a row a round, a column a site. The final validation is the row after the last round.

        Raises:
            CourseError: if no site streamed that metric.
        """
        chosen = self.metrics[self.metrics.tag == tag]
        if chosen.empty:
            raise CourseError(f"No site streamed {tag!r}; there are {sorted(self.metrics.tag.unique())}.")
        return chosen.pivot_table(index="step", columns="site", values="value", aggfunc="last")

    @cached_property
    def contributions(self):
        """Who took part: a row for each round and site with ``accepted`` and, where not, the ``reason``."""
        import pandas as pd

        answers = {(entry["round"], entry["site"]): entry for entry in self.record if entry["event"] == "answer"}
        lost, refused = self._losses(), self.about.get("refused", {})
        rows = []
        for number in range(self.rounds):
            for site in self.sites:
                entry = answers.get((number, site), {})
                accepted = bool(entry.get("accepted"))
                why = entry.get("reason") or refused.get(site) or lost.get((number, site), "it did not answer")
                reason = None if accepted else why
                rows.append({"round": number, "site": site, "accepted": accepted, "reason": reason})
        return pd.DataFrame(rows, columns=["round", "site", "accepted", "reason"])

    def _losses(self) -> dict[tuple[int, str], str]:
        """Why a site was lost, for each round and site at some moment of which it was."""
        since, found = {}, {}
        end = {"event": "end", "round": self.rounds}
        for entry in [*self.record, end]:
            number = 0 if entry["round"] is None else entry["round"]
            if entry["event"] == "site lost":
                since[entry["site"]] = number, entry["reason"]
            for site in [entry["site"]] if entry["event"] == "site back" else list(since) if entry is end else ():
                first, reason = since.pop(site)
                found |= {(n, site): reason for n in range(first, number + 1)}
        return found


def read_record(folder: Path) -> list[dict]:
    """The lines of the record below a folder, oldest first; empty as long as the server has not started."""
    file = next(iter(Path(folder).rglob(RECORD)), None)
    if file is None:
        return []
    # The last line may still be in the writing while the run goes on.
    lines = [line for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")]
    return [json.loads(line) for line in lines]


def progress(record: list[dict]) -> tuple[int, int, int]:
    """Number of the round that goes on, counted from 1 (0 before the first), number of rounds, number of accepted answers."""
    started = [entry for entry in record if entry["event"] == "round started"]
    answers = sum(entry["event"] == "answer" and entry["accepted"] for entry in record)
    return (started[-1]["round"] + 1, started[-1]["rounds"], answers) if started else (0, 0, 0)


def shortfall(folder: Path) -> str | None:
    """What a run that ended lacks: a sentence, or None if its record holds all rounds, and in each the sites that its job demands.

    A run without a record is taken as it is.
    """
    record = read_record(folder)
    if not record:
        return None if not _wants_record(folder) else "The run ended before the server started: no site took part."
    number, rounds, answers = progress(record)
    if not answers:
        return "The run ended without a single update from a site."
    saved = sum(entry["event"] == "model saved" for entry in record)
    if number < rounds or saved < rounds:
        return f"The run ended in round {number} of {rounds}."
    took_part = [
        {entry["site"] for entry in record if entry.get("accepted") and entry["round"] == n} for n in range(rounds)
    ]
    metas = [read_json(file) or {} for file in Path(folder).glob("job/*/meta.json")]
    demanded = metas[0].get("min_clients", 1) if metas else 1
    few = [number for number, sites in enumerate(took_part, start=1) if len(sites) < demanded]
    return (
        f"The job needs {demanded} site(s) in each round; there were fewer in round {few[0]} of {rounds}."
        if few
        else None
    )


def _wants_record(folder: Path) -> bool:
    return any("RunRecorder" in file.read_text() for file in Path(folder).glob("job/*/*/config/config_fed_server.json"))


def _tensorboard_rows(folder: Path):
    from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

    for site in sorted(path for path in folder.iterdir() if path.is_dir()):
        events = EventAccumulator(str(site), size_guidance={SCALARS: 0})
        events.Reload()
        for tag in events.Tags()[SCALARS]:
            for event in events.Scalars(tag):
                yield site.name, tag, event.step, event.value


def _mlflow_rows(run: Run):
    from mlflow import MlflowClient
    from sqlalchemy import URL

    database = next(iter(run.folder.rglob("mlflow.db")), None)
    if database is None:
        raise CourseError("The run streamed no metrics: neither TensorBoard's events nor MLflow's database are there.")
    client = MlflowClient(tracking_uri=URL.create("sqlite", database=str(database)).render_as_string())
    for one in client.search_runs([experiment.experiment_id for experiment in client.search_experiments()]):
        # FLARE names a run <site>-<job id>-…; the longest site that fits is the one ("site-1" against "site-11").
        site = max((name for name in run.sites if one.info.run_name.startswith(f"{name}-")), key=len)
        for tag in one.data.metrics:
            for metric in client.get_metric_history(one.info.run_id, tag):
                yield site, tag, metric.step, metric.value


def failure_report(run_folder: Path, workspace: Path, sites: list[str]) -> str:
    """Why a run failed, in one message: round, sites and kinds of fault, and in which site's own log more is written.

    Args:
        run_folder: holds the record and ``console.log``, what the simulator itself printed.
        workspace: the simulator's workspace, with a folder for each site and the server.
        sites: names of the sites.
    """
    record = read_record(run_folder)
    causes = {
        entry["site"]: entry["reason"] for entry in record if entry["event"] == "answer" and not entry["accepted"]
    }
    causes |= {entry["site"]: entry["reason"] for entry in record if entry["event"] == "site lost"}
    for name in (*sites, "server") if not causes else ():
        # The record has no reason: what kind of error its log ends with.
        if kind := _last_error(workspace / name):
            causes[name] = f"its software raised {kind}"
    number, rounds, _ = progress(record)
    where = f"in round {number} of {rounds}" if number else "before the first round"
    said = "; ".join(f"{name}: {cause}" for name, cause in causes.items()) or "no process left an error"
    logs = ", ".join(str(workspace / name / "log.txt") for name in causes) or run_folder / "console.log"
    return f"The run failed {where}. {said}. More is in the log of its own: {logs}."


def _last_error(folder: Path) -> str | None:
    """The kind of the exception that ended a process, from its error log: the name of its class, never its message."""
    file = folder / "error_log.txt"
    text = file.read_text(errors="replace") if file.is_file() else ""
    kinds = re.findall(r"^(?:[\w.]+\.)?([A-Z]\w*(?:Error|Exception|Interrupt|Exit))\b", text, re.MULTILINE)
    return kinds[0] if kinds else None
