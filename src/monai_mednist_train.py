"""The MedNIST client: what one hospital runs. A local MONAI training, wrapped by FLARE's Client API.

FLARE starts this script once at every site and keeps it running through all rounds. Four calls make a local script
a federated one: ``flare.init`` (in ``run_site``), ``flare.receive``, ``flare.send`` and the loop over ``flare.is_running``.
Client API: https://nvflare.readthedocs.io/en/main/programming_guide/execution_api_type/client_api.html
"""

import copy
import sys
import time
from pathlib import Path

import nvflare.client as flare
from nvflare.apis.fl_constant import FLMetaKey
from nvflare.client.tracking import SummaryWriter

from src.common.engine import pick_device
from src.common.seeds import site_seed
from src.federation.at_site import at_site
from src.federation.site import open_site, run_site
from src.mednist.card import Settings
from src.mednist.training import evaluate, make_trainer, new_model, to_device
from src.mednist.transforms import batches, prepare


def main() -> None:
    """Take part in one federated run: receive, validate, train, send, until the server says that it is over."""
    site = flare.get_site_name()
    parts, settings, cache = open_site(site, Settings.from_words(sys.argv[1:]))
    device = pick_device()
    writer = SummaryWriter()  # to the server: every site's curves end up in one place

    training, validation = prepare(parts["training"], settings, cache), prepare(parts["validation"], settings, cache)
    loader = batches(training, settings, train=True, seed=site_seed(settings.seed, site))
    model = to_device(new_model(settings.seed, settings.network), device)
    trainer = make_trainer(model, loader, settings, device)

    def another():  # for methods that train a second model, which stays at the site
        again = batches(training, settings, train=True, seed=site_seed(settings.seed, site))
        return make_trainer(copy.deepcopy(model), again, settings, device)

    method = at_site(settings, trainer, another, Path(__file__).parent)
    trained = model.state_dict()

    while flare.is_running():
        received = flare.receive()
        if flare.is_submit_model():  # for the others, to try it on their images
            flare.send(flare.FLModel(params=trained))
            continue
        method.receive(received)

        start = time.time()
        metrics = evaluate(model, validation, settings, device)
        if flare.is_evaluate():  # the final model, after the last round
            flare.send(flare.FLModel(metrics=metrics))
            continue
        step = received.current_round
        for name, value in metrics.items():
            writer.add_scalar(name, value, step)
        writer.add_scalar("seconds_validation", time.time() - start, step)

        start = time.time()
        loss = method.train(received)
        writer.add_scalar("train_loss", loss, step)
        writer.add_scalar("seconds_training", time.time() - start, step)
        samples = {FLMetaKey.NUM_STEPS_CURRENT_ROUND: len(training)}
        trained = {name: value.clone() for name, value in model.state_dict().items()}
        flare.send(flare.FLModel(params=trained, metrics=metrics, meta=samples | method.extra()))


if __name__ == "__main__":
    run_site(main)
