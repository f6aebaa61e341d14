"""A study of the course as a Flower app: the same sites, loaders, network, optimiser and threads; Flower carries the weights.

https://flower.ai/docs/framework/tutorial-quickstart-pytorch.html"""

import functools
import json
import sys
import time

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

from data_scripts.prepare import prepare
from data_scripts.together import read_sites
from src.federation.site import Site
from src.tasks import tasks


@functools.cache  # of an actor, which may serve several sites; Flower keeps none of their objects
def site_of(task: str, name: str) -> Site:
    """The site, put together once as FLARE's client does."""
    torch.set_num_threads(1)
    one = tasks()[task]
    return Site(one, one.settings(), read_sites(one.settings().data)[name], name)


def apps(task: str, names: list[str], kept: str) -> tuple[ServerApp, ClientApp]:
    """What Flower runs at the server, which writes the last weights into the file ``kept``, and at a site."""
    server, client, settings = ServerApp(), ClientApp(), tasks()[task].settings()

    @client.train()
    def train(message: Message, context: Context) -> Message:
        site = site_of(task, names[context.node_config["partition-id"]])
        site.model.load_state_dict(message.content["arrays"].to_torch_state_dict())
        numbers = {**site.evaluate(), "train_loss": site.train(), "num-examples": len(site.training)}
        content = {"arrays": ArrayRecord(site.model.state_dict()), "metrics": MetricRecord(numbers)}
        return Message(content=RecordDict(content), reply_to=message)

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        every = dict.fromkeys(("min_train_nodes", "min_available_nodes"), len(names))
        first = ArrayRecord(tasks()[task].new_model(settings.seed, settings.network).state_dict())
        result = FedAvg(fraction_evaluate=0.0, **every).start(grid, first, num_rounds=settings.rounds)
        torch.save(result.arrays.to_torch_state_dict(), kept)

    return server, client


def main(task: str, kept: str) -> None:
    """Run the study of a task's own settings in Flower's simulation, and print what it took as the last line."""
    names = list(read_sites(prepare(task)))
    backend = {
        "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
        "init_args": {"num_cpus": 2, "log_to_driver": False},
    }
    started = time.perf_counter()
    run_simulation(*apps(task, names, kept), num_supernodes=len(names), backend_config=backend)
    print(json.dumps({"seconds": time.perf_counter() - started}))


if __name__ == "__main__":
    from benchmarks.peer_flower.app import main  # by its name, as the actors import it

    main(*sys.argv[1:])
