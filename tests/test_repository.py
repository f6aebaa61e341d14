"""The repository as a reader finds it: notebooks as they are to be committed, no link or picture that leads nowhere."""

import ast
import keyword
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from docutils.utils.math.latex2mathml import tex2mathml
from packaging.requirements import Requirement

from book.tidy import COLAB_CELL, notebook_text, read_notebook, repository, tidy
from src.tasks import tasks

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
NOT_OURS = {".git", ".venv", "build", "data", "runs"}
MOST_BYTES = 1_000_000

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def git(*arguments: str) -> str | None:
    """What git says; None without git or checkout (a downloaded archive), or if git refuses another owner's folder."""
    if not (ROOT / ".git").exists() or not shutil.which("git"):
        return None
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    return None if done.returncode == 128 else done.stdout


def repository_files() -> list[Path]:
    """What git tracks or would track; without git all that is not made by the course."""
    listed = git("ls-files", "-z", "--cached", "--others", "--exclude-standard")
    if listed is not None:
        return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]
    made = re.compile("_cache/|__pycache__/|\\.egg-info/|\\.ipynb_checkpoints/")
    tops = [path for path in ROOT.iterdir() if path.name not in NOT_OURS]
    files = [file for top in tops for file in (top, *top.rglob("*")) if file.is_file()]
    return [file for file in files if not made.search(file.relative_to(ROOT).as_posix())]


def markdown(path: Path) -> str:
    """The markdown of a notebook or a text, without code, in which brackets are no links."""
    if path.suffix == ".ipynb":
        text = "\n\n".join(cell.source for cell in read_notebook(path).cells if cell.cell_type == "markdown")
    else:
        text = path.read_text(encoding="utf-8")
    text = re.sub(r"^(```|~~~).*?^\1", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"`[^`\n]+`", "", text)


def addresses(text: str) -> list[str]:
    """Targets of all links and pictures."""
    return re.findall(r"\]\(\s*<?([^)>\s]+)", text) + re.findall(r"""(?:href|src)=["']([^"']+)["']""", text)


