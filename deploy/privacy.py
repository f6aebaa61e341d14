"""What a server sees: the updates that it received, and, under homomorphic encryption, how little of them.

FLARE encrypts by CKKS (Cheon et al., *Homomorphic Encryption for Arithmetic of Approximate Numbers*, ASIACRYPT 2017), with TenSEAL.
"""

import importlib.util
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, prod
from pathlib import Path

import numpy as np
import pandas as pd
from nvflare.apis.dxo import from_shareable
from nvflare.apis.shareable import ReservedHeaderKey
from nvflare.app_common.decomposers import numpy_decomposers
from nvflare.app_opt.pt import recipes
from nvflare.fuel.utils import fobs
from nvflare.recipe.spec import Recipe
from nvflare.recipe.utils import add_experiment_tracking
from torch.nn import Module

from deploy.kits import SERVER, need_tenseal
from src.common.errors import CourseError
from src.common.files import write_json
from src.common.settings import StudySettings
from src.common.task import Task, shapes
from src.federation.flare_2_9 import forget_script_folder, job_of
from src.federation.methods import METHODS
from src.federation.recipes import add_quick_pace, add_record, flares_recipe, start
from src.federation.run import Run
from src.federation.server import RECEIVED, KeepReceived

MOST_BYTES = 100e6
"""Of one encrypted update. The server's memory holds those of all sites, and the global model, each several times."""


@dataclass(frozen=True)
class Received:
    """One site's update: ``bytes`` in FLARE's format, what FLARE writes into its ``headers``, what the site says beside its weights
    (``meta``), and the weights themselves, ``tensors`` or ciphertexts by name."""

    bytes: int
    headers: dict
    meta: dict
    tensors: dict

    @property
    def table(self) -> pd.DataFrame:
        """A row a tensor: ``what`` it is, its ``shape``, of a ciphertext the number of values, and its size in ``bytes``."""
        rows = {
            name: ("ciphertext", tuple(value.shape), _bytes(value))
            if is_ciphertext(value)
            else (str(value.dtype), value.shape, value.nbytes)
            for name, value in self.tensors.items()
        }
        return pd.DataFrame.from_dict(rows, orient="index", columns=["what", "shape", "bytes"])


def keep_received(recipe: Recipe) -> None:
    """Let the server of a recipe's job keep the last update that it receives from each site."""
    job_of(recipe).to_server(KeepReceived(), id=RECEIVED)


def received(run: Run) -> dict[str, Received]:
    """Site → its last update, of a run whose recipe went through :func:`keep_received`."""
    files, found = sorted((run.server / RECEIVED).glob("*.fobs")), {}
    if not files:
        raise CourseError(f"The run in {run.folder} kept no updates. Call keep_received(recipe) before it is executed.")
    numpy_decomposers.register()
    if importlib.util.find_spec("tenseal"):
        from nvflare.app_opt.he import decomposers

        decomposers.register()
    for file in files:
        answer = fobs.loads(content := file.read_bytes())
        held = from_shareable(answer)
        heads = {
            name: one for name, one in answer[ReservedHeaderKey.HEADERS].items() if isinstance(one, str | int | dict)
        }
        found[file.stem] = Received(len(content), heads, held.meta, held.data)
    return found


def is_ciphertext(value: object) -> bool:
    """Whether it is a vector of TenSEAL's, or the bytes of one, as in a checkpoint."""
    return isinstance(value, bytes) or hasattr(value, "ciphertext")


def _bytes(vector) -> int:
    """How many bytes FLARE sends for a ciphertext: with each goes a copy of its context, the keys to compute with it."""
    return len(vector.serialize()) + len(vector.context().serialize())


def decrypt(tensors: Mapping[str, object], kit: Path) -> dict[str, np.ndarray]:
    """What the owner of a kit reads in ciphertexts, whoever encrypted them: flat arrays of doubles, by name.

    A site's update holds its weights times its number of samples; the mean of all, as in the server's checkpoint, its weights. A
    ``CourseError`` for the server's kit, which holds no secret key, and for a kit without keys."""
    need_tenseal()
    import tenseal

    file = next((Path(kit) / "startup").glob("*_context.tenseal"), None)
    context = tenseal.context_from(file.read_bytes()) if file else None
    if not (context and context.has_secret_key()):
        raise CourseError(
            f"The kit {kit} holds no secret key: it can read nothing. Give a site's kit of Federation(..., he=True)."
        )
    raw = {name: value if isinstance(value, bytes) else value.serialize() for name, value in tensors.items()}
    return {name: np.array(tenseal.ckks_vector_from(context, value).decrypt()) for name, value in raw.items()}


