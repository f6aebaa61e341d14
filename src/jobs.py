"""Builds the jobs of the course: who trains what, how often, who aggregates, who records.

Each function returns a :class:`Job`, which reads like the sentence that a teacher says aloud::

    job = mednist_fedavg(sites=2, rounds=5, local_epochs=1)
    run = job.simulate()
    run.curve("val_accuracy").plot()
"""

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from nvflare.app_common.widgets.convert_to_fed_event import ConvertToFedEvent
from nvflare.app_common.widgets.intime_model_selector import IntimeModelSelector
from nvflare.app_opt.pt.file_model_persistor import PTFileModelPersistor
from nvflare.job_config.api import FedJob
from nvflare.job_config.script_runner import ScriptRunner

from src import mednist
from src.aggregation import SampleWeightedMean
from src.errors import CourseError
from src.paths import new_run_folder
from src.runs import MLFLOW_FILE, Run
from src.simulation import simulate, threads_per_site
from src.workflow import FedAvgWithFinalValidation, RunRecorder

TRACKERS = ("tensorboard", "mlflow")
INITIAL_MODEL = "initial_model.pt"
CLIENT_SCRIPT = Path(__file__).with_name("monai_mednist_train.py")
# FLARE's sites ask every 2 s whether there is work, and its server looks every 0.5 s whether they have answered; on one
# machine both can look more often and wait less.
TASK_REQUEST_SECONDS = 0.1


@dataclass
class Job:
    """A FLARE job, with the folder that it will run in and the data lists of its sites.

    Attributes:
        fed_job: the job, built with FLARE's Job API.
        folder: its fresh run folder.
        sites: names of the sites.
        rounds: number of rounds.
        datalists: for every site its ``training`` and ``validation`` items.
        test: the items that no site has; empty if the caller kept them.
        about: settings that ``run.json`` keeps.
    """

    fed_job: FedJob
    folder: Path
    sites: list[str]
    rounds: int
    datalists: dict
    test: list = field(default_factory=list)
    about: dict = field(default_factory=dict)

    def export(self) -> Path:
        """Write the job as the folder that FLARE takes everywhere, simulator and hospitals alike, and return it."""
        self.fed_job.export_job(str(self.folder / "job"))
        return self.folder / "job" / self.fed_job.name

    def simulate(self) -> Run:
        """Run the job on this machine, one process a site.

        Raises:
            CourseError: if the run fails, with the failing site's own last error.
        """
        if (self.folder / "run.json").exists():
            raise CourseError(f"This job has run already, in {self.folder}. Build it again for a new run folder.")
        return simulate(self.fed_job, self.folder, self.sites, self.rounds, self.about)


def fedavg_job(
    name: str,
    sites: list[str],
    rounds: int,
    initial_model: Path,
    key_metric: str,
    tracker: str = "tensorboard",
    ignore_failed_sites: bool = False,
    round_timeout: int = 0,
) -> FedJob:
    """The server's half of every job of the course: FedAvg, its average, its memory and its notebook.

    Args:
        name: name of the job.
        sites: names of the sites; all of them are asked in every round.
        rounds: number of rounds.
        initial_model: checkpoint of the first global model. The server only ever sees weights, so it needs neither
            MONAI nor the network's code.
        key_metric: metric of the received global model by which the best one is chosen; higher is better.
        tracker: ``tensorboard`` or ``mlflow``.
        ignore_failed_sites: go on with the other sites when one fails; else the run stops.
        round_timeout: seconds that a round may take; 0 waits for ever.

    Raises:
        CourseError: for an unknown tracker.
    """
    job = FedJob(name=name, min_clients=1 if ignore_failed_sites else len(sites))
    job.to_server(
        FedAvgWithFinalValidation(
            num_clients=len(sites),
            num_rounds=rounds,
            persistor_id="persistor",
            key_metric=key_metric,
            round_timeout=round_timeout,
            ignore_result_error=ignore_failed_sites,
            task_check_period=TASK_REQUEST_SECONDS,
        )
    )
    job.add_file_to_server(str(initial_model))
    job.to_server(PTFileModelPersistor(source_ckpt_file_full_name=Path(initial_model).name), id="persistor")
    job.to_server(SampleWeightedMean(), id="aggregator")
    job.to_server(IntimeModelSelector(key_metric=key_metric, weigh_by_local_iter=True), id="model_selector")
    job.to_server(RunRecorder(), id="recorder")
    job.to_server(_receiver(tracker, name, initial_model.parent), id="receiver")
    job.to_server({"server": {"task_request_interval": TASK_REQUEST_SECONDS}})
    return job