def anchor(heading: str) -> str:
    """The name by which GitHub lets one link to a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


TEXTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *NOTEBOOKS]


@each_notebook
def test_notebook_is_committed_tidy(path):
    """`make tidy` would change nothing: no outputs, no counts, no editor's state, and Colab's cell first."""
    notebook = read_notebook(path)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.id for cell in code if cell.outputs or cell.execution_count] == [], "run: make tidy"
    url = repository(ROOT)
    assert code[0].source == COLAB_CELL.format(repository=url), "run: make tidy"
    tidy(notebook, url)
    assert path.read_text(encoding="utf-8") == notebook_text(notebook), "run: make tidy"


@each_notebook
def test_notebook_has_what_a_reader_looks_for(path):
    cells = [cell for cell in read_notebook(path).cells if cell.source.strip()]
    code, text = [cell for cell in cells if cell.cell_type == "code"], markdown(path)
    opening = "\n".join(cell.source for cell in cells[: cells.index(code[0])]).lower()
    assert re.match(r"# \S", opening), "the first line is not a title"
    assert [word for word in ("you will learn", "you need", "gpu", "cpu") if word not in opening] == []
    assert re.search(r"\d[^\n]*?(?:\bmin|\bs\b|second)", opening), "the opening names no time"
    closing = "\n".join(cell.source for cell in cells[-3:] if cell.cell_type == "markdown").lower()
    assert "recap" in closing and "next" in closing
    assert "time.time() - STARTED" in code[-1].source, "it does not say how long it took"
    assert re.search(r"\bheadline\(\s*\w+=", "\n".join(cell.source for cell in code)), "nothing for its card"
    assert "../docs/glossary.md" in text
    answers = re.findall(r"<details><summary>Answer</summary>\n\n(.+?)\n\n</details>", text, re.DOTALL)
    assert len(answers) == text.count("**Stop and predict.**") >= 5
    pictures = re.findall(r"!\[[^\]]*\]\(([^)\s]+)|<img[^>]+src=[\"']([^\"']+)", text)
    assert not all(urlsplit(one or other).scheme for one, other in pictures), "no picture of figs/ is shown"
    lines = re.sub(r"\$\$.+?\$\$", "", text, flags=re.DOTALL)
    formulas = re.findall(r"(?<![\\$\w])\$(?=\S)([^$\n]+?)(?<=\S)\$(?![\d$])", lines)
    for formula in formulas + re.findall(r"\$\$(.+?)\$\$", text, re.DOTALL):
        assert tex2mathml(formula)  # raises for a command that pages cannot draw


def asserts_something(source: str) -> bool:
    """Whether a cell has assertions, and none about constants, which could not fail."""
    found = [node.test for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Assert)]
    return bool(found) and all(any(isinstance(part, ast.Name) for part in ast.walk(test)) for test in found)


@each_notebook
def test_notebook_checks_the_reader_s_progress_and_lets_the_reader_do_something(path):
    """Two to four exercises: a task, an empty cell, and a solution that is hidden at first and asserts its result."""
    cells = read_notebook(path).cells
    tags = [cell.metadata.get("tags", ()) for cell in cells]
    checks = [cell for cell, tag in zip(cells, tags, strict=True) if "check" in tag]
    assert checks and [cell.id for cell in checks if not asserts_something(cell.source)] == []
    exercises = [place for place, tag in enumerate(tags) if "exercise" in tag]
    assert 2 <= len(exercises) <= 4
    for place in exercises:
        task, empty, solution = cells[place - 1], cells[place], cells[place + 1]
        if task.cell_type == "code":  # shows what the task is about
            task = cells[place - 2]
        assert re.search(r"^\*\*\d\. ", task.source, re.MULTILINE), f"{empty.id}: no task before it"
        assert empty.cell_type == "code" and not empty.source
        assert "solution" in tags[place + 1] and solution.metadata["jupyter"]["source_hidden"]
        assert asserts_something(solution.source), f"{solution.id}: a solution that asserts nothing"


def test_the_prostate_notebook_takes_names_and_settings_from_one_place():
    """Hospitals may have any names; and the grid that the job trains on is the one on which the cells below evaluate."""
    cells = read_notebook(ROOT / "notebooks" / "03_prostate_fedavg.ipynb").cells
    code = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
    assert re.findall(r"site-[\d*].*", code) == []
    assert re.findall(r"^settings = .*", code, re.MULTILINE) == ["settings = Settings.read(CONFIG_FILE, seed=SEED)"]
    assert len(re.findall(r"\bSettings\b[.(]", code)) == 1
    # Whatever prepares, trains or judges is handed these settings, but for the last section's own run.
    for call in re.findall(r"\b(?:prepare|evaluate_cases|train_locally|train_each_site_alone|predict)\((.*)", code):
        assert re.search(r"\bsettings\b", call), call


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.stem)
def test_links_and_pictures_lead_somewhere_and_pictures_say_what_they_show(path):
    lost = []
    for address in addresses(markdown(path)):
        parts = urlsplit(address)
        target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
        if parts.scheme in ("https", "http"):
            found = re.fullmatch(r"[\w-]+(\.[\w-]+)+(:\d+)?", parts.netloc)
        else:
            found = parts.scheme == "mailto" or (not parts.scheme and target.exists() and target.is_relative_to(ROOT))
        if not parts.scheme and parts.fragment and target.suffix in (".md", ".ipynb"):
            # JupyterLab keeps the capitals and turns only blanks into hyphens, GitHub has its own rules.
            headings = re.findall(r"^#+ (.+?) *$", markdown(target), flags=re.MULTILINE) if found else []
            found = anchor(unquote(parts.fragment)) in map(anchor, headings)
        lost += [] if found else [address]
    assert lost == []
    # For those who do not see it. A picture inside a link is a thumbnail beside the words that name it.
    text = re.sub(r"\[!\[[^\]]*\]\([^)]*\)\]\([^)]*\)", "", markdown(path))
    assert [address for alt, address in re.findall(r"!\[([^\]]*)\]\(([^)]*)\)", text) if not alt.strip()] == []


def test_the_readme_names_its_commands_all_notebooks_and_targets_that_exist_and_every_picture_is_shown():
    readme, makefile = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "Makefile"))
    top = "\n".join(readme.splitlines()[:20])
    assert "make course" in top and "make test" in top
    assert [path.name for path in NOTEBOOKS if f"notebooks/{path.name}" not in readme] == []
    names = [path.stem for path in NOTEBOOKS]
    assert all(re.fullmatch(r"\d\d_\w+", name) for name in names)
    assert {"01_monai_101", "02_mednist_fedavg", "03_prostate_fedavg", "04_different_hospitals"} <= set(names)
    named = set(re.findall(r"(?:`|^)make ([a-z-]+)", readme, re.MULTILINE))
    assert named and named <= set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    # And a picture that no text shows is left over, or missing where it belongs.
    shown = "\n".join(path.read_text(encoding="utf-8") for path in TEXTS)
    assert [path.name for path in repository_files() if path.parent == ROOT / "figs" and path.name not in shown] == []


def test_two_processes_collect_the_same_tests(tmp_path):
    """``pytest-xdist`` stops where its workers' test ids differ: by the second, a hash, a temporary folder, a random number."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", "tests"]
    processes, options = [], {"cwd": ROOT, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    for number in ("1", "2"):
        (tmp_path / number).mkdir()
        environment = {**os.environ, "PYTHONHASHSEED": number, "TMPDIR": str(tmp_path / number), "PYTEST_ADDOPTS": ""}
        processes.append(subprocess.Popen(command, env=environment, **options))
        time.sleep(2.5)  # archives hold times to two seconds
    first, second = (process.communicate()[0].splitlines() for process in processes)
    assert [process.returncode for process in processes] == [0, 0], first[-20:]
    ids = [line for line in first if "::" in line]
    assert len(ids) > 500 and ids == [line for line in second if "::" in line]
    assert [one for one in ids if re.search(r"\\x00|0x|\[.{99}", one)] == [], "an id is a word, not bytes or an address"


def test_no_file_is_large_and_none_names_a_path_of_one_machine():
    """Neither somebody's home nor a fixed temporary folder, which two readers of one machine would share."""
    fixed = re.compile(rb"""(?<![\w.}])/(?:tmp|var/tmp|home/\w|Users/\w|root/|mnt/|work/)""")
    for path in repository_files():
        content = path.read_bytes()
        assert len(content) <= MOST_BYTES, path
        if path != Path(__file__) and path.suffix != ".png":
            assert not [line for line in content.splitlines() if fixed.search(line)], path


def test_what_readers_make_is_ignored_and_what_we_write_is_not():
    made = ["data/MedNIST/Hand/000000.jpeg", "runs/mednist/x/log.txt", "build/course/index.html", ".venv/bin/python"]
    made += ["workspace/course/state/cert.json"]  # what `nvflare provision` makes where no folder is named
    written = ("src/data/x.py", "data_scripts/data_conversion.sh", "src/runs/x.py", "src/config/config_train.json")
    if (ignored := git("check-ignore", "--no-index", *made, *written)) is None:
        pytest.skip("not a git checkout")
    assert ignored.split() == made


def test_what_src_imports_of_itself_travels_with_a_job():
    """FLARE's exporter follows ``from src.x.y import z`` where ``src/x/y.py`` is a file, and no other form."""
    lost = []
    for path in sorted((ROOT / "src").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                lost += [f"{path}: import {name.name}" for name in node.names if name.name.split(".")[0] == "src"]
            elif isinstance(node, ast.ImportFrom) and (node.level or node.module.split(".")[0] == "src"):
                file = ROOT / Path(*(node.module or "").split(".")).with_suffix(".py")
                lost += [] if file.is_file() and not node.level else [f"{path}: from {node.module} import …"]
    assert lost == []
    assert list((ROOT / "src").rglob("__init__.py")) == [], "it would hide what a job carries"


FLOORS = (
    ("src/common",), ("src/federation",), ("src/densenet.py", "src/unet.py"), ("src/mednist", "src/prostate"), ("src/learners",),
    ("src/monai_mednist_train.py", "src/monai_prostate_train.py", "src/tasks.py"),
    ("data_scripts",), ("deploy",), ("benchmarks",), ("book",),
)  # fmt: skip
"""Rooms of the house from the ground up: each may use those below it, and neither those above nor its neighbours."""


def floors_of(module: str) -> set[int]:
    """Numbers of the floors that a dotted name, in which ``*`` stands for any word, may lead to; none for modules of others."""
    words, found = module.split("."), set()
    for number, room in ((number, room) for number, rooms in enumerate(FLOORS) for room in rooms):
        parts = room.removesuffix(".py").split("/")
        any_word = "*" if not room.endswith(".py") else None  # a file has nothing inside that a name could lead to
        same = all(word in (part, any_word) for word, part in zip(words, parts, strict=False))
        if len(words) >= len(parts) and same:
            found.add(number)
    return found


def loaded_by(path: Path) -> set[str]:
    """Dotted names of what a file imports, also inside of functions, by ``importlib`` and its like, or by a name in a text."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module, *(f"{node.module}.{name.name}" for name in node.names)}
        elif isinstance(node, ast.JoinedStr):  # f"src.{name}.training"
            names.add("".join(part.value if isinstance(part, ast.Constant) else "*" for part in node.values))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names.add(node.value)
    return {name for name in names if re.fullmatch(r"\w+(\.(\w+|\*))+", name)}


def test_no_room_uses_one_above_it_and_tasks_have_the_same_rooms():
    """The drawing of the house has no arrow upwards and none between neighbours, whatever way a module is loaded."""
    top = len(FLOORS) - 1
    assert floors_of("src.common.files") == {0} and floors_of("book.figures") == {top} and floors_of("numpy") == set()
    assert 3 in floors_of("src.*.evaluation")
    upwards = []
    for path in repository_files():
        name = path.relative_to(ROOT)
        if path.suffix != ".py" or name.parts[0] in ("tests", "notebooks", "conftest.py"):
            continue
        (here,) = floors_of(".".join(name.with_suffix("").parts))
        (own,) = [room for room in FLOORS[here] if f"{name.as_posix()}/".startswith(f"{room}/")]
        for module in loaded_by(path):
            inside = f"{module.replace('.', '/')}/".startswith(f"{own.removesuffix('.py')}/")
            if not inside and any(floor >= here for floor in floors_of(module)):
                upwards.append(f"{name} → {module}")
    assert upwards == []
    # And what a third task copies: tasks have the same rooms.
    rooms = {name: {file.name for file in (ROOT / "src" / name).glob("*.py")} for name in tasks()}
    assert set(rooms) == {"mednist", "prostate"}
    assert rooms["mednist"] == rooms["prostate"] == {"card.py", "transforms.py", "training.py", "evaluation.py"}


DRIVERS = [f"src/{name}.py" for name in ("monai_mednist_train", "monai_prostate_train", "federation/site")]
DRIVERS += [f"src/learners/supervised_{name}.py" for name in ("learner", "monai_prostate_learner")]
DRIVERS.append("benchmarks/local.py")


def test_what_drives_a_site_is_written_once():
    """No six lines stand twice among the clients, the learner and local training, whatever their names are."""

    def shapes(path: Path) -> list[str]:
        text, skipped = path.read_text(encoding="utf-8"), set()
        for node in ast.walk(ast.parse(text)):
            docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            if docstring or isinstance(node, ast.Import | ast.ImportFrom):
                skipped |= set(range(node.lineno, node.end_lineno + 1))
        code = [line.split("  #")[0].strip() for n, line in enumerate(text.splitlines(), start=1) if n not in skipped]
        word = re.compile(r"""[\w.]+|".*?"|'.*?'""")
        shape = [word.sub(lambda found: found[0] if found[0] in keyword.kwlist else "x", line) for line in code]
        return [line for line in shape if re.search(r"\w", line) and not line.startswith("#")]

    runs, twice = {}, []
    for name in DRIVERS:
        lines = shapes(ROOT / name)
        for run in zip(*(lines[start:] for start in range(6)), strict=False):
            twice += [(name, runs[run], run)] if runs.setdefault(run, name) != name else []
    assert len(runs) > 100 and twice == []


def test_the_house_is_small():
    """A reader reads ``src`` in an evening, and a hospital's engineer reviews it."""

    files = {path.relative_to(ROOT): path for path in repository_files() if path.suffix == ".py"}
    lines = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in files.items()}
    src = {name: count for name, count in lines.items() if name.parts[0] == "src"}
    assert sum(src.values()) <= 3_050 and {name: count for name, count in src.items() if count > 250} == {}
    ours = ("src", "data_scripts", "deploy", "book", "conftest.py")
    assert sum(count for name, count in lines.items() if name.parts[0] in ours) <= 8_250


WAITING = re.compile(
    r"((.*\.)?(wait|wait_\w+|communicate|select|recv\w*|accept|connect\w*|create_connection|check_call|check_output|as_completed"
    r"|urlopen|urlretrieve|download\w*|acquire|lock\w*|flock|new_\w*session|readline)|subprocess\.(run|call)|pool\.map"
    r"|flare\.receive|(?!self\._metrics).*\.get_result|.*\.std(in|out|err)\.read\w*)(\(\))?|.*\.(join|get|result)\(\)"
)  # by their names, what blocks
WAITS = {
    "deploy/processes.py:end_processes_below": ("END_SECONDS", "do not end. End them by hand: kill -9"),
    "deploy/simulator.py:CourseSimEnv._wait": ("silence", "No process of this run"),
    "deploy/simulator.py:Forker.end": "END_SECONDS, for what has been killed",
    "deploy/simulator.py:Simulated.wait": "it asks first whether there is something, and gives a process that is gone END_SECONDS",
    "deploy/simulated.py:main": "it is there for as long as its owner is, and waits for a run that has ended or been killed",
    "deploy/simulated.py:_wait_to_be_a_site": "its parent's end ends it",
    "deploy/flare_2_9.py:hurry": "it is FLARE's own wait, made shorter",
    "src/federation/reasons.py:run_site": "FLARE ends it: it returns None at a run's end, also where the server is gone",
    "src/federation/reasons.py:LastWords.handle_event": ("timeout=5.0", "LAST_WORDS"),
    "src/federation/server.py:RunRecorder._watch": "it watches for as long as the run goes on",
    "src/monai_mednist_train.py:main": "FLARE ends it: the site is there for what the server asks",
    "src/monai_prostate_train.py:main": "FLARE ends it: the site is there for what the server asks",
    "data_scripts/fetching.py:_get": ("SECONDS", "{first_line(error)}: {url}"),
    "data_scripts/folders.py:one_at_a_time": ("LOCK_SECONDS", "Another process still works in"),
    "data_scripts/prostate_download.py:_from_google_drive": ("SECONDS", "Google Drive: {first_line(error)}"),
    "deploy/federation.py:Federation._start_guard": ("GUARD_SECONDS", "it said nothing in"),
    "deploy/federation.py:Federation.close": ("END_SECONDS", "cannot be removed. Delete it by hand"),
    "deploy/federation.py:Federation._wait_until_registered": ("START_SECONDS", "not registered: "),
    "deploy/federation.py:Federation.session": ("START_SECONDS", "The server did not answer"),
    "deploy/federation.py:Federation.fetch": ("JOB_SECONDS", "self._overdue(session, job, timeout)"),
    "deploy/federation.py:Federation.wait_for": ("JOB_SECONDS", "self._overdue(session, job, timeout, wanted)"),
    "deploy/federation.py:_wait": ("END_SECONDS", "does not end. End it by hand: kill -9"),
    "deploy/guard.py:main": "it is there for as long as its owner is",
    "deploy/kits.py:knock": ("KNOCK_SECONDS", "no FLARE server answers at"),
    "deploy/returning.py:ReturningSites.handle_event": ("timeout=2.0", "TWICE"),
    "deploy/returning.py:_wait_until_loss_is_noted": ("LOSS_SECONDS", "does not note the loss"),
    "book/kernel.py:execute": "a cell computes for as long as it does; Ctrl-C ends it, and a kernel has startup_timeout to come up",
    "book/kernel.py:_end_processes": ("timeout=2", "made to"),
    "benchmarks/faults.py:try_once": ("TRY_SECONDS", "the fault tests"),
    "benchmarks/lines.py:SlowLine.__enter__": ("wait(10)", "no line to port"),
    "benchmarks/lines.py:SlowLine._serve": "the line is there for as long as its block",
    "benchmarks/lines.py:SlowLine._connect": "this machine itself answers, or refuses",
    "benchmarks/lines.py:SlowLine._pass": "whoever is called may be silent; either side's end ends it",
    "benchmarks/local.py:train_each_site_alone": "the training itself, in this process",
    "benchmarks/measure.py:Watch._sample": "it watches for as long as its block",
    "benchmarks/measure.py:plain_seconds_side_by_side": ("SIDE_SECONDS", "processes that each train on their part"),
    "benchmarks/measure.py:_one_of_many": ("SIDE_SECONDS", "processes that each train on their part"),
    "benchmarks/methods.py:main": "the trainings themselves, in processes of this machine",
    "benchmarks/methods.py:tune": "the same",
    "benchmarks/peer_flower/run.py:environment": ("INSTALL_SECONDS", "Flower's import"),
    "benchmarks/peer_flower/run.py:flower_seconds": ("RUN_SECONDS", "Flower's simulation"),
    "benchmarks/threads.py:busy_programs": ("ROW_SECONDS", "a killed program"),
    "benchmarks/threads.py:measure": ("ROW_SECONDS", "busy programs"),
    "notebooks:subprocess.run": ("timeout=600", "check=True"),
    "notebooks:time.sleep": ("time.monotonic() + 180", "After three minutes only"),
    "notebooks:socket.create_connection": ("port), 1.0)", "port still open"),
    "notebooks:%%bash": "data_scripts, see above; the reader can stop the cell",
    "anywhere:get_result": "of a run: see the simulator",
    "anywhere:hospitals.wait_for": "see deploy/federation.py",
    "anywhere:hospitals.fetch": "see deploy/federation.py",
}
"""Place → its limit and its words, as they stand in that file; or why there is no limit."""


def waits(tree: ast.AST, where: str = "", loop: bool = False) -> Iterator[tuple[str, str]]:
    """Function and call of each thing that waits below a node; a ``sleep`` in a loop waits for something."""
    for node in ast.iter_child_nodes(tree):
        named = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        inside = f"{where}.{node.name}".strip(".") if named else where
        called, timed = "", False
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func) + ("" if node.args or node.keywords else "()")
            timed = any(one.arg == "timeout" for one in node.keywords)
        if isinstance(node, ast.Await) or WAITING.fullmatch(called) or timed or (loop and called.endswith("sleep")):
            yield inside, called or "await"
        yield from waits(node, inside, loop or isinstance(node, ast.While | ast.For))


