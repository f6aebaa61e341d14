"""Growth with the number of sites: lines and paper rounds are right, reports go on, and the page names what FLARE has."""

import importlib.util
import inspect
import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from nvflare.apis.fl_constant import ConfigVarName, FLMetaKey
from nvflare.apis.fl_context import FLContext
from nvflare.app_common.abstract.fl_model import FLModel
from nvflare.app_common.decomposers.numpy_decomposers import NumpyArrayDecomposer
from nvflare.app_common.workflows.fedavg import FedAvg
from nvflare.app_opt.pt.decomposers import TensorDecomposer
from nvflare.app_opt.pt.lazy_tensor_dict import LazyTensorDict
from nvflare.app_opt.pt.recipes import FedAvgRecipe
from nvflare.client.config import ExchangeFormat
from nvflare.edge.executors.hug import HierarchicalUpdateGatherer
from nvflare.lighter import tree_prov
from nvflare.lighter.constants import ParticipantType, PropKey
from nvflare.recipe.sim_env import SimEnv
from nvflare.recipe.spec import Recipe

from benchmarks import scale
from src.federation.aggregation import SampleWeightedMean
from src.federation.methods import client_recipe
from src.federation.server import add_everything
from src.mednist.card import CARD, Settings
from tests.runs_support import drawings

RECORD = [
    {"time": 104.0, "event": "round started", "round": 0},
    {"time": 120.0, "event": "model saved", "round": 0},
    {"time": 121.0, "event": "round started", "round": 1},
    {"time": 124.0, "event": "model saved", "round": 1},
    {"time": 125.0, "event": "round started", "round": 2},
    {"time": 130.0, "event": "model saved", "round": 2},
    {"time": 133.0, "event": "run ended", "round": 2},
]


def row(sites: int) -> dict:
    """A measured row in which all grows as a line: 10 + 2 n seconds, 1 GB + 0.5 GB · n."""
    seconds = {key: 10.0 + 2 * sites for key in scale.QUANTITIES if key.endswith("_seconds")}
    sizes = {key: 1e9 + 5e8 * sites for key in scale.QUANTITIES if not key.endswith("_seconds")}
    return {**seconds, **sizes, "round_bytes_loopback": None, "model_bytes": 1e6}


def report(*sites: int) -> dict:
    rows = {str(n): row(n) for n in sites}
    return scale.with_fits({**scale.conditions(3, 6), "memory_bytes": 9e9, "rows": rows})


def test_a_line_and_its_largest_residual():
    exact = scale.fit([2, 4, 8], [7.0, 11.0, 19.0])
    assert (exact.a, exact.b) == (pytest.approx(3), pytest.approx(2))
    assert exact.residual == pytest.approx(0, abs=1e-9)
    bent = scale.fit([1, 2, 3], [1.0, 2.0, 6.0])  # least squares: -2 + 2.5 n, away by 0.5, 1 and 0.5
    assert (bent.a, bent.b, bent.residual) == (pytest.approx(-2), pytest.approx(2.5), pytest.approx(0.5))
    assert scale.fit([4], [1.0]) is None and scale.fit([4, 4], [1.0, 2.0]) is None


def test_how_many_sites_a_memory_holds():
    line = scale.Fit(a=1e9, b=5e8, residual=0.0)
    assert scale.capacity(line, 3e9) == 4 and scale.capacity(line, 3.4e9) == 4
    assert scale.capacity(line, 5e8) == 0
    assert scale.capacity(scale.Fit(1e9, 0.0, 0.0), 3e9) is None


@pytest.mark.parametrize(
    ("sites", "fan_out", "served"),
    [
        (100, None, [100]),
        (20, 32, [20]),
        (32, 32, [32]),
        (33, 32, [2, 32]),
        (100, 32, [4, 32]),
        (1000, 32, [32, 32]),
        (1025, 32, [2, 32, 32]),
    ],
)
def test_a_tree_of_aggregators(sites, fan_out, served):
    assert scale.levels(sites, fan_out) == served


