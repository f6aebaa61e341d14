"""Growth with the number of sites: lines and paper rounds are right, reports go on, and the page names what FLARE has."""

import importlib.util
import inspect
import json
import re
from pathlib import Path

import numpy as np
import pytest
from nvflare.apis.fl_constant import ConfigVarName, FLMetaKey
from nvflare.app_common.abstract.fl_model import FLModel
from nvflare.app_common.decomposers.numpy_decomposers import NumpyArrayDecomposer
from nvflare.app_common.workflows.fedavg import FedAvg
from nvflare.app_opt.pt.decomposers import TensorDecomposer
from nvflare.app_opt.pt.lazy_tensor_dict import LazyTensorDict
from nvflare.app_opt.pt.recipes import FedAvgRecipe
from nvflare.client.config import ExchangeFormat
from nvflare.edge.executors import hug
from nvflare.lighter import tree_prov
from nvflare.lighter.constants import ParticipantType, PropKey
from nvflare.recipe.sim_env import SimEnv
from nvflare.recipe.spec import Recipe

from benchmarks import scale
from src.federation.aggregation import SampleWeightedMean
from src.federation.flare_2_9 import server_of
from src.federation.recipes import Options, client_recipe
from src.mednist.training import TASK
from tests.runs_support import drawings

SIZE, META = ConfigVarName.DOWNLOAD_CHUNK_SIZE, {"client_name": "site-1", FLMetaKey.NUM_STEPS_CURRENT_ROUND: 1}
ABOUT = {"started": 100.0, "seconds": 40.0}
TIMES = {"round started": (104.0, 121.0, 125.0), "model saved": (120.0, 124.0, 130.0)}
RECORD = [
    *({"time": at, "event": event, "round": n} for event, times in TIMES.items() for n, at in enumerate(times)),
    {"time": 133.0, "event": "run ended", "round": 2},
]


def row(sites: int) -> dict:
    """A measured row in which all grows as a line: 10 + 2 n seconds, 1 GB + 0.5 GB · n."""
    values = {key: 10.0 + 2 * sites if key.endswith("_seconds") else 1e9 + 5e8 * sites for key in scale.QUANTITIES}
    return {**values, "round_bytes_loopback": None, "model_bytes": 1e6}


def report(*sites: int) -> dict:
    rows = {str(n): row(n) for n in sites}
    return scale.with_fits({**scale.conditions(3, 6), "memory_bytes": 9e9, "rows": rows})


def test_a_line_its_largest_residual_and_how_many_sites_a_memory_holds():
    assert vars(scale.fit([2, 4, 8], [7.0, 11.0, 19.0])) == pytest.approx({"a": 3, "b": 2, "residual": 0}, abs=1e-9)
    bent = scale.fit([1, 2, 3], [1.0, 2.0, 6.0])  # least squares: -2 + 2.5 n, away by 0.5, 1 and 0.5
    assert (bent.a, bent.b, bent.residual) == (pytest.approx(-2), pytest.approx(2.5), pytest.approx(0.5))
    assert scale.fit([4], [1.0]) is None and scale.fit([4, 4], [1.0, 2.0]) is None
    line = scale.Fit(a=1e9, b=5e8, residual=0.0)
    assert [scale.capacity(line, memory) for memory in (3e9, 3.4e9, 5e8)] == [4, 4, 0]
    assert scale.capacity(scale.Fit(1e9, 0.0, 0.0), 3e9) is None


def test_a_tree_of_aggregators_and_a_round_on_paper():
    trees = [(20, [20]), (32, [32]), (33, [2, 32]), (100, [4, 32]), (1000, [32, 32]), (1025, [2, 32, 32])]
    assert [scale.levels(sites, 32) for sites, _ in trees] == [served for _, served in trees]
    assert scale.levels(100, None) == [100]
    with pytest.raises(ValueError, match="at least 2"):
        scale.levels(5, 1)
    # A round on paper: a model of 25 MB takes 2 s of a line of 12.5 MB/s.
    flat = scale.paper_round(10, 25e6, 0.5)
    assert flat == scale.PaperRound(250e6, 20, 20, 5, held_bytes=275e6, in_time_bytes=100e6)
    half = scale.paper_round(10, 25e6, 0.5, share=0.5)
    assert (half.line_bytes, half.send_seconds, half.held_bytes) == (125e6, 10.0, flat.held_bytes)
    tree = scale.paper_round(10, 25e6, 0.5, fan_out=4)  # the server serves 3, the busiest aggregator 4
    assert (tree.line_bytes, tree.send_seconds, tree.averaging_seconds) == (75e6, 14.0, 3.5)
    assert (tree.held_bytes, tree.in_time_bytes) == (125e6, 100e6)
    assert scale.paper_round(10, 25e6, 0.5, line=25e6).send_seconds == 10.0
    # Averaging in time: the sum of the course's mean is two models, for it is in double precision, however many answer.
    params = {"weight": np.ones((64, 64), np.float32), "bias": np.ones(64, np.float32)}
    model, mean = sum(value.nbytes for value in params.values()), SampleWeightedMean()
    for number in range(3):
        mean.accept_model(FLModel(params=params, meta={**META, "client_name": f"site-{number}"}))
        assert sum(value.nbytes for value in mean._sums.values()) == (scale.COPIES_IN_TIME - 2) * model


