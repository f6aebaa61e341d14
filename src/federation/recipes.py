"""How the course puts a recipe together: FLARE's, by the method of the settings, and what it adds, one function each."""

import importlib.util
import os
import re
from math import ceil
from pathlib import Path
from typing import Literal

import torch
from nvflare.app_common.filters.exclude_vars import ExcludeVars
from nvflare.app_common.workflows.base_fedavg import BaseFedAvg
from nvflare.app_common.workflows.scatter_and_gather import ScatterAndGather
from nvflare.app_common.workflows.statistics_controller import StatisticsController
from nvflare.app_opt.pt import recipes
from nvflare.client.config import TransferType
from nvflare.recipe.spec import Recipe
from nvflare.recipe.utils import add_experiment_tracking, add_final_global_evaluation
from pydantic import StrictBool, StrictInt

from src.common.datalists import site_names
from src.common.errors import CourseError, some_of
from src.common.paths import own_folder
from src.common.settings import CONFIG, Checked, Positive, StudySettings
from src.common.task import Task, shapes, unlike
from src.federation.aggregation import SampleWeightedMean
from src.federation.counts import WholeStatistics
from src.federation.flare_2_9 import (
    DAY,
    add_to_sites,
    forget_script_folder,
    go_on_without,
    job_of,
    know_the_parts,
    look_often,
    named_sites,
    server_of,
)
from src.federation.methods import METHODS
from src.federation.reasons import LastWords
from src.federation.scaffold import RecordedScaffold
from src.federation.server import FIRST_CONTACT, RunRecorder

