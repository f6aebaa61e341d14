"""The prostate learner: which settings, cases, network and metric one hospital trains and validates with."""

from pathlib import Path

import torch
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext

from src import prostate
from src.errors import CourseError
from src.learners.supervised_learner import SupervisedLearner
from src.prostate_settings import CONFIG_FILE, read_settings
from src.prostate_training import make_trainer, new_model, pick_device, site_seed, train_loader, validate
from src.prostate_transforms import prepare

KEY_METRIC = "val_dice"


class SupervisedMonaiProstateLearner(SupervisedLearner):
    """Segments the prostate on T2 volumes with the course's 3D U-Net.

    Each round draws one augmented patch of every training case in each epoch. The learning rate falls along a cosine over all
    rounds together; AdamW's running means stay at the site. The metric ``val_dice`` is the mean Dice over the site's validation
    cases, each predicted whole by a sliding window, on the grid that the network sees.

    Args:
        train_config_filename: JSON with the keys of :class:`src.prostate_settings.TrainSettings`: a path, or the name of a file
            that the job brought along, or of one in ``src/config``.
        aggregation_epochs: passes over the site's training cases in each round.
    """

    def __init__(self, train_config_filename: str = CONFIG_FILE.name, aggregation_epochs: int = 1):
        super().__init__(aggregation_epochs=aggregation_epochs)
        self.train_config_filename = train_config_filename
        self.settings = None
        self.validation = []

    def set_up(self, site: str, fl_ctx: FLContext) -> None:
        """Read settings and datalist, prepare all volumes (from the cache where it has them), make network and optimiser.

        Raises:
            CourseError: names the file and the key, or the site and the case, that cannot be used.
        """
        self.settings = read_settings(self._config_file(fl_ctx))
        if self.settings.threads:
            torch.set_num_threads(self.settings.threads)
        datalist = self.settings.datalist_file(site)
        items = {
            part: [{**{key: str(path) for key, path in item.items()}, "site": site} for item in cases]
            for part, cases in prostate.read_datalist(datalist, self.settings.dataset_folder).items()
        }
        for part in ("training", "validation"):
            if not items.get(part):
                raise CourseError(f"{site}: {datalist} lists no {part} case.")
        training = prepare(items["training"], self.settings)
        self.validation = prepare(items["validation"], self.settings)
        device = pick_device()
        model = new_model(self.settings.seed).to(device)
        self.trainer = make_trainer(model, self.settings, device, self.settings.fedproxloss_mu)
        self.train_batches = train_loader(training, self.settings, site_seed(self.settings.seed, site))
        self.training_cases = len(training)

    def evaluate(self, should_stop) -> dict[str, float]:
        """Mean Dice over the site's validation cases as ``val_dice``."""
        scores = validate(self.trainer.model, self.validation, self.settings, self.trainer.device, should_stop)
        return {KEY_METRIC: sum(scores) / max(1, len(scores))}

    def _config_file(self, fl_ctx: FLContext) -> Path:
        """The configuration: a path as it is; a name is looked for in the job's folders, then in the course's."""
        named = Path(self.train_config_filename).expanduser()
        if named.is_absolute():
            return named
        app = fl_ctx.get_prop(FLContextKey.APP_ROOT)
        folders = [Path(app) / "custom", Path(app) / "config"] if app else []
        places = [folder / named for folder in [*folders, CONFIG_FILE.parent]]
        for place in places:
            if place.is_file():
                return place
        raise CourseError(
            f"There is no training configuration {self.train_config_filename!r}; looked in "
            + ", ".join(str(place.parent) for place in places)
        )