def encrypted_bytes(model: Module) -> int:
    """How many bytes FLARE sends for a network whose tensors it encrypts, computed from what one ciphertext and its context have.

    A ciphertext holds 4,096 numbers under the parameters of FLARE's builder, which :func:`deploy.kits.project` takes; a tensor
    begins a new one. A ``CourseError`` where TenSEAL is not installed."""
    need_tenseal()
    import tenseal
    from nvflare.lighter.impl.he import HEBuilder

    builder = HEBuilder()
    builder.initialize(None, None)
    context = tenseal.context_from(builder.get_serialized_context(is_client=True))
    vector, slots = tenseal.ckks_vector(context, [0.5]), builder.poly_modulus_degree // 2
    sizes = [prod(shape) for shape in shapes(model.state_dict()).values()]
    return sum(ceil(size / slots) for size in sizes) * len(vector.serialize()) + len(sizes) * len(context.serialize())


def he_recipe(task: Task, sites: int, settings: StudySettings | None = None, client=None, **options) -> Recipe:
    """FLARE's ``FedAvgRecipeWithHE``: the sites encrypt their weights, and the server adds up what it cannot read.

    It runs in a federation whose kits hold keys, ``Federation(..., he=True)``. Arguments are as for
    :func:`src.federation.recipes.client_recipe`, ``options`` those of :func:`src.federation.recipes.add_record`. No model is
    selected, and no check for NaN can look into one. A ``CourseError`` for another method than FedAvg, for a
    network whose update would have more than ``MOST_BYTES``, and where TenSEAL is not installed."""
    need_tenseal()

    sites, settings, model, _ = start(task, sites, settings, None)
    name = type(model).__name__
    if METHODS[settings.method].recipe != "FedAvgRecipe" or METHODS[settings.method].personal:
        raise CourseError(f"{METHODS[settings.method].title} is not made for encrypted weights; take FedAvg.")
    if (size := encrypted_bytes(model)) > MOST_BYTES:
        plain = sum(value.nbytes for value in model.state_dict().values())
        said = f"An encrypted update of {name} would have {size / 1e6:,.0f} MB instead of {plain / 1e6:,.0f} MB"
        raise CourseError(
            f"{said}, more than the course lets a server add up ({MOST_BYTES / 1e6:.0f} MB). Take a smaller network."
        )
    made = flares_recipe(recipes.FedAvgRecipeWithHE, task, sites, settings, client)
    add_record(made, **options)
    add_experiment_tracking(made, "tensorboard")
    add_quick_pace(made)
    forget_script_folder(made)
    return made


def hand_on_changed(server: Path, job: str, file: str, more: bytes) -> None:
    """Do what somebody can who has taken over the server: add to a file of a job that is stored there, for the sites alone.

    ``server`` is its kit, and ``file`` a path in the job's app, such as ``custom/src/monai_mednist_train.py``. The server keeps the
    app that was signed; the next ``session.clone_job(job)`` hands the changed one on. A ``CourseError`` for a file that is none."""
    store = Path(server) / "jobs-storage" / job
    about = json.loads((store / "meta").read_text())
    with zipfile.ZipFile(store / "data") as stored:
        content = {name: stored.read(name) for name in stored.namelist()}
    app, folder = next(iter(about["deploy_map"])), about["job_folder_name"]
    begin, changed = f"{folder}/{app}/", f"{folder}/changed/"
    if begin + file not in content:
        raise CourseError(f"The job {job} has no file {file!r} in its app.")
    copy = {changed + name.removeprefix(begin): value for name, value in content.items() if name.startswith(begin)}
    copy[changed + file] += more
    with zipfile.ZipFile(store / "data", "w") as stored:
        for name, value in (content | copy).items():
            stored.writestr(name, value)
    sites = [line.partition(":")[0] for line in about["job_deploy_detail"]]
    about["deploy_map"] = {app: [SERVER], "changed": [one for one in sites if one != SERVER]}
    write_json(store / "meta", about)