def test_where_a_run_s_time_and_bytes_went_and_that_more_answers_take_longer():
    parts = ("start_up_seconds", "first_round_seconds", "round_seconds", "tear_down_seconds")
    assert scale.timings(ABOUT, RECORD) == dict(zip(parts, (4, 16, 4, 7), strict=True))
    only = [entry for entry in RECORD if entry["round"] == 0] + [RECORD[-1]]
    assert scale.timings(ABOUT, only)["round_seconds"] == 16.0
    traffic = [(100.0, 0), (121.0, 1000), (124.0, 1600), (125.0, 1600), (130.0, 2400), (133.0, 9000)]
    assert scale.loopback_of_a_round(traffic, RECORD) == pytest.approx(700)  # the median of 600 and 800
    assert scale.loopback_of_a_round([], RECORD) is None
    weights = {"weight": np.ones((512, 512), np.float32)}
    assert 0 < scale.aggregation_seconds(weights, 1) < scale.aggregation_seconds(weights, 40)


def test_a_report_and_its_tables_say_what_its_rows_say():
    made = report(2, 4, 8)
    assert made["fits"]["together_bytes"] == pytest.approx({"a": 1e9, "b": 5e8, "residual": 0.0}, abs=1e-3)
    assert made["fits"]["round_bytes_loopback"] is None and json.loads(json.dumps(made)) == made
    assert made["holds"] == {"this machine": 16, "16 GiB": 32}
    assert set(made["paper"]) == {"100", "1000"} and set(made["paper"]["1000"]) == set(scale.WAYS)
    flat = made["paper"]["1000"]["flat, full weights"]
    assert flat["line_bytes"] == 1e9 and flat["averaging_seconds"] == pytest.approx(2000)
    made = report(2, 4)
    growth, paper = scale.growth_table(made).splitlines(), scale.paper_table(made).splitlines()
    assert growth[0].endswith("| 2 sites | 4 sites | with n sites | largest residual |")
    assert growth[2] == "| wall time of the run, s | 14.0 | 18.0 | 10.0 + 2.00 n | 0 % |"
    assert growth[-1].endswith("measured, MB | – | – | – | – |")
    assert (len(growth), len(paper)) == (2 + len(scale.QUANTITIES), 2 + len(scale.LARGE) * len(scale.WAYS))
    assert "| 16 GiB | 32 |" in scale.holding_table(made)
    assert paper[2].startswith("| 100 | flat, full weights | 100 MB | 8.00 s | 8.00 s | 200 s | 101 MB | 4.00 MB |")
    assert [make({}) for make in scale.TABLES.values()] == [scale.NOTHING] * 3
    assert "| – | – |" in scale.growth_table(report(2))
    assert scale.holding_table(report(2)) == scale.paper_table(report(2)) == scale.TOO_FEW


def test_it_measures_what_is_missing_and_nothing_else(tmp_path, monkeypatch, capsys):
    measured = []
    monkeypatch.setattr(scale, "measure", lambda sites, rounds, per_class: measured.append(sites) or row(sites))
    monkeypatch.setenv("COURSE_DATA_SOURCE", "generated")
    out, more = ["--out", str(tmp_path / "new" / "scale.json")], [2, 4, 8]
    for asked, done in {"--sites 4 2": more[:2], "--sites 2 4": more[:2], "--sites 2 8": more, "--table": more}.items():
        assert scale.main([*asked.split(), *out]) == 0 and measured == done
    assert "| 2 sites | 4 sites | 8 sites |" in capsys.readouterr().out
    kept = json.loads((tmp_path / "new" / "scale.json").read_text())
    assert set(kept["rows"]) == {"2", "4", "8"} and kept["holds"]
    assert scale.main(["--sites", "2", "--rounds", "2", *out]) == 0 and measured[3:] == [2]
    monkeypatch.setattr(scale, "machine", lambda: {"cores": 99})
    assert scale.main(["--sites", "2", "--rounds", "2", *out]) == 0 and measured[4:] == [2]
    with pytest.raises(SystemExit):
        scale.main(["--sites", "1000", *out])


