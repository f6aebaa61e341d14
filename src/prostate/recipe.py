"""The federated job of the prostate: hospitals train a U-Net, and FedAvg averages it. By a Client API script, or by a learner."""

import os
from pathlib import Path

from nvflare.app_common.executors.learner_executor import LearnerExecutor
from nvflare.app_common.workflows.fedavg import FedAvg
from nvflare.app_opt.pt.file_model_persistor import PTFileModelPersistor
from nvflare.app_opt.pt.job_config.base_fed_job import BaseFedJob
from nvflare.app_opt.pt.job_config.model import PTModel
from nvflare.fuel.utils.constants import FrameworkType
from nvflare.recipe.spec import Recipe
from nvflare.recipe.utils import prepare_initial_ckpt

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
    initial: Path | None = None,
    **options,
) -> Recipe:
    """The same training by FLARE's ``LearnerExecutor`` and the course's learner, in a job that is put together by hand.

    Args:
        folder: gets ``config_train.json``, which the job carries to the sites; a fresh run folder, for example.
        sites: how many sites are asked in each round.
        settings: of the study, by default the notebook's.
        initial: checkpoint to start from, which the job carries to the server, for example ``run.final_model``; by default a new
            model of the settings' seed.
        **options: of :func:`src.federation.server.add_everything`.
    """
    settings = settings or Settings()
    config = write_json(Path(folder) / CONFIG_FILE.name, settings.model_dump())
    job = BaseFedJob(name=CARD.name, min_clients=sites, key_metric=CARD.key_metric)
    model, checkpoint = UNet(seed=settings.seed), prepare_initial_ckpt(initial and os.path.relpath(initial), job)
    persistor = PTFileModelPersistor(model=model, source_ckpt_file_full_name=checkpoint)
    job.comp_ids.update(job.to_server(PTModel(model, persistor=persistor)))
    job.to_server(
        FedAvg(
            num_clients=sites,
            num_rounds=settings.rounds,
            persistor_id=job.comp_ids["persistor_id"],
            aggregator=SampleWeightedMean(),
        )
    )
    job.to_clients(LearnerExecutor(learner_id="learner"), tasks=["train", "validate"])
    job.to_clients(SupervisedMonaiProstateLearner(config.name, settings.local_epochs), id="learner")
    job.add_file_to_clients(str(config), app_folder_type="config")  # settings are not code, which a site may forbid
    made = Recipe(job)
    made.framework = FrameworkType.PYTORCH  # the final evaluation asks whose checkpoints these are
    return add_everything(made, **options)
