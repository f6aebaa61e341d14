"""The prostate learner: which settings, cases, network and metric one hospital trains and validates with."""

from pathlib import Path

from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext

from src.common.engine import pick_device
from src.common.errors import CourseError
from src.common.seeds import site_seed
from src.federation.site import open_site
from src.learners.supervised_learner import SupervisedLearner
from src.prostate.card import CONFIG_FILE, Settings
from src.prostate.training import evaluate, make_trainer, new_model, to_device
from src.prostate.transforms import batches, prepare


class SupervisedMonaiProstateLearner(SupervisedLearner):
    """Segments the prostate on T2 volumes with the course's 3D U-Net.

    Each round draws one augmented patch of every training case in each epoch. The learning rate falls along a cosine over all
    rounds together. The metric ``val_dice`` is the mean Dice over the site's validation cases, each predicted whole by a sliding
    window, on the grid that the network sees.

    Args:
        train_config_filename: JSON with the keys of :class:`src.prostate.card.Settings`: a file that the job brought along, or
            that of the course.
        aggregation_epochs: passes over the site's training cases in each round.
    """

    def __init__(self, train_config_filename: str = CONFIG_FILE.name, aggregation_epochs: int = 1):
        super().__init__(aggregation_epochs=aggregation_epochs)
        self.train_config_filename = train_config_filename

    def set_up(self, site: str, fl_ctx: FLContext) -> None:
        """Read settings and datalist, prepare all volumes (from the cache where it has them), make network and trainer.

        Raises:
            CourseError: names the file and the key, or the site and the case, that cannot be used.
        """
        parts, settings, cache = open_site(site, Settings.read(self._config_file(fl_ctx)))
        self.settings, self.device = settings, pick_device()
        training = prepare(parts["training"], settings, cache)
        self.validation = prepare(parts["validation"], settings, cache)
        loader = batches(training, settings, train=True, seed=site_seed(settings.seed, site))
        self.trainer = make_trainer(
            to_device(new_model(settings.seed, settings.network), self.device), loader, settings, self.device
        )
        self.training_items = len(training)

    def evaluate(self, should_stop) -> dict[str, float]:
        """Mean Dice over the site's validation cases as ``val_dice``."""
        return evaluate(self.trainer.network, self.validation, self.settings, self.device, should_stop)

    def _config_file(self, fl_ctx: FLContext) -> Path:
        """The configuration: looked for in the folders that the job brought along, then in the course's."""
        app = fl_ctx.get_prop(FLContextKey.APP_ROOT)
        folders = [Path(app) / "custom", Path(app) / "config"] if app else []
        places = [folder / self.train_config_filename for folder in [*folders, CONFIG_FILE.parent]]
        for place in places:
            if place.is_file():
                return place
        raise CourseError(
            f"There is no training configuration {self.train_config_filename!r}; looked in "
            + ", ".join(str(place.parent) for place in places),
            "its training configuration is missing",
        )
