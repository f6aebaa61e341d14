"""The runner of ``make course`` on tiny notebooks, with real kernels and real pages."""

import itertools
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from book import __main__ as runner
from book.__main__ import main, run_course
from book.tidy import notebook_text, read_notebook
from tests.tests_support import rows

# The theme's affair, and no affair of the course's readers.
pytestmark = pytest.mark.filterwarnings("ignore:.*Check CHANGES for Sphinx API:PendingDeprecationWarning")

ROOT = Path(__file__).resolve().parents[2]
SLIDER = """\
import matplotlib.pyplot as plt
import numpy as np
from book import figures
volume = np.random.rand(16, 16, 5)
figures.slice_slider({"image": volume, "label": volume > 0.9, "affine": np.diag([1, 1, 3, 1]), "caption": "noise", "z": 3})"""
HEAT_MAP = """\
assert not plt.get_fignums(), "the slider leaves figures open"
figures.confusion_matrix([0, 1], [0, 0], ["Hand", "CXR"], "who is taken for whom")"""
TENSORBOARD = 'figures.HTML(\'<iframe id="tensorboard-frame-1" src="http://localhost:6006"></iframe>\')'
OPENING = """\
# 1 · First *steps*

You train **one** model on one computer and look at [what](../src/) it does. Then you see more.

$$w = \\sum_k \\frac{n_k}{n} w_k$$

![flow](../figs/the%20flow.svg)

## And on

Go on with [the second](02_second.ipynb#start), [the source](../src/a%20b.py), [home](https://example.org)."""
EMPTY = notebook_text(new_notebook())


def write(folder: Path, name: str, *cells) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    cells = [new_code_cell(cell) if isinstance(cell, str) else cell for cell in cells]
    path = folder / f"{name}.ipynb"
    kernel = {"name": "another", "display_name": "Another", "language": "python"}  # which no machine has
    path.write_text(notebook_text(new_notebook(cells=cells, metadata={"kernelspec": kernel})), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    """Three notebooks, the second of which fails, run once, in a folder with a space in its path."""
    root = tmp_path_factory.mktemp("the course")
    notebooks, build = root / "notebooks", root / "a build" / "course"
    for file in ("figs/the flow.svg", "src/a b.py"):
        (root / file).parent.mkdir()
        (root / file).write_text('<svg xmlns="http://www.w3.org/2000/svg"><title>the-flow</title></svg>')
    write(
        notebooks,
        "01_first",
        new_markdown_cell(OPENING),
        new_markdown_cell('<p><img src="../figs/the%20flow.svg"> <a href="02_second.ipynb#start">on</a></p>'),
        new_code_cell("raise SystemExit('only in Colab')  # COLAB", metadata={"tags": ["colab", "raises-exception"]}),
        "import shutil\nassert shutil.which('python3'), 'the environment is not on PATH'",
        new_code_cell("from PIL import Image\nImage.new('L', (1, 1))", metadata={"tags": ["thumbnail"]}),
        "from tqdm.notebook import tqdm\nfor _ in tqdm(range(3), desc='epoch'):\n    pass",
        SLIDER,
        HEAT_MAP,
        TENSORBOARD,
        "from book.headline import headline\nheadline(test_accuracy=0.98765, images=1200)",
        "headline(best_round='3 of 5')",
        new_code_cell("# your turn", metadata={"tags": ["exercise"]}),
        new_code_cell("print('the-solution')", metadata={"tags": ["solution"]}),
    )
    head = new_markdown_cell("# Second\n\n## Start")
    write(notebooks, "02_second", head, "print('before the fall')", "", "1 / 0  # here", "print('never')")
    write(notebooks, "03_third", "import os; print(os.getcwd())")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))  # the course need not be installed for this test
        code = main(["--notebooks", str(notebooks), "--build", str(build)])
    return SimpleNamespace(notebooks=notebooks, build=build, code=code, page=lambda name: (build / name).read_text())


def addresses(page: str) -> list[str]:
    """What a browser loads by itself when it opens the page."""
    loading = re.findall(r"<(?:script|img|iframe|source|embed|object)\b[^>]*>", page)
    loading += re.findall(r'<link\b(?=[^>]*rel="(?:stylesheet|preload|icon)")[^>]*>', page)
    return [address for tag in loading for address in re.findall(r'(?:src|href|data|srcset)="([^"]*)"', tag)]


def test_build_folder_has_pages_notebooks_and_summary(course):
    assert course.code == 1  # one of them failed
    summary, there = json.loads(course.page("summary.json")), {path.name for path in course.build.iterdir()}
    assert list(summary) == ["01_first", "02_second", "03_third"]
    assert {*(f"{name}.{kind}" for name in summary for kind in ("html", "ipynb")), "index.html", "search.html"} <= there
    assert [name for name in there if name.startswith(".pages")] == [] and 0 < summary["01_first"].pop("seconds") < 60
    assert summary["01_first"] == {"test_accuracy": 0.98765, "images": 1200, "best_round": "3 of 5"}
    failed = {name: about["error"] for name, about in summary.items() if "error" in about}
    assert failed == {"02_second": "code cell 2 of 3: ZeroDivisionError: division by zero"}
    page = course.page("02_second.html")
    assert "before the fall" in page and "ZeroDivisionError" in page and ">never" not in page
    (cell,) = read_notebook(course.build / "03_third.ipynb").cells
    assert cell.outputs[0].text.strip() == str(course.notebooks), "a notebook runs in its own folder"