def test_every_wait_has_a_limit_and_words():
    """One wait, one limit: who adds a place that waits says here for how long, and in that file what is said then."""
    found, texts = set(), {"notebooks": "\n".join(path.read_text(encoding="utf-8") for path in NOTEBOOKS)}
    for path in repository_files():
        name = path.relative_to(ROOT).as_posix()
        if path.suffix == ".py" and name.split("/")[0] in ("src", "data_scripts", "deploy", "benchmarks", "book"):
            texts[name] = path.read_text(encoding="utf-8")
            found |= {(f"{name}:{inside}", called) for inside, called in waits(ast.parse(texts[name]))}
    for cell in (cell for path in NOTEBOOKS for cell in read_notebook(path).cells if cell.cell_type == "code"):
        found |= {("notebooks:%%bash", "%%bash")} if cell.source.startswith("%%bash") else set()
        code = "" if cell.source.startswith("%%") else re.sub(r"^[%!].*", "", cell.source, flags=re.MULTILINE)
        found |= {(f"notebooks:{called}", called) for _, called in waits(ast.parse(code))}
    said = {place: words for place, words in WAITS.items() if not isinstance(words, str)}
    endless = re.compile(r".*\.(wait|join|get|result|communicate|acquire)\(\)")
    assert [one for one in found if one[0] in said and endless.fullmatch(one[1])] == [], "a call without a limit"
    anywhere, places = [one for one in WAITS if one.startswith("anywhere:")], set()
    for place, called in found:
        ends = [one for one in anywhere if called.removesuffix("()").endswith(one.removeprefix("anywhere:"))]
        places.add(ends[0] if ends else place)
    assert sorted(places ^ set(WAITS)) == [], "places that are not in the table, or are there no more"
    unsaid = [(place, one) for place in said for one in said[place] if one not in texts[place.split(":")[0]]]
    assert unsaid == []