def _receiver(tracker: str, name: str, folder: Path):
    if tracker == "tensorboard":
        from nvflare.app_opt.tracking.tb.tb_receiver import TBAnalyticsReceiver

        return TBAnalyticsReceiver()
    if tracker == "mlflow":
        from nvflare.app_opt.tracking.mlflow.mlflow_receiver import MLflowReceiver

        tags = {"mlflow.note.content": f"Streamed by the sites of {name}"}
        return MLflowReceiver(
            tracking_uri=f"sqlite:///{folder / MLFLOW_FILE}",
            kw_args={"experiment_name": name, "run_name": name, "experiment_tags": tags, "run_tags": {}},
        )
    raise CourseError(f"Unknown tracker {tracker!r}; choose one of {', '.join(TRACKERS)}.")


def mednist_fedavg(
    sites: int | list[str] = 2,
    rounds: int = 5,
    local_epochs: int = 1,
    partition: str = "even",
    counts: list[int] | None = None,
    alpha: float = 0.5,
    tracker: str = "tensorboard",
    seed: int = 0,
    batch_size: int = 32,
    learning_rate: float = 1e-3,
    items: list[dict] | None = None,
    initial_weights: dict | None = None,
    client_script: Path = CLIENT_SCRIPT,
) -> Job:
    """Federated averaging of DenseNet121 on MedNIST.

    Args:
        sites: how many sites, named ``site-1``, ``site-2``, …, or their names.
        rounds: how often the models are averaged.
        local_epochs: passes over its own images that a site trains in each round.
        partition: ``even``, ``counts`` (give ``counts``) or ``dirichlet`` (label skew; give ``alpha``, smaller is
            more skewed).
        counts: number of images a site, for ``partition="counts"``.
        alpha: concentration of the Dirichlet distribution.
        tracker: ``tensorboard`` or ``mlflow``: where the server writes the curves.
        seed: fixes the partition, the first global model and the order of the images.
        batch_size: images a step.
        learning_rate: of Adam in the first round, from which it falls along a cosine. Adam's state stays at the site.
        items: images to share out over the sites; by default the training and validation parts of MedNIST.
        initial_weights: ``state_dict`` of the first global model; by default a fresh DenseNet121.
        client_script: what every site runs; takes the arguments of ``src/monai_mednist_train.py``.

    Raises:
        CourseError: for arguments that cannot be met, before anything runs.
    """

    names = site_names(sites)
    if items is None:
        parts = mednist.split(mednist.read_datalist(mednist.find_or_make()), seed=seed)
        items, test = parts["training"] + parts["validation"], parts["test"]
    else:
        test = []
    datalists = mednist.site_datalists(items, names, how=partition, counts=counts, alpha=alpha, seed=seed)
    settings = {
        "rounds": rounds,
        "local_epochs": local_epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "seed": seed,
        "threads": threads_per_site(len(names)),
    }
    for name in ("rounds", "local_epochs", "batch_size"):
        if settings[name] < 1:
            raise CourseError(f"{name} is {settings[name]}; it must be at least 1.")

    folder = new_run_folder("mednist_fedavg")
    mednist.write_datalists(folder / "datalists", datalists)
    initial_model = save_initial_model(folder, initial_weights or _fresh_densenet(seed))
    job = fedavg_job("mednist_fedavg", names, rounds, initial_model, key_metric="accuracy", tracker=tracker)
    arguments = {"datalists": (folder / "datalists").as_uri(), **settings}
    client = ScriptRunner(
        script=str(client_script),
        script_args=" ".join(f"--{name} {value}" for name, value in arguments.items()),
        memory_gc_rounds=1,  # weights of the rounds before are given back at once
    )
    for name in names:
        job.to(client, name)
        job.to(ConvertToFedEvent(events_to_convert=["analytix_log_stats"]), name, id="event_to_fed")
    about = {"partition": partition, "tracker": tracker, **settings}
    return Job(job, folder, names, rounds, datalists, test, about)


def site_names(sites: int | list[str]) -> list[str]:
    """``site-1``, ``site-2``, … for a number; a list of names is checked and returned.

    Raises:
        CourseError: for fewer than one site, or a name that occurs twice.
    """
    names = [f"site-{number}" for number in range(1, sites + 1)] if isinstance(sites, int) else list(sites)
    if not names or len(set(names)) != len(names):
        raise CourseError(f"sites is {sites!r}; give a number of at least 1, or names that differ.")
    return names


