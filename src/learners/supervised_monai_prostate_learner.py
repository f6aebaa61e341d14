"""The prostate learner: which settings, cases, network and metric one hospital trains and validates with."""

from pathlib import Path

from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext

from src.common.errors import CourseError
from src.common.settings import StudySettings
from src.federation.engine import ProximalTerm
from src.federation.site import Site
from src.learners.supervised_learner import SupervisedLearner
from src.prostate.card import CONFIG_FILE
from src.prostate.training import TASK


class SupervisedMonaiProstateLearner(SupervisedLearner):
    """Segments the prostate on T2 volumes with the course's 3D U-Net, by FedAvg or FedProx.

    A round is ``aggregation_epochs`` passes over the site's training cases. ``train_config_filename`` has the keys of
    :class:`src.prostate.card.Settings`: the job's file, or that of the course."""

    def __init__(self, train_config_filename: str = CONFIG_FILE.name, aggregation_epochs: int = 1):
        super().__init__(aggregation_epochs=aggregation_epochs)
        self.train_config_filename = train_config_filename

    @staticmethod
    def check(settings: StudySettings) -> None:
        """Refuse, by a ``CourseError``, a method of which it knows nothing: it would train FedAvg under another name."""
        if settings.method not in ("fedavg", "fedprox"):
            said = f"The learner knows fedavg and fedprox, not method={settings.method!r}. Use the Client API: client_recipe()."
            raise CourseError(said, "its settings are wrong")

    def set_up(self, name: str, fl_ctx: FLContext) -> Site:
        """Read settings and datalist, prepare all volumes (from the cache where it has them), make network and trainer."""
        app = Path(fl_ctx.get_prop(FLContextKey.APP_ROOT))
        site = Site.open(TASK, name, self._config_file(app), app)
        site.recall()
        self.check(site.settings)
        if site.settings.fedproxloss_mu:
            ProximalTerm(site.settings.fedproxloss_mu).attach(site.trainer)
        return site

    def _config_file(self, app: Path) -> Path:
        """The configuration: looked for in the folders that the job brought along, then in the course's."""
        files = [folder / self.train_config_filename for folder in (app / "custom", app / "config", CONFIG_FILE.parent)]
        return next(filter(Path.is_file, files), files[1])
