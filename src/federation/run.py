"""Reads a run, simulated or real: who took part, curves, timings and checkpoints. Nothing here writes or trains."""

from functools import cached_property
from itertools import product
from math import inf
from pathlib import Path

import pandas as pd

from src.common.errors import CourseError, first_line
from src.common.files import read_json
from src.federation.record import progress, read_record
from src.federation.server import RECORD

RUN = "run.json"
FINAL, BEST = "FL_global_model.pt", "best_FL_global_model.pt"


class Run:
    """One run folder: what an environment's ``get_result()`` names. The server's results lie somewhere below it.

    ``sites`` should have taken part in ``rounds``; ``seconds`` is the wall time of the whole execution where that is known, else
    between the first and the last line of the record; ``tensorboard_folder`` is for ``tensorboard --logdir``, a subfolder a site.

    A ``CourseError`` if it holds no run with a record; see :func:`src.federation.recipes.add_record`.
    """

    def __init__(self, folder: Path | str):
        self.folder = Path(folder)
        records = sorted(self.folder.rglob(RECORD))
        if len(records) != 1:
            found = f"{self.folder} holds {len(records)} runs with a record ({RECORD}), not one"
            raise CourseError(f"{found}. Give the folder of one run whose recipe went through add_record().")
        self.server = records[0].parent
        self.about = read_json(self.folder / RUN) or {}
        self.record = read_record(self.folder)
        self.sites = self.about.get("sites") or sorted({entry["site"] for entry in self.record if "site" in entry})
        self.rounds = progress(self.record)[1]
        times = [entry["time"] for entry in self.record] or [0.0]
        self.seconds = self.about.get("seconds", times[-1] - times[0])
        self.tensorboard_folder = self.server / "tb_events"

    def __repr__(self) -> str:
        absent = [f"{site}: {reason}" for site, reason in self.left_out.items()]
        sites = f", {len(absent)} of {len(self.sites)} sites left out: {'; '.join(absent)}" if absent else ""
        gone = ~self.contributions["accepted"].astype(bool)
        updates = f", {gone.sum()} of {len(gone)} updates are missing, see contributions" if gone.any() else ""
        remarks = self.contributions[~gone].dropna(subset="reason").groupby("reason")["site"].unique()
        updates += "".join(f", {' and '.join(sites)} {reason}" for reason, sites in remarks.items())
        return f"Run({str(self.folder)!r}, {self.about.get('status', 'fetched')}, {self.seconds:.0f} s{sites}{updates})"

    @property
    def left_out(self) -> dict[str, str]:
        """Sites without an update in any round, each with its reason. What the model does on their cases is no result of theirs."""
        said = self.contributions.groupby("site")
        accepted, reasons = said["accepted"].any(), said["reason"].first()
        return {site: reasons.get(site, "it was not asked") for site in self.sites if not accepted.get(site, False)}

    @cached_property
    def final_validation(self) -> dict[str, dict[str, dict[str, float]]]:
        """Model file → site → metrics of FLARE's ``add_final_global_evaluation``; empty where the recipe has none."""
        results = next(iter(self.server.rglob("cross_val_results.json")), None)
        found: dict[str, dict] = {}
        for site, models in (read_json(results) or {}).items() if results else ():
            for model, metrics in models.items():
                if metrics:
                    found.setdefault(model.removeprefix("SRV_"), {})[site] = metrics
        return found

    def cross_site(self, metric: str) -> pd.DataFrame:
        """Scores of FLARE's ``add_cross_site_evaluation``: a row for each site's last model, then for ``all``; a column a site."""
        scores = {"all" if model == FINAL else model: sites for model, sites in self._scores(metric).items()}
        if not scores:
            raise CourseError(f"The run in {self.folder} validated nothing; it needs add_cross_site_evaluation().")
        return pd.DataFrame(scores, index=self.sites, columns=[*self.sites, "all"]).T

    def _scores(self, metric: str) -> dict[str, dict[str, float]]:
        """Model file → site → one metric of the final validation; a ``CourseError`` where no site has it."""
        tried = self.final_validation
        known = {name for sites in tried.values() for metrics in sites.values() for name in metrics}
        if known and metric not in known:
            raise CourseError(f"No site validated {metric!r}; there are {sorted(known)}.")
        return {model: {site: own[metric] for site, own in of.items() if metric in own} for model, of in tried.items()}

    @property
    def final_model(self) -> Path:
        """Checkpoint of the global model after the last round."""
        return self._checkpoint(FINAL)

    def best_model(self, key_metric: str) -> Path:
        """Checkpoint of the global model with the best ``key_metric`` on the sites' validation parts, weighed by training items.

        FLARE's selector never sees the last round's model; the final validation judges both, and the better one is the best. A
        ``CourseError`` for a metric that no site has.
        """
        samples = {entry["site"]: entry["samples"] for entry in self.record if entry.get("samples")}

        def score(model: str) -> float:
            values = self._scores(key_metric).get(model, {})
            weights = {site: samples.get(site, 1) for site in values}
            return sum(values[site] * weights[site] for site in values) / sum(weights.values()) if values else -inf

        return self._checkpoint(BEST if score(BEST) > score(FINAL) else FINAL)

    def _checkpoint(self, name: str) -> Path:
        path = next(iter(self.server.rglob(name)), None)
        if path is None:
            raise CourseError(f"The run in {self.folder} ({self.about.get('status')}) saved no {name}.")
        return path

    @staticmethod
    def weights(checkpoint: Path) -> dict:
        """The ``state_dict`` inside one of FLARE's checkpoints; a ``CourseError`` if it is none."""
        import torch

        try:
            return torch.load(checkpoint, map_location="cpu", weights_only=True)["model"]
        except Exception as error:  # what is no file of PyTorch's makes it raise a dozen kinds
            said = f"{checkpoint} is no checkpoint of a run: {type(error).__name__}: {first_line(error)}"
            raise CourseError(f"{said}. Give final_model or best_model(...).") from error

    @cached_property
    def metrics(self) -> pd.DataFrame:
        """What the sites streamed to TensorBoard or MLflow, as ``site``, ``tag``, ``step`` and ``value``."""
        events = self.tensorboard_folder
        rows = list(_tensorboard_rows(events) if events.is_dir() else _mlflow_rows(self))
        for site, metrics in self.final_validation.get(FINAL, {}).items():
            rows += [(site, tag, self.rounds, value) for tag, value in metrics.items()]
        return pd.DataFrame(rows, columns=["site", "tag", "step", "value"])

    def curve(self, tag: str) -> pd.DataFrame:
        """One metric as a table: a row a round, a column a site. The final validation is the row after the last round."""
        chosen = self.metrics[self.metrics.tag == tag]
        if chosen.empty:
            raise CourseError(f"No site streamed {tag!r}; there are {sorted(self.metrics.tag.unique())}.")
        return chosen.pivot_table(index="step", columns="site", values="value", aggfunc="last")

    @cached_property
    def contributions(self) -> pd.DataFrame:
        """Who took part: a row for each round and site that was asked, with ``accepted`` and a ``reason``, where there is one.

        An accepted answer may have one too. A run without rounds has a row for each site, whose ``round`` is None.
        """
        kind = "answer" if self.rounds else "result"
        answers = {(entry["round"], entry["site"]): entry for entry in self.record if entry["event"] == kind}
        asked = {(entry["round"], entry["site"]) for entry in self.record if entry["event"] == "asked"}
        lost, refused, rows, last = {}, self.about.get("refused", {}), [], 0
        for entry in self.record:  # why a site was lost, for each round at some moment of which it was
            last = last if entry["round"] is None else entry["round"]
            rounds = range(last, self.rounds) or [None]
            if entry["event"] == "site lost":
                lost |= {(number, entry["site"]): entry["reason"] for number in rounds}
            elif entry["event"] == "site back":  # in the round that goes on, it still has no part
                for number in rounds[1:]:
                    lost.pop((number, entry["site"]), None)
        for number, site in product(range(self.rounds) or [None], self.sites):
            entry = answers.get((number, site), {})
            accepted, why = bool(entry.get("accepted")), entry.get("reason")
            if not accepted:
                why = why or refused.get(site) or lost.get((number, site))
            if accepted or why or (number, site) in asked or number not in dict(asked):
                rows.append((number, site, accepted, why or (None if accepted else "it did not answer")))
        return pd.DataFrame(rows, columns=["round", "site", "accepted", "reason"])


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
        named = (name for name in run.sites if one.info.run_name.startswith(f"{name}-"))
        site = max(named, key=len, default=one.info.run_name)
        for tag in one.data.metrics:
            for metric in client.get_metric_history(one.info.run_id, tag):
                yield site, tag, metric.step, metric.value