def test_a_checkout_by_windows_git_works_in_wsl(tmp_path):
    """Where ``core.autocrlf`` would end lines as Windows does, which bash takes for a part of each line's last word."""
    if (listed := git("ls-files", "--eol")) is None:
        pytest.skip("not a git checkout")
    assert [line for line in listed.splitlines() if re.search(r"[iw]/(crlf|mixed)", line)] == []
    clone = tmp_path / "clone"
    assert git("clone", "--quiet", "--depth=1", "-c", "core.autocrlf=true", ROOT.as_uri(), str(clone)) is not None
    command, environment = ["bash", clone / "data_scripts/data_conversion.sh", "--help"], {"PYTHON": sys.executable}
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith("usage: data_conversion.sh")


def test_versions_of_requirements_are_all_pinned_and_leave_a_torch_that_is_there():
    """`make` installs with constraints.txt: what it does not pin could change under the tests."""
    pins = re.findall(r"^([^#\s].*?)==", (ROOT / "constraints.txt").read_text(encoding="utf-8").lower(), re.MULTILINE)
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    wanted = [re.match(r"[\w.-]+", line)[0].lower() for line in lines if re.match(r"\w", line)]
    assert "torch" in wanted and lines[-1] == "." and [name for name in wanted if name not in pins] == []
    # A lower bound, no pin, and none below what MONAI accepts: Colab's own PyTorch, built for its GPUs, stays.
    (ours,) = [Requirement(line) for line in lines if re.match(r"torch\b", line)]
    assert [one.operator for one in ours.specifier] == [">="]
    (lowest,) = [one.version for one in ours.specifier]
    theirs = map(Requirement, metadata.requires("monai"))
    (monai,) = [one for one in theirs if one.name == "torch" and one.marker is None]
    assert monai.specifier.contains(lowest)
