"""Reads a run, simulated or real: who took part, curves, timings and checkpoints. Nothing here writes or trains."""

from functools import cached_property
from itertools import product
from math import inf
from pathlib import Path

import pandas as pd

from src.common.errors import CourseError, first_line
from src.common.files import load_json, read_json
from src.federation.record import progress, read_record
from src.federation.server import RECORD

RUN, FINAL, BEST = "run.json", "FL_global_model.pt", "best_FL_global_model.pt"


class Run:
    """One run folder: what an environment's ``get_result()`` names; a ``CourseError`` if it does not hold one run with a record.

    ``sites`` should have taken part in ``rounds``; ``seconds`` is wall time, of the whole execution or else of the record."""

    def __init__(self, folder: Path | str):
        records = sorted(Path(folder).rglob(RECORD)) if isinstance(folder, str | Path) else []
        if len(records) != 1:
            found = f"{folder} holds {len(records)} runs with a record ({RECORD}), not one"
            raise CourseError(f"{found}. Give the folder of one run whose recipe went through add_record().")
        self.folder, self.server = Path(folder), records[0].parent
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
        """Model file → site → metrics of FLARE's ``add_final_global_evaluation``; empty without; a ``CourseError`` if damaged."""
        file, found = next(self.server.rglob("cross_val_results.json"), None), {}
        tried = load_json(file, "final validation", "Fetch the run again.", "it cannot be read") if file else {}
        for site, models in tried.items():
            for model in filter(models.get, models):
                found.setdefault(model.removeprefix("SRV_"), {})[site] = models[model]
        return found

    def cross_site(self, metric: str) -> pd.DataFrame:
        """Scores of FLARE's ``add_cross_site_evaluation``: a row for each site's last model, then for ``all``; a column a site."""
        return self._scores(metric).rename(columns={FINAL: "all"}).reindex(columns=[*self.sites, "all"]).T

    def _scores(self, metric: str) -> pd.DataFrame:
        """One metric of the final validation: a row a site, a column a model file; a ``CourseError`` where no site has it."""
        tried = self.final_validation
        known = {name for sites in tried.values() for metrics in sites.values() for name in metrics}
        if metric not in known:
            nothing = "for a best model it needs add_final_global_evaluation(), for cross_site it needs add_cross_site_evaluation()"
            said = f"there are {sorted(known)}" if known else nothing
            raise CourseError(f"No site validated {metric!r}; {said}.")
        scores = {model: {site: own.get(metric) for site, own in sites.items()} for model, sites in tried.items()}
        return pd.DataFrame(scores, index=self.sites, dtype=float)

    @property
    def final_model(self) -> Path:
        """Checkpoint of the global model after the last round."""
        return self._checkpoint(FINAL)

    def best_model(self, key_metric: str) -> Path:
        """Checkpoint of the model with the best ``key_metric`` on the sites' validation parts, weighed by training items: the
        last, or that of FLARE's selector, which never sees the last. A ``CourseError`` for a metric that no site has."""
        scores = self._scores(key_metric)
        samples = {entry["site"]: entry["samples"] for entry in self.record if entry.get("samples")}
        weights = scores.notna().mul(pd.Series(samples, dtype=float).reindex(self.sites, fill_value=1.0), axis=0)
        mean = (scores * weights).sum() / weights.sum()
        return self._checkpoint(BEST if mean.get(BEST, -inf) > mean.get(FINAL, -inf) else FINAL)

    def _checkpoint(self, name: str) -> Path:
        for path in self.server.rglob(name):
            return path
        raise CourseError(f"The run in {self.folder} ({self.about.get('status')}) saved no {name}.")

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
        rows = list(_tensorboard_rows(self) if self.tensorboard_folder.is_dir() else _mlflow_rows(self))
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
        """Who took part: a row for each ``round``, or None, and ``site`` that was asked, with ``accepted`` and ``reason``."""
        answers = {(one["round"], one["site"]): one for one in self.record if "accepted" in one}
        asked = [(one["round"], one["site"]) for one in self.record if one["event"] == "asked"]
        rounds, lost, last, rows = range(self.rounds) or [None], {}, 0, []
        for entry in self.record:
            last = last if entry["round"] is None else entry["round"]
            if entry["event"] in ("site lost", "site back"):  # which has no part yet in the round that goes on
                since = last + (entry["event"] == "site back")
                lost |= dict.fromkeys(product(rounds[since:], [entry["site"]]), entry.get("reason"))
        for number, site in product(rounds, self.sites):
            absent = self.about.get("refused", {}).get(site) or lost.get((number, site))
            if answer := answers.get((number, site)):
                rows.append((number, site, answer["accepted"], answer["reason"]))
            elif absent or (number, site) in asked or number not in dict(asked):
                rows.append((number, site, False, absent or "it did not answer"))
        return pd.DataFrame(rows, columns=["round", "site", "accepted", "reason"])


def _tensorboard_rows(run: Run):
    from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

    for site in sorted(filter(Path.is_dir, run.tensorboard_folder.iterdir())):
        events = EventAccumulator(str(site), size_guidance={SCALARS: 0})
        tags = events.Reload().Tags()[SCALARS]
        yield from ((site.name, tag, event.step, event.value) for tag in tags for event in events.Scalars(tag))


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
        for metric in (each for tag in one.data.metrics for each in client.get_metric_history(one.info.run_id, tag)):
            yield site, metric.key, metric.step, metric.value
