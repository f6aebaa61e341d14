"""The MedNIST client: what one hospital runs. A local MONAI training, made a federated one by four calls of FLARE's Client API.

FLARE starts this script once at every site and keeps it running through all rounds: ``flare.init``, then a loop over
``flare.is_running`` with ``flare.receive`` and ``flare.send``.
https://nvflare.readthedocs.io/en/main/programming_guide/execution_api_type/client_api.html"""

from pathlib import Path

import nvflare.client as flare
from nvflare.client.tracking import SummaryWriter

from src.federation.methods import at_site
from src.federation.reasons import run_site
from src.federation.site import Site
from src.mednist.training import TASK


def main(folder: Path) -> None:
    """Take part in one federated run: receive, validate, train, send, until it is over. ``folder`` is this script's, in the job."""
    flare.init()
    site = Site.open(TASK, flare.get_site_name(), folder)
    method = at_site(site)
    writer = SummaryWriter()  # to the server: every site's curves end up in one place

    while flare.is_running():
        received = flare.receive()
        if flare.is_submit_model():  # for the others, to try it on their images
            flare.send(method.submit())
            continue
        method.receive(received)
        metrics = site.evaluate()
        if flare.is_evaluate():  # the final model, after the last round
            flare.send(flare.FLModel(metrics=metrics))
            continue
        loss = method.train(received)
        for name, value in {**metrics, "train_loss": loss, **site.seconds}.items():
            writer.add_scalar(name, value, received.current_round)
        flare.send(flare.FLModel(params=method.trained, metrics=metrics, meta=method.meta()))


if __name__ == "__main__":
    run_site(main, Path(__file__).parent)