def test_a_fan_out_of_one_is_no_tree():
    with pytest.raises(ValueError, match="at least 2"):
        scale.levels(5, 1)


def test_a_round_on_paper():
    """A model of 25 MB takes 2 s of a line of 12.5 MB/s."""
    flat = scale.paper_round(10, 25e6, 0.5)
    assert vars(flat) == {
        "line_bytes": 250e6,
        "send_seconds": 20.0,
        "receive_seconds": 20.0,
        "averaging_seconds": 5.0,
        "held_bytes": 275e6,
        "in_time_bytes": 100e6,
    }
    half = scale.paper_round(10, 25e6, 0.5, share=0.5)
    assert (half.line_bytes, half.send_seconds, half.held_bytes) == (125e6, 10.0, flat.held_bytes)
    tree = scale.paper_round(10, 25e6, 0.5, fan_out=4)  # the server serves 3, the busiest aggregator 4
    assert (tree.line_bytes, tree.send_seconds, tree.averaging_seconds) == (75e6, 14.0, 3.5)
    assert (tree.held_bytes, tree.in_time_bytes) == (125e6, 100e6)
    assert scale.paper_round(10, 25e6, 0.5, line=25e6).send_seconds == 10.0


def test_memory_of_averaging_in_time_is_that_of_the_course_s_mean():
    """Its sum is two models, for it is in double precision, and does not grow with the answers."""
    params = {"weight": np.ones((64, 64), np.float32), "bias": np.ones(64, np.float32)}
    model, mean = sum(value.nbytes for value in params.values()), SampleWeightedMean()
    for number in range(3):
        meta = {"client_name": f"site-{number}", FLMetaKey.NUM_STEPS_CURRENT_ROUND: 1}
        mean.accept_model(FLModel(params=params, meta=meta))
        assert sum(value.nbytes for value in mean._sums.values()) == (scale.COPIES_IN_TIME - 2) * model


def test_where_a_run_s_time_went():
    assert scale.timings({"started": 100.0, "seconds": 40.0}, RECORD) == {
        "start_up_seconds": 4.0,
        "first_round_seconds": 16.0,
        "round_seconds": 4.0,
        "tear_down_seconds": 7.0,
    }
    only = [entry for entry in RECORD if entry["round"] == 0] + [RECORD[-1]]
    assert scale.timings({"started": 100.0, "seconds": 40.0}, only)["round_seconds"] == 16.0


def test_bytes_of_a_round_over_the_loopback_interface():
    traffic = [(100.0, 0), (121.0, 1000), (124.0, 1600), (125.0, 1600), (130.0, 2400), (133.0, 9000)]
    assert scale.loopback_of_a_round(traffic, RECORD) == pytest.approx(700)  # the median of 600 and 800
    assert scale.loopback_of_a_round([], RECORD) is None


def test_more_answers_take_longer():
    weights = {"weight": np.ones((512, 512), np.float32)}
    assert 0 < scale.aggregation_seconds(weights, 1) < scale.aggregation_seconds(weights, 40)


def test_a_report_says_what_its_rows_say():
    made = report(2, 4, 8)
    assert made["fits"]["together_bytes"] == pytest.approx({"a": 1e9, "b": 5e8, "residual": 0.0}, abs=1e-3)
    assert made["fits"]["round_bytes_loopback"] is None
    assert made["holds"] == {"this machine": 16, "16 GiB": 32}
    assert set(made["paper"]) == {"100", "1000"}
    thousand = made["paper"]["1000"]
    assert set(thousand) == set(scale.WAYS)
    assert thousand["flat, full weights"]["line_bytes"] == 1e9
    assert thousand["flat, full weights"]["averaging_seconds"] == pytest.approx(2000)
    assert json.loads(json.dumps(made)) == made


