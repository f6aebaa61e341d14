"""Reads a run, simulated or real: who took part, curves, timings and checkpoints. Nothing here writes or trains."""

from functools import cached_property
from math import inf
from pathlib import Path

from src.common.errors import CourseError
from src.common.files import read_json
from src.federation.record import progress, read_record
from src.federation.server import RECORD

RUN = "run.json"
RESULTS = "cross_val_results.json"
FINAL, BEST = "FL_global_model.pt", "best_FL_global_model.pt"


class Run:
    """One run folder: what an environment's ``get_result()`` names. The server's results lie somewhere below it.

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
        return absent.drop_duplicates("site").set_index("site")["reason"].to_dict()

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
        """Scores of FLARE's ``add_cross_site_evaluation``, on the sites' validation parts, as a table.

        A row for the last model of each site and, last, for the final global one, ``all``; a column a site.
        """
        import pandas as pd

        rows = {"all" if model == FINAL else model: sites for model, sites in self.final_validation.items()}
        scores = {model: {site: metrics[metric] for site, metrics in sites.items()} for model, sites in rows.items()}
        return pd.DataFrame(scores, index=self.sites, columns=[*self.sites, "all"]).T

    @property
    def final_model(self) -> Path:
        """Checkpoint of the global model after the last round."""
        return self._checkpoint(FINAL)

    def best_model(self, key_metric: str) -> Path:
        """Checkpoint of the global model with the best ``key_metric`` on the sites' validation parts, weighed by training items.

        FLARE's model selector compares the models that were sent out to be trained; the one of the last round never is. The final
        validation judges it beside the selector's choice, and the better of the two is the best.
        """
        weights = {entry["site"]: entry["samples"] for entry in self.record if entry.get("samples")}
        scores = {
            model: sum(m[key_metric] * weights.get(site, 1) for site, m in sites.items())
            / sum(weights.get(site, 1) for site in sites)
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
        """What the sites streamed to TensorBoard or MLflow: a table with the columns ``site``, ``tag``, ``step`` and ``value``."""
        import pandas as pd

        events = self.tensorboard_folder
        rows = list(_tensorboard_rows(events) if events.is_dir() else _mlflow_rows(self))
        for site, metrics in self.final_validation.get(FINAL, {}).items():
            rows += [(site, tag, self.rounds, value) for tag, value in metrics.items()]
        return pd.DataFrame(rows, columns=["site", "tag", "step", "value"])

    def curve(self, tag: str):
        """One metric as a table: a row a round, a column a site. The final validation is the row after the last round."""
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
                rows.append((number, site, accepted, None if accepted else why))
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
