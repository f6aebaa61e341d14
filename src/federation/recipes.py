"""How the course puts a recipe together: FLARE's, by the method of the settings, and what it adds, one function each."""

import importlib.util
import os
from math import ceil
from pathlib import Path
from tempfile import TemporaryDirectory

from nvflare.app_common.filters.exclude_vars import ExcludeVars
from nvflare.app_common.workflows.fedavg import FedAvg
from nvflare.app_opt.pt import recipes
from nvflare.recipe.spec import Recipe
from nvflare.recipe.utils import add_experiment_tracking, add_final_global_evaluation

from src.common.errors import CourseError
from src.common.settings import CONFIG, StudySettings
from src.common.task import Task
from src.federation.aggregation import SampleWeightedMean
from src.federation.flare_2_9 import forget_script_folder, go_on_without, job_of, know_the_parts, look_often, server_of
from src.federation.methods import METHODS
from src.federation.scaffold import RecordedScaffold
from src.federation.server import RunRecorder

ASK_SECONDS = 0.1


def client_recipe(
    task: Task, sites: int, settings: StudySettings | None = None, client=None, initial=None, transfer=None, **options
) -> Recipe:
    """FLARE's recipe for a task whose sites run a Client API script, by the method of its settings, by default the notebook's.

    ``sites`` are asked in each round; each runs the file ``client``, by default the task's script, and sends weights or their
    changes (``transfer``, FLARE's ``TransferType``), where the method leaves that open. The run starts from the checkpoint in the
    file ``initial``, by default from a new model of the settings' seed. The other options are those of :func:`add_everything`.

    A ``CourseError`` for FedBN of a network without BatchNorm, and for a ``transfer`` that the method does not heed.
    """
    settings = settings or task.settings()
    method, network = METHODS[settings.method], task.networks[settings.network]
    kind, stays = getattr(recipes, method.recipe), method.stays(network(seed=settings.seed))
    own = method.arguments(settings)
    if transfer and (kind is recipes.FedOptRecipe or "params_transfer_type" in own):
        raise CourseError(f"{method.title} decides itself what a site sends; leave transfer out.")
    own |= {"params_transfer_type": transfer} if transfer else {}
    if issubclass(kind, recipes.FedAvgRecipe):
        own |= {"key_metric": task.key_metric, "aggregator": SampleWeightedMean(stays)}
    made = kind(
        name=task.name,
        min_clients=sites,
        num_rounds=settings.rounds,
        model={"class_path": f"{network.__module__}.{network.__name__}", "args": {"seed": settings.seed}},
        initial_ckpt=initial and os.path.relpath(initial),  # FLARE carries the file along if its path is relative
        train_script=str(client or Path(__file__).parents[1] / task.client),
        client_memory_gc_rounds=1,
        **own,
    )
    made.kept = TemporaryDirectory(prefix="course-settings-")  # as long as the recipe, which may be exported again
    settings.write(Path(made.kept.name) / "src" / CONFIG)
    made.add_client_file(made.kept.name)  # a folder's content goes beside the script
    know_the_parts(made, task.key_metric)
    if stays:
        made.add_client_output_filter(ExcludeVars(stays), tasks=["train"])
    if kind is recipes.ScaffoldRecipe:
        (workflow,) = server_of(made).workflows
        workflow.controller = RecordedScaffold(num_clients=sites, num_rounds=settings.rounds, persistor_id="persistor")
    return add_everything(made, **options)


def add_everything(
    recipe: Recipe,
    min_clients: int | None = None,
    tracker: str = "tensorboard",
    round_timeout: float | None = None,
    final_evaluation: bool = True,
) -> Recipe:
    """All that the course adds to a PyTorch recipe beside its aggregator; what notebook 02 switches on line by line.

    ``min_clients`` and ``round_timeout``: see :func:`add_record`; the final validation waits as long. ``tracker`` is where the
    server writes the sites' curves, ``tensorboard``, or ``mlflow`` where that is installed. With ``final_evaluation`` every site
    validates the final model; not where FLARE's ``add_cross_site_evaluation`` follows.
    """
    if tracker not in ("tensorboard", "mlflow"):
        raise CourseError(f"Unknown tracker {tracker!r}; choose tensorboard or mlflow.")
    if not importlib.util.find_spec(tracker):
        raise CourseError(f"tracker={tracker!r} needs a package that is not installed: pip install {tracker}")
    add_record(recipe, min_clients, round_timeout)
    add_experiment_tracking(recipe, tracker)
    if final_evaluation:
        add_final_global_evaluation(recipe, **({"validation_timeout": ceil(round_timeout)} if round_timeout else {}))
    weigh_selection(recipe)
    add_quick_pace(recipe)
    forget_script_folder(recipe)
    return recipe


def add_record(recipe: Recipe, min_clients: int | None = None, round_timeout: float | None = None) -> None:
    """Keep a record of who took part, and say what happens when a site fails; see :class:`src.federation.server.RunRecorder`.

    A round goes on without the others as long as ``min_clients`` sites take part. By default all must: the first site that fails
    ends the run, with an error that names it. It also goes on after ``round_timeout`` seconds, and whoever has not answered has
    failed in this round; by default it waits for a site as long as its process is there. (FLARE's ``MetricsArtifactWriter`` holds
    what was accepted alone, and its simulator waits without end for a site that was killed.)

    A ``CourseError`` for numbers that make no sense, and for a recipe whose server waits for every site.
    """
    if round_timeout is not None and not round_timeout > 0:
        raise CourseError(f"round_timeout is {round_timeout}; give a number of seconds above 0, or None.")
    job = job_of(recipe)
    everyone = job.job.min_clients
    min_clients = everyone if min_clients is None else min_clients
    if not 1 <= min_clients <= everyone:
        said = f"the job asks {everyone} site(s), so give a number from 1 to that."
        raise CourseError(f"min_clients is {min_clients}; {said}")
    if min_clients < everyone:
        if not isinstance(server_of(recipe).workflows[0].controller, FedAvg):
            said = "needs every site in each round; leave min_clients out, or choose another method."
            raise CourseError(f"{type(recipe).__name__} {said}")
        go_on_without(recipe)
    job.job.min_clients = min_clients
    job.to_server(RunRecorder(min_clients, round_timeout), id="recorder")
    # FLARE waits 60 s for a site that is gone to come back, and does not count one as gone in a task's first 30 s.
    recipe.add_server_config({"dead_client_grace_period": 1.0, "dead_client_check_lead_time": 2.0})


def add_quick_pace(recipe: Recipe) -> None:
    """Let sites ask for work ten times a second, not every 2 s: right for hospitals, and a third of the time of a course's run."""
    look_often(recipe)
    recipe.add_server_config({"server": {"task_request_interval": ASK_SECONDS}})


def weigh_selection(recipe: Recipe) -> None:
    """Let FLARE's model selector weigh the sites' metrics by their number of samples, as the average does; else all count alike."""
    server_of(recipe).components["model_selector"].weigh_by_local_iter = True