def test_the_tables_of_a_report():
    growth = scale.growth_table(report(2, 4)).splitlines()
    assert growth[0].endswith("| 2 sites | 4 sites | with n sites | largest residual |")
    assert growth[2] == "| wall time of the run, s | 14.0 | 18.0 | 10.0 + 2.00 n | 0 % |"
    assert growth[-1].endswith("measured, MB | – | – | – | – |")
    assert len(growth) == 2 + len(scale.QUANTITIES)
    assert "| 16 GiB | 32 |" in scale.holding_table(report(2, 4))
    paper = scale.paper_table(report(2, 4)).splitlines()
    assert len(paper) == 2 + len(scale.LARGE) * len(scale.WAYS)
    assert paper[2].startswith("| 100 | flat, full weights | 100 MB | 8.00 s | 8.00 s | 200 s | 101 MB | 4.00 MB |")
    assert [make({}) for make in scale.TABLES.values()] == [scale.NOTHING] * 3
    one = report(2)
    assert "| – | – |" in scale.growth_table(one)
    assert scale.holding_table(one) == scale.paper_table(one) == scale.TOO_FEW


def test_it_measures_what_is_missing_and_nothing_else(tmp_path, monkeypatch, capsys):
    measured = []

    def measure(sites, rounds, per_class):
        measured.append(sites)
        return row(sites)

    monkeypatch.setattr(scale, "measure", measure)
    monkeypatch.setenv("COURSE_DATA_SOURCE", "generated")
    out = ["--out", str(tmp_path / "new" / "scale.json")]
    for _ in range(2):
        assert scale.main(["--sites", "4", "2", *out]) == 0
    assert measured == [2, 4]
    assert scale.main(["--sites", "2", "8", *out]) == 0 and measured == [2, 4, 8]
    assert scale.main(["--table", *out]) == 0 and len(measured) == 3
    assert "| 2 sites | 4 sites | 8 sites |" in capsys.readouterr().out
    kept = json.loads((tmp_path / "new" / "scale.json").read_text())
    assert set(kept["rows"]) == {"2", "4", "8"} and kept["holds"]
    assert scale.main(["--sites", "2", "--rounds", "2", *out]) == 0 and measured[3:] == [2]
    monkeypatch.setattr(scale, "machine", lambda: {"cores": 99})
    assert scale.main(["--sites", "2", "--rounds", "2", *out]) == 0 and measured[4:] == [2]
    with pytest.raises(SystemExit):
        scale.main(["--sites", "1000", *out])


def test_the_tables_of_the_page_are_those_of_the_kept_report():
    text = scale.PAGE.read_text(encoding="utf-8")
    kept = json.loads(scale.REPORT.read_text(encoding="utf-8")) if scale.REPORT.is_file() else {}
    assert all(f"<!-- {name}: made by python -m benchmarks.scale --page -->" in text for name in scale.TABLES)
    assert scale.with_tables(text, kept) == text, "run: python -m benchmarks.scale --page"
    if kept:  # what was fitted and computed is what the rows say today
        assert scale.with_tables(text, scale.with_fits(kept)) == text, "run: python -m benchmarks.scale --page"


def test_the_page_says_with_which_numbers_was_measured_and_computed():
    assert (scale.ROUNDS, scale.PER_CLASS, scale.FAN_OUT) == (
        3,
        6,
        32,
    )  # "three rounds", "six of each class", "32 sites each"
    assert scale.LINE * 8 == 100e6 and scale.LARGE == (100, 1000)