def test_the_page_is_that_of_the_kept_report_and_says_with_which_numbers_was_measured_and_computed():
    text = scale.PAGE.read_text(encoding="utf-8")
    kept = json.loads(scale.REPORT.read_text(encoding="utf-8"))
    assert all(f"<!-- {name}: made by python -m benchmarks.scale --page -->" in text for name in scale.TABLES)
    for report in (kept, scale.with_fits(kept)):  # what was fitted and computed is what the rows say today
        assert scale.with_tables(text, report) == text, "run: python -m benchmarks.scale --page"
    # "three rounds", "six of each class", "32 sites each"
    assert (scale.ROUNDS, scale.PER_CLASS, scale.FAN_OUT) == (3, 6, 32)
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


def source(module: str) -> str:
    """Of one of FLARE's modules, which to import needs packages that the course does not install."""
    return Path(importlib.util.find_spec(f"nvflare.{module}").origin).read_text(encoding="utf-8")


def test_flare_has_every_switch_of_the_page():
    takes = lambda what: set(inspect.signature(what).parameters)  # noqa: E731
    classes = lambda module: re.findall(r"^class (\w+)\(", source(module), re.MULTILINE)  # noqa: E731
    chunks = NumpyArrayDecomposer(), TensorDecomposer()
    where = {
        "client_memory_gc_rounds min_clients server_memory_gc_rounds": takes(FedAvgRecipe),
        "num_threads": takes(SimEnv),
        "round_timeout min_clients": Options.model_fields,
        "ModelQuantizer": classes("app_opt.pt.quantization.quantizer"),
        "ModelDequantizer": classes("app_opt.pt.quantization.dequantizer"),
        "np_download_chunk_size tensor_download_chunk_size": [one.config_var_prefix + SIZE for one in chunks],
        "streaming_per_request_timeout": [ConfigVarName.STREAMING_PER_REQUEST_TIMEOUT],
        "enable_tensor_disk_offload": takes(FedAvgRecipe) & takes(FedAvg),
        "enable_tensor_streaming": dir(Recipe),
        "relay listening_host connect_to parent": [ParticipantType.RELAY, *vars(PropKey).values()],
        "tree_prov": [tree_prov.__name__.removeprefix("nvflare.lighter.")],
        "HierarchicalUpdateGatherer": dir(hug),
        "EdgeFedBuffRecipe": classes("edge.tools.edge_fed_buff_recipe"),
    }
    assert [(name, names) for names in where for name in names.split() if name not in where[names]] == []
    section = scale.PAGE.read_text(encoding="utf-8").split("## Which switch at which size")[1]
    cells = re.findall(r"^\| (`[^|]+) \|", section, flags=re.MULTILINE)
    assert {name for cell in cells for name in re.findall(r"`(\w+)`", cell)} == set(" ".join(where).split())
    assert [kind.max_chunk_size for kind in chunks] == [2 * 2**20] * 2
    assert "\nimport torchvision" in source("edge.widgets.evaluator")
    # None averages on the way.
    assert [name for name in takes(FedAvgRecipe) if re.search("parent|hierarch|tier", name)] == []


def test_the_course_s_job_sends_arrays_keeps_its_memory_and_cannot_read_answers_from_a_disk(tmp_path):
    made = client_recipe(TASK, 2)
    assert made.client_memory_gc_rounds == 0 and made.server_expected_format == ExchangeFormat.NUMPY
    assert isinstance(made.aggregator, SampleWeightedMean)
    assert not server_of(made).workflows[0].controller.enable_tensor_disk_offload
    lazy = LazyTensorDict({"weight": (str(tmp_path / "answer.safetensors"), "weight")}, str(tmp_path))
    with pytest.raises(TypeError):
        made.aggregator.accept_model(FLModel(params={"weight": lazy.make_lazy_ref("weight")}, meta=META))
