"""The prostate's training by FLARE's ``LearnerExecutor`` and the course's learner, in a job that is put together by hand."""

from pathlib import Path

from nvflare.app_common.executors.learner_executor import LearnerExecutor
from nvflare.app_common.workflows.fedavg import FedAvg
from nvflare.app_opt.pt.job_config.base_fed_job import BaseFedJob
from nvflare.fuel.utils.constants import FrameworkType
from nvflare.recipe.spec import Recipe

from src.common.paths import own_folder
from src.federation.aggregation import SampleWeightedMean
from src.federation.recipes import add_everything, start, start_from
from src.learners.supervised_monai_prostate_learner import SupervisedMonaiProstateLearner
from src.prostate.card import CONFIG_FILE, Settings
from src.prostate.training import TASK


def learner_recipe(folder: Path, sites: int = 4, settings: Settings | None = None, initial=None, **options) -> Recipe:
    """The recipe around that job, whose settings it writes into ``folder``; the rest is as for ``client_recipe``."""
    sites, settings, model, weights = start(TASK, sites, settings, initial)
    SupervisedMonaiProstateLearner.check(settings)
    job = BaseFedJob(model, name=TASK.name, min_clients=sites, key_metric=TASK.key_metric)
    config = settings.write(Path(folder) / CONFIG_FILE.name)
    part, mean = job.comp_ids["persistor_id"], SampleWeightedMean()
    job.to_server(FedAvg(num_clients=sites, num_rounds=settings.rounds, persistor_id=part, aggregator=mean))
    job.to_clients(LearnerExecutor(learner_id="learner"), tasks=["train", "validate"])
    job.to_clients(SupervisedMonaiProstateLearner(CONFIG_FILE.name, settings.local_epochs), id="learner")
    # As what it is, no code, which a site may forbid.
    job.add_file_to_clients(config, app_folder_type="config")
    made = Recipe(job)
    made.kept = own_folder("start")  # not below the run's folder, where FLARE would keep its place in it
    start_from(made, weights, Path(made.kept.name))
    made.framework = FrameworkType.PYTORCH  # the final evaluation asks whose checkpoints these are
    return add_everything(made, **options)
