"""The runner of ``make course`` on tiny notebooks, with real kernels."""

import json
import math
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from src.course import HEADLINE_MIME, _page, _Progress, headline, main, run_course
from src.errors import CourseError
from src.notebook_tools import notebook_text, read_notebook

ROOT = Path(__file__).resolve().parent.parent
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


def write(folder: Path, name: str, *cells) -> Path:
    """A notebook of these cells: code where a string is given."""
    folder.mkdir(parents=True, exist_ok=True)
    cells = [new_code_cell(cell) if isinstance(cell, str) else cell for cell in cells]
    path = folder / f"{name}.ipynb"
    path.write_text(notebook_text(new_notebook(cells=cells)), encoding="utf-8")
    return path


def image(tag: str | None = None):
    source = f"from IPython.display import Image, display; display(Image({PIXEL!r}, format='png'))"
    source = source.replace(f"{PIXEL!r}", f"__import__('base64').b64decode({PIXEL!r})")
    return new_code_cell(source, metadata={"tags": [tag]} if tag else {})


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    """Three notebooks, the second of which fails, run once, in a folder with a space in its path."""
    root = tmp_path_factory.mktemp("the course")
    notebooks, build = root / "notebooks", root / "build" / "course"
    (root / "figs").mkdir()
    (root / "figs" / "flow.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg"><title>the-flow</title></svg>')
    write(
        notebooks,
        "01_first",
        new_markdown_cell(
            "# 1 · First <steps>\n\n[![badge](https://example.org/b.svg)](https://example.org)\n\n"
            "You train **one** model on one computer and look at [what](x.md) it does.\n\n"
            "$$w = \\sum_k \\frac{n_k}{n} w_k$$\n\n![flow](../figs/flow.svg)\n\n"
            "Go on with [the second](02_second.ipynb#start), [the source](../src/a%20b.py), [home](https://example.org)."
        ),
        new_code_cell("raise SystemExit('only in Colab')  # COLAB", metadata={"tags": ["colab", "raises-exception"]}),
        "import shutil\nassert shutil.which('python3'), 'the environment is not on PATH'",
        image("thumbnail"),
        "from tqdm.notebook import tqdm\nfor _ in tqdm(range(3), desc='epoch'):\n    pass",
        "from IPython.display import HTML, display\n"
        'display(HTML(\'<iframe id="tensorboard-frame-1" src="http://localhost:6006"></iframe>\'))',
        "from src.course import headline\nheadline(test_accuracy=0.98765, images=1200)\nheadline(best_round='3 of 5')",
    )
    write(notebooks, "02_second", "print('before the fall')", "", "1 / 0  # here", "print('never')")
    write(notebooks, "03_third", "import os; print(os.getcwd())")
    code = main(["--notebooks", str(notebooks), "--build", str(build)])
    return notebooks, build, code


def test_every_notebook_has_its_files_and_nothing_else_is_left(course):
    _, build, _ = course
    pages = [f"{name}.{kind}" for name in ("01_first", "02_second", "03_third") for kind in ("html", "ipynb")]
    assert sorted(path.name for path in build.iterdir()) == sorted([*pages, "index.html", "summary.json"])


def test_summary_holds_seconds_and_headlines(course):
    _, build, _ = course
    summary = json.loads((build / "summary.json").read_text())
    first = summary["01_first"]
    assert 0 < first.pop("seconds") < 60
    assert first == {"test_accuracy": 0.98765, "images": 1200, "best_round": "3 of 5"}


def test_failure_is_told_and_does_not_keep_the_others_from_running(course):
    _, build, code = course
    assert code == 1
    summary = json.loads((build / "summary.json").read_text())
    assert summary["02_second"]["error"] == "code cell 2 of 3: ZeroDivisionError: division by zero"
    assert list(summary) == ["01_first", "02_second", "03_third"]
    assert "error" not in summary["03_third"]
    page = (build / "02_second.html").read_text()
    assert "before the fall" in page
    assert "ZeroDivisionError" in page
    assert ">never" not in page


def test_notebook_runs_in_its_own_folder_on_the_python_of_the_course(course):
    notebooks, build, _ = course
    (cell,) = read_notebook(build / "03_third.ipynb").cells
    assert cell.outputs[0].text.strip() == str(notebooks)


def test_page_needs_no_network_and_no_other_file(course):
    _, build, _ = course
    page = (build / "01_first.html").read_text()
    assert re.findall(r'<(?:script|link|iframe)[^>]*(?:src|href)="[^"]*"', page) == []
    assert "@import" not in page
    assert set(re.findall(r'<img[^>]*src="([^"]{5})', page)) == {"data:", "https"}  # the badge alone is asked for
    assert 'src="data:image/svg+xml;base64,' in page
    assert re.search(r'<math [^>]*display="block"', page)
    assert "<mfrac>" in page
    assert "$$" not in page


def test_page_shows_what_was_alive_as_it_last_stood(course):
    _, build, _ = course
    page = (build / "01_first.html").read_text()
    assert "<iframe" not in page
    assert "TensorBoard is shown here while the notebook runs." in page
    assert re.search(r'<progress max="3(?:\.0)?" value="3(?:\.0)?"></progress>', page)
    assert "vnd.jupyter.widget" not in page
    assert "# COLAB" not in page
    assert "tensorboard-frame" in (build / "01_first.ipynb").read_text()  # the executed notebook keeps all


def test_links_of_a_page_lead_to_pages_and_files(course):
    _, build, _ = course
    links = re.findall(r'href="([^"]*)"', (build / "01_first.html").read_text())
    assert "02_second.html#start" in links
    assert "../../src/a%20b.py" in links
    assert "https://example.org" in links
    assert "index.html" in links


def test_index_has_a_card_for_each_notebook(course):
    _, build, _ = course
    index = (build / "index.html").read_text()
    assert index.count("<article>") == 3
    assert "1 · First &lt;steps&gt;" in index
    assert "You train one model on one computer and look at what it does." in index
    assert "<dt>test accuracy</dt><dd>0.988</dd>" in index
    assert "<dt>images</dt><dd>1,200</dd>" in index
    assert "Failed in code cell 2 of 3: ZeroDivisionError" in index
    assert index.count("data:image/png;base64,") == 1
    assert "@MAP@" not in index and "@CARDS@" not in index and "@FOOTER@" not in index
    for target in re.findall(r'href="([^"]*)"', index):
        assert (build / target).is_file(), target


def test_one_notebook_again_keeps_the_entries_of_the_others(course, capsys):
    notebooks, build, _ = course
    before = json.loads((build / "summary.json").read_text())
    assert main(["03_third.ipynb", "--notebooks", str(notebooks), "--build", str(build)]) == 1  # 02 is still broken
    after = json.loads((build / "summary.json").read_text())
    assert {name: after[name] for name in ("01_first", "02_second")} == {
        name: before[name] for name in ("01_first", "02_second")
    }
    out = capsys.readouterr().out
    assert "[1/1] 03_third  1 cells" in out
    assert re.search(r"^02_second +FAILED$", out, re.MULTILINE)
    assert re.search(r"^01_first +\d+ s  test accuracy 0\.988 · images 1,200 · best round 3 of 5$", out, re.MULTILINE)


def test_kernel_that_dies_is_told_from_a_cell_that_fails(tmp_path):
    write(tmp_path / "notebooks", "01_dies", "print('alive')", "import os; os._exit(3)", "print('never')")
    summary = run_course(tmp_path / "notebooks", tmp_path / "build")
    assert summary["01_dies"]["error"] == "code cell 2 of 3: The kernel died: often a lack of memory."
    assert "alive" in (tmp_path / "build" / "01_dies.html").read_text()


@pytest.mark.parametrize(
    ("prepare", "names", "message"),
    [
        (lambda root: None, None, r"There is no notebook in .*notebooks"),
        (lambda root: write(root / "notebooks", "01_a"), ["02_b"], r"no notebook '02_b' in .*; there are: 01_a"),
        (lambda root: (write(root / "notebooks", "01_a"), (root / "build").touch()), None, r"folder .*build.*--build"),
        (lambda root: write(root / "notebooks", "01_a").write_text("{"), None, r"01_a\.ipynb is not a notebook"),
        (
            lambda root: (write(root / "notebooks", "01_a"), (root / "build").mkdir(),
                          (root / "build" / "summary.json").write_text("{")),
            ["01_a"],
            r"summary\.json is damaged",
        ),
    ],
    ids=["no notebook", "unknown name", "build is a file", "no JSON", "damaged summary"],
)  # fmt: skip
def test_bad_call_is_one_clear_error(tmp_path, prepare, names, message):
    prepare(tmp_path)
    with pytest.raises(CourseError, match=message):
        run_course(tmp_path / "notebooks", tmp_path / "build", names)


def test_command_line_says_error_and_returns_2(tmp_path, capsys):
    assert main(["--notebooks", str(tmp_path), "--build", str(tmp_path / "build")]) == 2
    assert capsys.readouterr().err.startswith("error: There is no notebook in")


def test_formula_that_is_none_is_named(tmp_path):
    notebook = new_notebook(cells=[new_markdown_cell(r"Here: $\frac{$")])
    with pytest.raises(CourseError, match=r"a\.ipynb: the formula '\\\\frac\{' is not LaTeX"):
        _page(notebook, tmp_path / "a.ipynb", tmp_path, ["a"])


def shown(monkeypatch, **figures):
    displayed = []
    monkeypatch.setattr("IPython.display.display", displayed.append)
    headline(**figures)
    (one,) = displayed
    return one._repr_mimebundle_()


def test_headline_is_plain_data_and_a_table(monkeypatch):
    data = shown(monkeypatch, acc=torch.tensor(0.5), count=np.int64(3), dice=np.float32(0.25), note="a < b", small=2e-5)
    assert data[HEADLINE_MIME] == {"acc": 0.5, "count": 3, "dice": 0.25, "note": "a < b", "small": 2e-5}
    assert json.loads(json.dumps(data[HEADLINE_MIME])) == data[HEADLINE_MIME]
    assert "<td>a &lt; b</td>" in data["text/html"]
    assert data["text/plain"].splitlines() == ["acc: 0.500", "count: 3", "dice: 0.250", "note: a < b", "small: 2.0e-05"]


@pytest.mark.parametrize(
    ("figures", "message"),
    [
        ({}, "no figure"),
        ({"acc": math.nan}, r"headline\(acc=nan\) is not a finite number"),
        ({"acc": torch.tensor(math.inf)}, "not a finite number"),
        ({"acc": np.array([1.0, 2.0])}, "one number or a text, not ndarray"),
        ({"acc": None}, "one number or a text, not NoneType"),
        ({"seconds": 3}, r"headline\(seconds=...\).*taken"),
        ({"error": "x"}, "taken"),
    ],
)
def test_headline_refuses_what_is_no_figure(monkeypatch, figures, message):
    with pytest.raises(CourseError, match=message):
        shown(monkeypatch, **figures)


class Terminal:
    """A stream that says it is a terminal."""

    def __init__(self):
        self.text = ""

    def write(self, text):
        self.text += text

    def flush(self):
        pass

    def isatty(self):
        return True


def test_progress_line_on_a_terminal_is_rewritten_and_never_wraps(monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")
    terminal = Terminal()
    progress = _Progress(terminal)
    progress.start("[1/1] " + "a_long_name" * 5, 3)
    progress.show()
    assert "\n" not in terminal.text
    assert all(len(line) < 30 for line in terminal.text.split("\r\033[K"))
    progress.finish("3 cells")
    assert terminal.text.endswith("a_long_name  3 cells\n")


def descendants_of(mark: Path) -> list[psutil.Process]:
    """Processes whose command line names this file: those that the notebook below starts."""
    found = []
    for process in psutil.process_iter():
        try:
            if str(mark) in process.cmdline() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interruption_leaves_no_process_behind(tmp_path, number):
    """A kernel's child in a session of its own, as FLARE starts its sites, and a grandchild whose parent has ended."""
    mark = tmp_path / "started"
    stubborn = (
        "import signal, sys, time; signal.signal(signal.SIGINT, signal.SIG_IGN); "
        "open(sys.argv[1], 'a').write('x'); time.sleep(300)"
    )
    orphan = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {stubborn!r}, sys.argv[1]])"
    write(
        tmp_path / "notebooks",
        "01_sleeps",
        "import subprocess, sys, time\n"
        f"subprocess.Popen([sys.executable, '-c', {stubborn!r}, {str(mark)!r}], start_new_session=True)\n"
        f"subprocess.run([sys.executable, '-c', {orphan!r}, {str(mark)!r}], start_new_session=True)\n"
        "time.sleep(300)",
    )
    write(tmp_path / "notebooks", "02_never", "print('never')")
    folders = ["--notebooks", str(tmp_path / "notebooks"), "--build", str(tmp_path / "b")]
    process = subprocess.Popen(
        [sys.executable, "-m", "src.course", *folders],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        while not (mark.is_file() and mark.read_text() == "xx"):
            assert time.monotonic() < deadline and process.poll() is None, "the notebook did not start its children"
            time.sleep(0.1)
        assert len(descendants_of(mark)) == 2
        process.send_signal(number)
        output, _ = process.communicate(timeout=30)
        assert process.returncode == 130
        assert "Interrupted" in output
        assert "02_never" not in output
        assert "Traceback" not in output, output
        assert descendants_of(mark) == []
        assert not (tmp_path / "b" / "index.html").exists()
    finally:
        for one in (process, *descendants_of(mark)):
            if isinstance(one, psutil.Process) or one.poll() is None:
                one.kill()
