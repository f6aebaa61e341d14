"""DP-SGD at a site: Abadi et al., *Deep Learning with Differential Privacy*, CCS 2016, by Opacus, which is imported only here.

Each image's gradient is cut to the norm ``dp_clip``, their sum gets noise of ``dp_noise`` times that norm, and chance says which
images are in a step: so nobody who sees all that the site sends learns much of any one image. https://opacus.ai"""

import importlib.util
import warnings

import numpy as np
import torch

from src.common.errors import CourseError
from src.common.settings import StudySettings
from src.federation.engine import SupervisedTrainer

DELTA = 1e-5  # the chance that is left for the promise of ε to fail
NOBODY_CARES = 100.0  # above it ε promises nothing: a bound is enough, and the exact sum would not fit into memory


def make_private(trainer: SupervisedTrainer, settings: StudySettings):
    """Let a trainer of :func:`src.federation.engine.make_trainer` take private steps from now on; its network keeps its names.

    Returns Opacus' accountant, whose ``state_dict`` must outlive the process: :func:`spent` reads it. The loss must be a mean over
    images, and noise and order are drawn from a seed that nobody knows, for the server, who knows the study's, could else
    subtract the one and guess the other. A ``CourseError`` without Opacus, or for layers that mix the images of a batch."""
    if importlib.util.find_spec("opacus") is None:
        raise CourseError("dp_clip needs Opacus, which is not here; pip install opacus", "its software lacks Opacus")
    from opacus import PrivacyEngine
    from opacus.validators import ModuleValidator

    model = trainer.network
    if problems := ModuleValidator.validate(model.train(), strict=False):
        said = f"{type(model).__name__} cannot be private: {len(problems)} of its layers, such as BatchNorm, mix images"
        advice = "Choose a network without them (SmallNet), or with GroupNorm, as opacus.validators.ModuleValidator.fix puts it in."
        raise CourseError(f"{said} of a batch. {advice}", "its settings are wrong")
    for layer in model.modules():
        if getattr(layer, "inplace", False):  # MONAI's ReLU writes over what an image's gradient is computed from
            layer.inplace = False
    (secret := torch.Generator(trainer.state.device)).seed()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Secure RNG turned off")  # a course may; a study should install torchcsprng
        engine = PrivacyEngine(accountant="prv")
    _, trainer.optimizer, trainer.data_loader = engine.make_private(
        module=model,
        optimizer=trainer.optimizer,
        data_loader=trainer.data_loader,
        noise_multiplier=settings.dp_noise,
        max_grad_norm=settings.dp_clip,
        noise_generator=secret,
        wrap_model=False,
    )
    # PyTorch says that no gradient of the images themselves is computed: nobody needs one.
    warnings.filterwarnings("ignore", "Full backward hook is firing")
    loader, loss = trainer.data_loader, trainer.loss_function
    loader.collate_fn([loader.dataset[0]])  # so it knows what an empty batch looks like, should the first be one
    # The mean over no images is NaN; the step must be made all the same, of noise alone.
    trainer.loss_function = lambda outputs, labels: loss(outputs, labels) if len(labels) else outputs.sum()
    return engine.accountant


def spent(accountant, delta: float = DELTA) -> float:
    """The ε that all steps so far have spent of an image's privacy at this site, for ``delta``: infinity without noise.

    By Opacus' PRV accountant (Gopi et al., *Numerical Composition of Differential Privacy*, NeurIPS 2021), to half a percent; by
    Rényi's bound where that exceeds 100. Metrics, counts, and trainings in which settings were chosen are outside of it."""
    from opacus.accountants import RDPAccountant

    if not accountant.history or not all(noise for noise, _, _ in accountant.history):
        return np.inf if accountant.history else 0.0
    bound = RDPAccountant()
    bound.history = accountant.history
    most = float(bound.get_epsilon(delta, alphas=[*(1 + np.geomspace(1e-3, 10, 60)), *range(12, 1000, 8)]))
    if most > NOBODY_CARES:
        return most
    # A sample rate of 1 leaves nothing to the logarithm of what is left out; Opacus' first guess of a range may be a wide one.
    with np.errstate(divide="ignore"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Optimal order")
        return float(accountant.get_epsilon(delta, eps_error=min(0.01, most / 300)))
