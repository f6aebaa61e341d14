"""The federated job of the prostate: hospitals train a U-Net, and FedAvg averages it. By a Client API script, or by a learner."""

from pathlib import Path

from nvflare.app_common.executors.learner_executor import LearnerExecutor
from nvflare.app_common.workflows.fedavg import FedAvg
from nvflare.app_opt.pt.job_config.base_fed_job import BaseFedJob
from nvflare.fuel.utils.constants import FrameworkType
from nvflare.recipe.spec import Recipe

from src.common.files import write_json
from src.federation.aggregation import SampleWeightedMean
from src.federation.methods import client_recipe
from src.federation.server import add_everything
from src.learners.supervised_monai_prostate_learner import SupervisedMonaiProstateLearner
from src.prostate.card import CARD, CONFIG_FILE, Settings
from src.unet import UNet


def recipe(sites: int = 4, settings: Settings | None = None, **options) -> Recipe:
    """The Client API script, by the method of the settings.

    Args:
        sites: how many sites are asked in each round.
        settings: of the study, by default the notebook's.
        **options: of :func:`src.federation.methods.client_recipe`.
    """
    return client_recipe(CARD, sites, settings or Settings(), **options)


def learner_recipe(
    folder: Path,
    sites: int = 4,
    settings: Settings | None = None,
    at_least: int | None = None,
    tracker: str = "tensorboard",
) -> Recipe:
    """The same training by FLARE's ``LearnerExecutor`` and the course's learner, in a job that is put together by hand.

    Args:
        folder: gets ``config_train.json``, which the job carries to the sites; a fresh run folder, for example.
        sites: how many sites are asked in each round.
        settings: of the study, by default the notebook's.
        at_least: see :func:`src.federation.server.add_record`.
        tracker: where the server writes the curves: ``tensorboard`` or ``mlflow``.
    """
    settings = settings or Settings()
    config = write_json(Path(folder) / CONFIG_FILE.name, settings.model_dump())
    job = BaseFedJob(UNet(seed=settings.seed), name=CARD.name, min_clients=sites, key_metric=CARD.key_metric)
    persistor = job.comp_ids["persistor_id"]
    job.to_server(
        FedAvg(num_clients=sites, num_rounds=settings.rounds, persistor_id=persistor, aggregator=SampleWeightedMean())
    )
    job.to_clients(LearnerExecutor(learner_id="learner"), tasks=["train", "validate"])
    job.to_clients(SupervisedMonaiProstateLearner(config.name, settings.local_epochs), id="learner")
    job.add_file_to_clients(str(config))
    made = Recipe(job)
    made.framework = FrameworkType.PYTORCH  # the final evaluation asks whose checkpoints these are
    return add_everything(made, at_least, tracker)
