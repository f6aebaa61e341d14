"""The prostate client: what one hospital runs, with a function for each kind of task that the server gives.

MedNIST's script read from the other end: first the tasks, for each of which FLARE's ``Learner`` has a method too, then the loop."""

from pathlib import Path

import nvflare.client as flare
from nvflare.client.tracking import SummaryWriter

from src.federation.methods import at_site
from src.federation.reasons import run_site
from src.federation.site import Site
from src.prostate.training import TASK


def main(folder: Path) -> None:
    """Take part in one federated run: answer each task of the server, until it is over. ``folder`` is this script's, in the job."""
    flare.init()
    hospital = Site.open(TASK, flare.get_site_name(), folder)
    part, curves = at_site(hospital), SummaryWriter()

    def train(model: flare.FLModel) -> flare.FLModel:
        """How good is the model that came in? Then train it on our own patients."""
        dice = validate(model).metrics
        numbers = {**dice, "train_loss": part.train(model), **hospital.seconds}
        for tag, number in numbers.items():
            curves.add_scalar(tag, number, global_step=model.current_round)
        return flare.FLModel(params=part.trained, metrics=dice, meta=part.meta())

    def validate(model: flare.FLModel) -> flare.FLModel:
        """The received model on our own validation cases."""
        part.receive(model)
        return flare.FLModel(metrics=hospital.evaluate())

    def submit_model(model: flare.FLModel) -> flare.FLModel:
        """Our own last model, for the other hospitals to try."""
        return part.submit()

    tasks = {"train": train, "validate": validate, "submit_model": submit_model}
    while flare.is_running():
        model = flare.receive()
        flare.send(tasks[flare.get_task_name()](model))


if __name__ == "__main__":
    run_site(main, Path(__file__).parent)