ASK_SECONDS = 0.1
START = "initial.pt"  # the checkpoint that a run starts from, in the job
KINDS = {  # of a tensor's type, by whether it is one of floats: another of the same kind is as good
    True: (torch.float16, torch.bfloat16, torch.float32, torch.float64),
    False: (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
}
SAVED_BY = {"module.": "DataParallel", "_orig_mod.": "torch.compile", "model.": "Lightning"}


class Options(Checked):
    """What a recipe of the course can be told beside the settings of its study; see :func:`add_everything`."""

    min_clients: StrictInt | None = None
    tracker: Literal["tensorboard", "mlflow"] = "tensorboard"
    round_timeout: Positive | None = None
    first_contact: Positive = FIRST_CONTACT
    final_evaluation: StrictBool = True


def client_recipe(
    task: Task, sites: int, settings=None, client=None, initial=None, transfer=None, aggregator=None, **options
) -> Recipe:
    """FLARE's recipe for a task whose sites run a Client API script, by the method of its settings, by default the notebook's.

    ``sites`` are asked in each round; each runs ``client``, by default the task's script, and sends weights or their changes
    (``transfer``, FLARE's ``TransferType``). The run starts from the checkpoint ``initial``, by default from a new model of the
    settings' seed. The server averages by the class ``aggregator``, by default a ``SampleWeightedMean``. For other options see
    :func:`add_everything`. A ``CourseError`` for what does not fit, or is not heeded."""
    sites, settings, model, weights = start(task, sites, settings, initial)
    method = METHODS[settings.method]
    kind, stays, own = getattr(recipes, method.recipe), method.stays(model), method.arguments(settings)
    if transfer and (kind is recipes.FedOptRecipe or "params_transfer_type" in own):
        raise CourseError(f"{method.title} decides itself what a site sends; leave transfer out.")
    if initial is not None and kind is recipes.FedOptRecipe:  # of which FLARE's optimiser knows nothing
        raise CourseError(f"{method.title} always starts from a new model; leave initial out, or take another method.")
    if transfer not in (None, *TransferType):
        raise CourseError(f"transfer is {transfer!r}; choose TransferType.FULL or TransferType.DIFF, or leave it out.")
    own |= {"params_transfer_type": transfer} if transfer else {}
    if issubclass(kind, recipes.FedAvgRecipe):
        own |= {"key_metric": task.key_metric, "aggregator": (aggregator or SampleWeightedMean)(stays)}
    elif aggregator:
        raise CourseError(f"{method.title} averages in a way of its own; leave aggregator out.")
    made = flares_recipe(kind, task, sites, settings, client, **own)
    start_from(made, weights, Path(made.kept.name))
    know_the_parts(made, task.key_metric)
    if stays:
        made.add_client_output_filter(ExcludeVars(stays), tasks=["train", "submit_model"])
    if kind is recipes.ScaffoldRecipe:
        (workflow,) = server_of(made).workflows
        workflow.controller = RecordedScaffold(num_clients=sites, num_rounds=settings.rounds, persistor_id="persistor")
    return add_everything(made, **options)


def flares_recipe(kind: type[Recipe], task: Task, sites: int, settings: StudySettings, client=None, **own) -> Recipe:
    """A recipe of FLARE's with the arguments that all kinds have, and with the settings in its job; ``kept`` is their folder."""
    network = task.networks[settings.network]
    made = kind(
        name=task.name,
        min_clients=sites,
        num_rounds=settings.rounds,
        model={"class_path": f"{network.__module__}.{network.__name__}", "args": {"seed": settings.seed}},
        train_script=str(client or Path(__file__).parents[1] / task.client),
        **own,
    )
    made.kept = own_folder("settings")  # as long as the recipe, which may be exported again
    settings.write((folder := Path(made.kept.name) / "site") / "src" / CONFIG)
    made.add_client_file(str(folder))  # a folder's content goes beside the script
    return made


def start(task: Task, sites: int, settings: StudySettings | None, initial: Path | None) -> tuple:
    """Number of sites, settings, their new network, and the weights of a checkpoint, if any; a ``CourseError`` for wrong ones."""
    settings = settings or task.settings()
    if not isinstance(settings, task.settings):
        due = f"{task.settings.__module__}.Settings"
        raise CourseError(f"settings is a {type(settings).__name__}; give a {due}, or None.")
    if not isinstance(initial, str | os.PathLike | None):
        raise CourseError(f"initial is a {type(initial).__name__}; give the path of a checkpoint, or None.")
    model = task.new_model(settings.seed, settings.network)
    weights = {} if initial is None else _checkpoint(initial, model)
    if isinstance(weights, str):
        raise CourseError(f"The checkpoint {initial} cannot be the start of {type(model).__name__}: {weights}.")
    return len(site_names(sites)), settings, model, weights


def start_from(recipe: Recipe, weights: dict, folder: Path) -> None:
    """Write the weights of a checkpoint, if there are any, into ``folder``, from which the job takes them along."""
    if weights:
        torch.save(weights, folder / START)
        recipe.add_server_file(str(folder / START))
        server_of(recipe).components["persistor"].source_ckpt_file_full_name = START


def _checkpoint(file: Path, model: torch.nn.Module) -> dict | str:
    """The weights in a checkpoint, in the types of the network; or why it cannot start from it."""
    alone, own = "save model.state_dict() alone", model.state_dict()
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        return f"{error.strerror or error}; give the path of a file"
    except Exception as error:  # what is no file of PyTorch's makes it raise a dozen kinds
        more = re.search(r"GLOBAL (\S+)", str(error))
        return f"it {f'holds {more[1]}, more than weights' if more else 'is half a file, or none of weights'}; {alone}"
    top, first = content.get("model", content) if isinstance(content, dict) else content, next(iter(own))
    places = {None: top, **top} if isinstance(top, dict) else {}
    names = [(place, str(name)) for place, inside in places.items() if isinstance(inside, dict) for name in inside]
    ours = [(place, name.removesuffix(first)) for place, name in names if name.endswith(first)]
    if ours and (None, "") not in ours:
        place, begin = ours[0]
        said = [f"its weights lie under {place!r}"] if place else []
        said += [f"its names start with {begin!r}, as {SAVED_BY.get(begin, 'a wrapper')} saves them"] if begin else []
        return f"{', and '.join(said)}; save model.{begin}state_dict() alone"
    if not isinstance(top, dict) or not all(isinstance(value, torch.Tensor) for value in top.values()):
        held = some_of([*map(repr, places)][1:]) or f"a {type(top).__name__}"
        return f"it holds {held}, not tensors by name; {alone}"
    known, kinds = top.keys() & own.keys(), {key: KINDS[one.is_floating_point()] for key, one in own.items()}
    if odd := [key for key, one in top.items() if key in known and (one.is_meta or one.dtype not in kinds[key])]:
        said = some_of([f"{key!r} is {top[key].dtype}" for key in odd], 3)
        return f"{said}, not as in this network; {alone}"
    weights = top | {key: top[key].detach().to_dense().to(own[key].dtype) for key in known}
    return unlike(weights, shapes(own), "this network") or weights


def add_everything(recipe: Recipe, **options) -> Recipe:
    """All that the course adds to a PyTorch recipe beside its aggregator; what notebook 02 switches on line by line.

    For ``min_clients`` and the times see :func:`add_record`. To ``tracker``, TensorBoard or MLflow, go the sites' curves. With
    ``final_evaluation`` every site validates the final model; it is False where ``add_cross_site_evaluation`` follows."""
    chosen = Options.checked(options, "a recipe's options")
    if not importlib.util.find_spec(chosen.tracker):
        raise CourseError(f"The tracker needs a package that is not installed: pip install {chosen.tracker}")
    add_record(recipe, chosen.min_clients, chosen.round_timeout, chosen.first_contact)
    add_experiment_tracking(recipe, chosen.tracker)
    if chosen.final_evaluation:
        wait = {"validation_timeout": ceil(chosen.round_timeout)} if chosen.round_timeout else {}
        add_final_global_evaluation(recipe, **wait)
    weigh_selection(recipe)
    add_quick_pace(recipe)
    forget_script_folder(recipe)
    return recipe


def add_record(recipe: Recipe, min_clients: int | None = None, round_timeout=None, first_contact=FIRST_CONTACT) -> None:
    """Keep a record of who took part, and say what happens when a site fails; see :class:`src.federation.server.RunRecorder`.

    A round goes on without the others as long as ``min_clients`` sites take part. By default all must: the first site that fails
    ends the run, with an error that names it. It also goes on after ``round_timeout`` seconds, and whoever has not answered has
    failed in this round; by default it waits for a site as long as its process is there, where FLARE's simulator waits for ever.
    Who asks for no work in the first ``first_contact`` seconds is lost. A ``CourseError`` for numbers that make no sense."""
    given = {"min_clients": min_clients, "round_timeout": round_timeout, "first_contact": first_contact}
    Options.checked(given, "a recipe's options")
    job, server = job_of(recipe), server_of(recipe)
    controller, name = server.workflows[0].controller, type(recipe).__name__
    counts = type(controller) is StatisticsController  # its recipe names its sites, and not how many there must be
    everyone = len(named_sites(recipe)) if counts else job.job.min_clients
    min_clients = everyone if min_clients is None else min_clients
    if not 1 <= min_clients <= everyone:
        raise CourseError(f"min_clients is {min_clients}; the job asks {everyone} site(s), so give 1 to {everyone}.")
    if min_clients < everyone and not (counts or isinstance(controller, BaseFedAvg | ScatterAndGather)):
        raise CourseError(f"{name} needs every site in each round; leave min_clients out, or choose another method.")
    if "recorder" in server.components:
        raise CourseError(f"{name} has a record; call add_record once, and not after add_everything.")
    if min_clients < everyone:
        go_on_without(recipe, min_clients)
    if counts:
        told = controller.statistic_configs, controller.writer_id
        made = WholeStatistics(*told, DAY, min_clients=min_clients)
        made.enable_pre_run_task = controller.enable_pre_run_task
        server.workflows[0].controller = made
    job.job.min_clients = min_clients
    job.to_server(RunRecorder(min_clients, round_timeout, first_contact), id="recorder")
    add_to_sites(recipe, LastWords(), "last_words")
    # FLARE waits 60 s for a site that is gone to come back, and does not count one as gone in a task's first 30 s.
    recipe.add_server_config({"dead_client_grace_period": 1.0, "dead_client_check_lead_time": 2.0})


def add_quick_pace(recipe: Recipe) -> None:
    """Let sites ask for work ten times a second, not every 2 s: right for hospitals, and a third of the time of a course's run."""
    look_often(recipe)
    recipe.add_server_config({"server": {"task_request_interval": ASK_SECONDS}})


def weigh_selection(recipe: Recipe) -> None:
    """Let FLARE's model selector weigh the sites' metrics by their number of samples, as the average does; else all count alike."""
    selector = server_of(recipe).components.get("model_selector")
    if selector is None:
        raise CourseError(f"{type(recipe).__name__} selects no model; leave weigh_selection out.")
    selector.weigh_by_local_iter = True