def test_pages_load_nothing_from_a_network(course):
    for name in ("index", "01_first", "02_second", "search"):
        loaded = addresses(course.page(f"{name}.html"))
        assert len(loaded) > 5
        for address in loaded:
            local = address.split("?")[0].split("#")[0]
            assert local.startswith("data:") or (course.build / local).is_file(), f"{name}: {address}"
    styles = "".join(path.read_text() for path in course.build.glob("_static/**/*.css"))
    assert re.findall(r"""(?:url\(|@import)\s*["']?(?:https?:)?//[^)]*""", styles) == []


def test_page_shows_formulas_pictures_links_and_what_was_alive_and_hides_colab_and_solutions(course):
    page = course.page("01_first.html")
    assert re.search(r'<math [^>]*display="block"', page) and "<mfrac>" in page and "$$" not in page
    pictures = [course.build / address for address in addresses(page) if address.startswith("_images/")]
    assert sorted(path.suffix for path in pictures) == [".png", ".svg"]
    assert "the-flow" in next(path for path in pictures if path.suffix == ".svg").read_text()
    assert page.count('src="data:image/svg+xml;base64,') == 1
    assert "<iframe" not in page and "TensorBoard is shown here while the notebook runs." in page
    assert re.search(r'<progress max="3(?:\.0)?" value="3(?:\.0)?"></progress>', page)
    assert "vnd.jupyter.widget" not in page
    # What runs in the reader's browser stays: a slider over five slices that starts at the third one, and a heat map.
    assert page.count("data:image/jpeg;base64,") == 5 and "this.current_frame = 3;" in page
    assert "<caption>who is taken for whom</caption>" in page and "background-color: #08306b" in page
    assert "# COLAB" not in page and "# your turn" in page
    assert re.search(r'<details class="[^"]*hide[^>]*>\s*<summary[^>]*>\s*<p[^>]*>Show the solution', page)
    assert "colab.research.google.com/github/" in page and re.search(r"<title>\s*1 · First steps", page)
    assert re.search(r'class="right-next"\s+href="02_second.html"', page), "the pages stand in the order of the course"
    links = re.findall(r'href="([^"]*)"', page)
    assert links.count("02_second.html#start") == 2 and "https://example.org" in links
    (source,) = (link for link in links if link.endswith("/blob/main/src/a%20b.py"))
    assert source.startswith("https://github.com/")
    assert source.replace("/blob/main/src/a%20b.py", "/tree/main/src") in links
    assert 'id="start"' in course.page("02_second.html")


def test_front_page_has_a_card_for_each_notebook(course):
    index = course.page("index.html")
    assert index.count("course-card") == 3
    assert "You train one model on one computer and look at what it does." in index and "Then you see more" not in index
    assert "<b>0.988</b><small>test accuracy</small>" in index and "<b>1,200</b><small>images</small>" in index
    assert "Failed in code cell 2 of 3: ZeroDivisionError" in index
    assert [address for address in addresses(index) if address.endswith("01_first.png")] == ["_images/01_first.png"]
    assert "generated drawings, not patients" in index
    assert re.search(r"on \d+ processor cores with Python 3\.\d+", index)
    stops = re.findall(r'<li(?: class="(failed)")?><a href="(\w+)\.html"><b>(\d)</b>([^<]+)<', index)
    right = [" 01_first 1 First steps", "failed 02_second 2 Second", " 03_third 3 third"]
    assert [" ".join(stop) for stop in stops] == right


def test_one_notebook_again_keeps_the_others(course, capsys):
    before = json.loads(course.page("summary.json"))
    (course.build / "_images" / "old.png").touch()
    folders = ["--notebooks", str(course.notebooks), "--build", str(course.build)]
    assert main(["03_third.ipynb", *folders]) == 1  # 02 is still broken
    after = json.loads(course.page("summary.json"))
    assert after | {"03_third": before["03_third"]} == before
    assert (course.build / "01_first.html").is_file() and not (course.build / "_images" / "old.png").exists()
    out, err = capsys.readouterr()
    assert err == "" and re.search(r"^\[1/1\] 03_third  1 cells  \d+ s$", out, re.MULTILINE)
    assert re.search(r"^02_second +FAILED$", out, re.MULTILINE)
    assert re.search(r"^01_first +\d+ s  test accuracy 0\.988 · images 1,200 · best round 3 of 5", out, re.MULTILINE)


