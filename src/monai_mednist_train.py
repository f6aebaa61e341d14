"""The MedNIST client: what one hospital runs. A local MONAI training, wrapped by FLARE's Client API.

FLARE starts this script once at every site and keeps it running through all rounds. Four calls make a local script
a federated one: ``flare.init``, ``flare.receive``, ``flare.send`` and the loop over ``flare.is_running``.
Client API: https://nvflare.readthedocs.io/en/main/programming_guide/execution_api_type/client_api.html
"""

import argparse
import time
from pathlib import Path
from urllib.parse import unquote, urlparse

import nvflare.client as flare
import torch
from nvflare.apis.fl_constant import FLMetaKey
from nvflare.client.tracking import SummaryWriter

from src import mednist, training
from src.densenet import DenseNet121


def parse_arguments() -> argparse.Namespace:
    """The settings of the local training; the same for every site."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--datalists", required=True, help="folder with <site>.json, as a path or a file:// address")
    parser.add_argument("--rounds", type=int, required=True, help="rounds over which the learning rate falls to 0")
    parser.add_argument("--local_epochs", type=int, default=1)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument("--threads", type=int, default=0, help="CPU threads of this site; 0 leaves PyTorch's choice")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def datalist_folder(address: str) -> Path:
    """The folder behind a path or a ``file://`` address: FLARE splits arguments at blanks, the address has %20."""
    return Path(unquote(urlparse(address).path))


def load_weights(model: torch.nn.Module, params: dict) -> None:
    """Put the received global weights into the model, each in the type that the model holds."""
    model.load_state_dict({name: torch.as_tensor(value) for name, value in params.items()})


def main() -> None:
    """Take part in one federated run: receive, validate, train, send, until the server says that it is over."""
    args = parse_arguments()
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    device = training.pick_device()

    flare.init()
    site = flare.get_site_name()
    writer = SummaryWriter()  # to the server: every site's curves end up in one place
    datalist = mednist.read_site_datalist(datalist_folder(args.datalists) / f"{site}.json")

    train_loader = mednist.loader(datalist["training"], batch_size=args.batch_size, train=True, seed=args.seed)
    val_loader = mednist.loader(datalist["validation"], batch_size=args.batch_size, train=False)

    model = training.prepare_model(DenseNet121(), device)
    optimizer = torch.optim.Adam(model.parameters(), lr=args.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=args.rounds)
    trainer = training.classification_trainer(model, train_loader, optimizer, device)

    while flare.is_running():
        received = flare.receive()
        if received is None:
            break
        load_weights(model, received.params)

        start = time.time()
        metrics = training.evaluate(model, val_loader, device)
        for name, value in metrics.items():
            writer.add_scalar(f"val_{name}", value, received.current_round)
        writer.add_scalar("seconds_validation", time.time() - start, received.current_round)
        samples = {FLMetaKey.NUM_STEPS_CURRENT_ROUND: len(datalist["training"])}
        if flare.is_evaluate():
            flare.send(flare.FLModel(metrics=metrics, meta=samples))
            continue

        start = time.time()
        loss = training.train_for(trainer, args.local_epochs)
        schedule.step()
        writer.add_scalar("train_loss", loss, received.current_round)
        writer.add_scalar("seconds_training", time.time() - start, received.current_round)
        flare.send(flare.FLModel(params=model.state_dict(), metrics=metrics, meta=samples))


if __name__ == "__main__":
    main()