def save_initial_model(folder: Path, weights: dict) -> Path:
    """Write the first global model of a run, a plain ``state_dict``, and return its path."""
    import torch

    torch.save(weights, folder / INITIAL_MODEL)
    return folder / INITIAL_MODEL


def _fresh_densenet(seed: int) -> dict:
    import torch

    from src.densenet import DenseNet121

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return DenseNet121().state_dict()


def prostate_fedavg(
    sites: int | list[str] | None = None,
    rounds: int = 20,
    local_epochs: int = 4,
    datalists: Path | str | None = None,
    dataset: Path | str | None = None,
    tracker: str = "tensorboard",
    config: Path | str | None = None,
    initial_weights: dict | None = None,
    ignore_failed_sites: bool = True,
    round_timeout: int = 600,
    **settings,
) -> Job:
    """Federated averaging of a 3D U-Net that finds the prostate on T2 volumes.

    Every site runs FLARE's ``LearnerExecutor`` with a ``SupervisedMonaiProstateLearner``.

    Args:
        sites: names of the sites, or how many of ``site-1``, ``site-2``, …; by default every site that has a datalist.
        rounds: how often the models are averaged.
        local_epochs: passes over its own training cases that a site trains in each round.
        datalists: folder with ``<site>.json``; by default that of the data source.
        dataset: folder that the paths in the datalists start from; by default that of the data source.
        tracker: ``tensorboard`` or ``mlflow``: where the server writes the curves.
        config: training configuration; by default ``src/config/config_train.json``.
        initial_weights: ``state_dict`` of the first global model; by default a fresh U-Net of the configuration's seed.
        ignore_failed_sites: go on with the other sites when one fails; who took part is in ``run.contributions``.
        round_timeout: seconds after which a round goes on without the sites that have not answered; 0 waits for ever.
        **settings: keys of the training configuration that replace the file's.

    Raises:
        CourseError: for arguments that cannot be met, before anything runs.
    """
    from nvflare.app_common.executors.learner_executor import LearnerExecutor

    from src import prostate
    from src.learners.supervised_monai_prostate_learner import KEY_METRIC, SupervisedMonaiProstateLearner
    from src.prostate_settings import CONFIG_FILE, read_settings, write_settings
    from src.prostate_training import new_model
    from src.site_watch import SiteWatch

    for name, value in {"rounds": rounds, "local_epochs": local_epochs}.items():
        if value < 1:
            raise CourseError(f"{name} is {value}; it must be at least 1.")
    folders = prostate.folders()
    dataset = Path(dataset or folders.converted).resolve()
    datalists = Path(datalists or folders.datalists).resolve()
    names = site_names(sites if sites is not None else [file.stem for file in sorted(datalists.glob("*.json"))])
    chosen = read_settings(
        config or CONFIG_FILE,
        **{"threads": threads_per_site(len(names)), **settings},
        dataset_base_dir=dataset,
        datalist_json_path=datalists,
    )
    chosen = replace(chosen, cache_dir=str(chosen.cache_folder or chosen.cache_dir))
    lists = {name: prostate.read_datalist(chosen.datalist_file(name), dataset) for name in names}

    folder = new_run_folder("prostate_fedavg")
    config_file = write_settings(folder / CONFIG_FILE.name, chosen)
    initial_model = save_initial_model(folder, initial_weights or new_model(chosen.seed).state_dict())
    job = fedavg_job(
        "prostate_fedavg",
        names,
        rounds,
        initial_model,
        key_metric=KEY_METRIC,
        tracker=tracker,
        ignore_failed_sites=ignore_failed_sites,
        round_timeout=round_timeout,
    )
    if ignore_failed_sites:
        job.to_server(SiteWatch(), id="site_watch")
        job.to_server(SiteWatch.PATIENCE)
    for name in names:
        job.add_file_to(str(config_file), name)
        job.to(LearnerExecutor(learner_id="learner"), name, tasks=["train", "validate"])
        job.to(SupervisedMonaiProstateLearner(config_file.name, local_epochs), name, id="learner")
        job.to(ConvertToFedEvent(events_to_convert=["analytix_log_stats"]), name, id="event_to_fed")
    test = [{**item, "site": name} for name in names for item in lists[name]["testing"]]
    about = {"local_epochs": local_epochs, "tracker": tracker, "settings": asdict(chosen)}
    return Job(job, folder, names, rounds, lists, test, about)