def test_kernel_that_dies_dead_link_and_formula_that_is_none_are_named(tmp_path, capsys):
    text = new_markdown_cell("# Dies\n\n[gone](../gone.md) and $\\nonsense$")
    write(tmp_path / "notebooks", "01_dies", text, "print('alive')", "import os; os._exit(3)", "print('never')")
    summary = run_course(tmp_path / "notebooks", tmp_path / "build")
    assert summary["01_dies"]["error"] == "code cell 2 of 3: The kernel died: often a lack of memory."
    assert "alive" in (tmp_path / "build" / "01_dies.html").read_text()
    link, formula = capsys.readouterr().err.splitlines()
    assert all(line.startswith(f"{tmp_path}/notebooks/01_dies.ipynb:") for line in (link, formula))
    assert "../gone.md" in link and r"nonsense' cannot be drawn" in formula


@rows(
    ("no notebook", {}, [], r"There is no notebook in .*notebooks"),
    ("unknown name", {"notebooks/01_a.ipynb": EMPTY}, ["02_b"], r"no notebook '02_b' in .*; there are: 01_a"),
    ("build is a file", {"notebooks/01_a.ipynb": EMPTY, "build": ""}, [], r"Cannot write .*build"),
    ("no JSON", {"notebooks/01_a.ipynb": "{"}, [], r"01_a\.ipynb is not a notebook"),
    ("damaged summary", {"notebooks/01_a.ipynb": EMPTY, "build/summary.json": "{"}, ["01_a"], r"summary\.json is damaged"),
)  # fmt: skip
def test_bad_call_is_one_clear_error(files, names, message, tmp_path, capsys):
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    assert main([*names, "--notebooks", str(tmp_path / "notebooks"), "--build", str(tmp_path / "build")]) == 2
    assert re.match(f"error: .*{message}", capsys.readouterr().err)


@pytest.mark.parametrize("terminal", [False, True], ids=["a log", "a terminal"])
def test_progress_is_a_line_a_minute_in_a_log_and_one_line_on_a_terminal(monkeypatch, capsys, terminal):
    """While each look at the clock takes a second."""
    said = ["cell 0/1  1 s", "cell 1/1  1 min 01 s", "cell 1/1  2 min 01 s", "1 cells  2 min 32 s"][3 * terminal :]
    clock = itertools.count(1000.0)
    monkeypatch.setattr(runner.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(runner, "execute", lambda notebook, folder, tick: [tick(1) for _ in range(150)] and "")
    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    runner._execute_one(new_notebook(cells=[new_code_cell("1")]), Path(), "01_a")
    lines = capsys.readouterr().out.split("\n")
    assert [line.split("\r\033[K")[-1] for line in lines] == [*(f"01_a  {line}" for line in said), ""]
    parts = lines[0].split("\r\033[K")[1:-1]
    assert len(parts) == 151 * terminal
    assert all(len(part) < 20 for part in parts), "a line that wraps cannot be rewritten"


def start_children(mark: Path) -> str:
    """Code that starts a child in a session of its own, as FLARE starts its sites, and a grandchild without a parent."""
    return f"""\
import pathlib, subprocess, time
mark = pathlib.Path({str(mark)!r})
stubborn = f"trap '' INT TERM; printf x >> '{{mark}}'; exec tail -f '{{mark}}'"
subprocess.Popen(["sh", "-c", stubborn], start_new_session=True)
subprocess.run(["sh", "-c", f"({{stubborn}}) &"], start_new_session=True)
while not (mark.is_file() and mark.read_text() == "xx"):
    time.sleep(0.05)"""


def started_by(mark: Path) -> list[psutil.Process]:
    """Processes whose command line names this file; one that has ended has none."""
    return [process for process in psutil.process_iter(["cmdline"]) if str(mark) in str(process.info["cmdline"])]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_no_notebook_leaves_a_process_and_an_interruption_keeps_what_was_finished(tmp_path, number):
    left, mark, notebooks, build = (tmp_path / name for name in ("left", "mark", "notebooks", "b"))
    write(notebooks, "01_done", start_children(left), "print('done')")
    write(notebooks, "02_sleeps", start_children(mark), f"open({str(mark)!r}, 'a').write('!')\ntime.sleep(300)")
    write(notebooks, "03_never", "print('never')")
    command = [sys.executable, "-m", "book", "--notebooks", str(notebooks), "--build", str(build)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        deadline = time.monotonic() + 60
        while not (mark.is_file() and mark.read_text() == "xx!"):
            assert time.monotonic() < deadline and process.poll() is None, "the notebook did not start its children"
            time.sleep(0.1)
        assert left.read_text() == "xx" and started_by(left) == [] and len(started_by(mark)) == 2
        process.send_signal(number)
        time.sleep(0.2)
        process.send_signal(number)  # the impatient press twice
        output, _ = process.communicate(timeout=30)
        assert process.returncode == 130 and "Interrupted" in output and started_by(mark) == []
        assert "03_never" not in output and "Traceback" not in output, output
        assert list(json.loads((build / "summary.json").read_text())) == ["01_done"]
    finally:
        for one in (process, *started_by(mark), *started_by(left)):
            one.kill()