@pytest.mark.slow
def test_two_sites_are_measured(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_DATA", str(tmp_path / "data"))
    found = scale.measure(2, rounds=1, per_class=3, folder=drawings(tmp_path, per_class=6))
    assert set(found) == {*scale.QUANTITIES, "model_bytes"}
    assert found["round_bytes"] == pytest.approx(4 * found["model_bytes"])
    assert 25e6 < found["model_bytes"] < 32e6  # DenseNet121: seven million weights of four bytes
    parts = ("start_up_seconds", "first_round_seconds", "tear_down_seconds")
    assert all(found[key] > 0 for key in parts) and sum(found[key] for key in parts) < found["wall_seconds"]
    assert found["site_bytes_mean"] <= found["site_bytes_max"] < found["together_bytes"]
    assert found["round_bytes_loopback"] is None or found["round_bytes_loopback"] > 0.9 * found["round_bytes"]


# What the page says of FLARE.


def takes(what, name: str) -> bool:
    return name in inspect.signature(what).parameters


def written(module: str, name: str) -> bool:
    """A class of FLARE's by its source: to import it needs a package that the course does not install."""
    source = Path(importlib.util.find_spec(f"nvflare.{module}").origin).read_text(encoding="utf-8")
    return f"class {name}(" in source


SWITCHES = {
    "client_memory_gc_rounds": lambda name: takes(FedAvgRecipe, name),
    "num_threads": lambda name: takes(SimEnv, name),
    "round_timeout": lambda name: takes(add_everything, name),
    "min_clients": lambda name: takes(FedAvgRecipe, name),
    "server_memory_gc_rounds": lambda name: takes(FedAvgRecipe, name),
    "ModelQuantizer": lambda name: written("app_opt.pt.quantization.quantizer", name),
    "ModelDequantizer": lambda name: written("app_opt.pt.quantization.dequantizer", name),
    "np_download_chunk_size": lambda name: (
        NumpyArrayDecomposer()._config_var_name(ConfigVarName.DOWNLOAD_CHUNK_SIZE) == name
    ),
    "tensor_download_chunk_size": lambda name: (
        TensorDecomposer()._config_var_name(ConfigVarName.DOWNLOAD_CHUNK_SIZE) == name
    ),
    "streaming_per_request_timeout": lambda name: name == ConfigVarName.STREAMING_PER_REQUEST_TIMEOUT,
    "enable_tensor_disk_offload": lambda name: takes(FedAvgRecipe, name) and takes(FedAvg, name),
    "enable_tensor_streaming": lambda name: callable(getattr(Recipe, name)),
    "relay": lambda name: name == ParticipantType.RELAY,
    "listening_host": lambda name: name == PropKey.LISTENING_HOST,
    "connect_to": lambda name: name == PropKey.CONNECT_TO,
    "parent": lambda name: name == PropKey.PARENT,
    "tree_prov": lambda name: callable(tree_prov.main) and tree_prov.__name__.endswith(name),
    "HierarchicalUpdateGatherer": lambda name: HierarchicalUpdateGatherer.__name__ == name,
    "EdgeFedBuffRecipe": lambda name: written("edge.tools.edge_fed_buff_recipe", name),
}


def test_every_switch_of_the_page_is_looked_up():
    section = scale.PAGE.read_text(encoding="utf-8").split("## Which switch at which size")[1]
    cells = re.findall(r"^\| (`[^|]+) \|", section, flags=re.MULTILINE)
    assert [name for cell in cells for name in re.findall(r"`(\w+)`", cell)] == list(SWITCHES)


@pytest.mark.parametrize("name", SWITCHES)
def test_flare_has_the_switch(name):
    assert SWITCHES[name](name)


def test_chunks_have_the_size_that_the_page_says():
    assert NumpyArrayDecomposer().max_chunk_size == TensorDecomposer().max_chunk_size == 2 * 2**20


def test_no_recipe_of_fedavg_averages_on_the_way():
    assert [
        name for name in inspect.signature(FedAvgRecipe).parameters if re.search("parent|hierarch|tier", name)
    ] == []


def fedavg(**options) -> FedAvgRecipe:
    """FLARE's recipe with tensors, which the course's ``client_recipe`` does not send."""
    model = {"class_path": "torch.nn.Linear", "args": {"in_features": 2, "out_features": 2}}
    script = str(Path(scale.__file__))  # never run
    options = {"server_expected_format": ExchangeFormat.PYTORCH, **options}
    return FedAvgRecipe(model=model, min_clients=3, train_script=script, **options)


def controller(recipe: Recipe):
    """The first workflow's, which trains; the course's recipes validate in a second one."""
    return recipe._job._deploy_map["server"].app_config.workflows[0].controller


def test_switches_reach_the_server_s_side_of_a_job():
    made = fedavg(enable_tensor_disk_offload=True, server_memory_gc_rounds=5)
    made.enable_tensor_streaming(format=ExchangeFormat.PYTORCH)
    assert (controller(made).enable_tensor_disk_offload, controller(made).memory_gc_rounds) == (True, 5)
    assert controller(made).num_clients == 3  # FedAvg draws that many of all that are there
    kinds = [type(part).__name__ for part in made._job._deploy_map["server"].app_config.components.values()]
    assert "TensorServerStreamer" in kinds


def test_disk_offload_needs_tensors():
    with pytest.warns(UserWarning, match="server_expected_format"):
        fedavg(enable_tensor_disk_offload=True, server_expected_format=ExchangeFormat.NUMPY)


def test_fedavg_asks_some_of_all_that_are_there():
    workflow, there = FedAvg(num_clients=2, num_rounds=1), {"site-1", "site-2", "site-3", "site-4"}
    workflow.engine = SimpleNamespace(get_clients=lambda: [SimpleNamespace(name=name) for name in there])
    workflow.fl_ctx = FLContext()
    drawn = [workflow.sample_clients(2) for _ in range(40)]
    assert all(len(set(names)) == 2 and set(names) <= there for names in drawn)
    assert len({*map(tuple, drawn)}) > 1


def test_the_edge_recipe_needs_torchvision():
    source = Path(importlib.util.find_spec("nvflare.edge.widgets.evaluator").origin).read_text(encoding="utf-8")
    assert re.search("^import torchvision", source, re.MULTILINE)


def test_the_course_s_recipe_collects_garbage_at_sites_and_sends_arrays():
    made = client_recipe(CARD, 2, Settings())
    assert made.client_memory_gc_rounds == 1 and made.server_expected_format == ExchangeFormat.NUMPY
    assert isinstance(made.aggregator, SampleWeightedMean)
    assert not controller(made).enable_tensor_disk_offload


def test_the_course_s_mean_cannot_read_answers_from_a_disk(tmp_path):
    lazy = LazyTensorDict({"weight": (str(tmp_path / "answer.safetensors"), "weight")}, str(tmp_path))
    meta = {"client_name": "site-1", FLMetaKey.NUM_STEPS_CURRENT_ROUND: 1}
    with pytest.raises(TypeError):
        SampleWeightedMean().accept_model(FLModel(params={"weight": lazy.make_lazy_ref("weight")}, meta=meta))


def test_fedavg_gives_each_answer_to_the_aggregator_as_it_comes():
    added = []

    class Aggregator(SampleWeightedMean):
        def accept_model(self, model):
            added.append(model)

    workflow = FedAvg(num_clients=2, num_rounds=1, aggregator=Aggregator())
    for number in (1, 2):
        workflow._aggregate_one_result(FLModel(params={"weight": np.ones(1)}, meta={"client_name": "site-1"}))
        assert len(added) == number


def test_a_tree_of_relays_and_parents_is_provisioned(tmp_path, monkeypatch, capsys):
    """Two relays, on each a client, and two leaf clients whose parent is that one: the smallest tree that the tool makes."""
    monkeypatch.setattr(
        sys, "argv", ["tree_prov", "-r", str(tmp_path), *["-p", "tree", "-d", "1", "-w", "2", "-c", "2"]]
    )
    tree_prov.main()
    (kits,) = (tmp_path / "tree").glob("prod_*")
    names = {folder.name for folder in kits.iterdir()}
    assert {"server", "R1", "R2", "C1", "C2", "C11", "C12", "C21", "C22"} <= names
    leaf = json.loads((kits / "C11" / "startup" / "fed_client.json").read_text())["client"]
    assert (leaf["fqsn"], leaf["is_leaf"]) == ("C1.C11", True)
    assert "R1" in (kits / "C11" / "local" / "relay__resources.json").read_text()
    relay = json.loads((kits / "R1" / "startup" / "fed_relay.json").read_text())
    assert relay["connect_to"]["identity"] == "server"
