"""Notebooks as they are committed, and the cell that installs the course in Google Colab."""

import os
import shutil
import subprocess
import sys
import types
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from book.tidy import COLAB_CELL, main, notebook_text, read_notebook, repository, tidy_all
from tests.tests_support import course_error, files_of

URL = "https://github.com/someone/a-course"


def used_notebook():
    """A notebook as editors leave it, of the time when cells had no ids."""
    code = new_code_cell("1 + 1", execution_count=7, outputs=[new_output("execute_result", {"text/plain": "2"})])
    code.metadata.update(
        {"tags": ["check"], "scrolled": True, "execution": {"iopub.execute_input": "2026-01-01"}, "id": "x", "outputId": "y",
         "jupyter": {"outputs_hidden": True, "source_hidden": True}, "colab": {"height": 35}, "vscode": {"languageId": "python"}}
    )  # fmt: skip
    colab = new_code_cell("old", metadata={"tags": ["colab"], "editable": True})
    metadata = {"kernelspec": {"name": "my-env", "display_name": "my env"}, "widgets": {}, "vscode": {"id": 1}}
    cells = [new_markdown_cell("# Title", metadata={"collapsed": True}), code, colab]
    notebook = new_notebook(cells=cells, metadata=metadata)
    notebook.nbformat_minor = 4
    for cell in notebook.cells:
        del cell["id"]
    return notebook


@pytest.fixture
def checkout(tmp_path):
    root = tmp_path / "check out"
    (root / "notebooks").mkdir(parents=True)
    (root / "pyproject.toml").write_text(f'[project.urls]\nRepository = "{URL}"\n')
    colab = "https://colab.research.google.com/github/someone/a-course/blob/main/notebooks/a.ipynb"
    (root / "README.md").write_text(f"{colab} https://github.com/someone/a-course-of-another\n")
    for name, notebook in {"a": used_notebook(), "b": new_notebook(cells=[new_markdown_cell("# Title")])}.items():
        (root / "notebooks" / f"{name}.ipynb").write_text(notebook_text(notebook))
    return root


def test_once_tidied_a_notebook_has_what_every_reader_shares_and_the_colab_cell_in_front(monkeypatch, checkout, capsys):
    monkeypatch.setattr("book.tidy.ROOT", checkout)
    assert [main([]), main([])] == [0, 0]
    assert capsys.readouterr().out == "tidied a.ipynb\ntidied b.ipynb\nThe notebooks are tidy.\n"
    used, bare = (read_notebook(checkout / "notebooks" / f"{name}.ipynb") for name in "ab")
    nbformat.validate(used)
    assert (used.nbformat_minor, set(used.metadata)) == (5, {"kernelspec", "language_info"})
    assert used.metadata.kernelspec.name == "python3" and bare.cells[1].metadata.tags == ["colab"]
    title, colab, code = used.cells
    assert (title.source, title.metadata) == ("# Title", {})
    assert (colab.metadata, colab.source) == ({"tags": ["colab"]}, COLAB_CELL.format(repository=URL))
    assert (code.source, code.outputs, code.execution_count) == ("1 + 1", [], None)
    assert code.metadata == {"tags": ["check"], "jupyter": {"source_hidden": True}}


def test_what_cannot_be_used_changes_nothing(monkeypatch, checkout, capsys, tmp_path):
    monkeypatch.setattr("book.tidy.ROOT", checkout)
    for content in ("", "{", "[]", "{}", '{"nbformat": 4', "\x00"):
        (tmp_path / "broken.ipynb").write_text(content)
        course_error(r"broken\.ipynb is not a notebook", read_notebook, tmp_path / "broken.ipynb")
    before = files_of(checkout)
    for url in ("nowhere", "https://gitlab.com/a/b", "git@github.com:a/b.git", "https://github.com/a", "a/b"):
        assert main(["--repository", url]) == 2
        assert capsys.readouterr().err.startswith(f"error: {url.removesuffix('.git')} is not of the form https://")
    assert files_of(checkout) == before
    course_error("a checkout", tidy_all, checkout / "notebooks")


def test_a_fork_makes_the_course_its_own(checkout):
    tidy_all(checkout, "https://github.com/fork-er/course.git")
    assert repository(checkout) == "https://github.com/fork-er/course"
    readme, cells = (checkout / "README.md").read_text(), read_notebook(checkout / "notebooks" / "a.ipynb").cells
    assert "colab.research.google.com/github/fork-er/course/blob/main" in readme
    assert "github.com/someone/a-course-of-another" in readme
    assert 'COURSE_REPOSITORY = "https://github.com/fork-er/course"' in cells[1].source and tidy_all(checkout) == []


def test_colab_cell_clones_installs_and_imports_in_one_process(monkeypatch, tmp_path):
    """As in Colab, but for the place of the clone, and with stand-ins for git and for pip, which installs a copy."""
    origin, site = tmp_path / "origin", tmp_path / "site-packages"
    (origin / "notebooks").mkdir(parents=True)
    site.mkdir()
    for name, text in (("notebooks/a.ipynb", "{}"), ("course_in_colab.py", "answer = 42"), ("requirements.txt", ".")):
        (origin / name).write_text(text + "\n")
    monkeypatch.syspath_prepend(str(site))
    with pytest.raises(ImportError):  # and Python now remembers the folder as empty
        import course_in_colab

    called = []

    def run(command, check, timeout, cwd=None):
        called.append(command[0])
        if command[0] == "git":
            assert command[1] == "clone" and command[-2] == URL
            shutil.copytree(origin, command[-1])
        else:
            assert (cwd / command[-1]).is_file()
            shutil.copy(cwd / "course_in_colab.py", site)

    monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.chdir(tmp_path)
    for name in ("GOMP_SPINCOUNT", "KMP_BLOCKTIME"):
        monkeypatch.delenv(name)
    for name in ("PATH", "PYTHON"):
        monkeypatch.setenv(name, os.defpath)  # and back, whatever the cell does
    cell = COLAB_CELL.format(repository=URL).replace("/content/course", str(tmp_path / "clone"))
    exec(cell, {})
    assert Path.cwd() == tmp_path / "clone" / "notebooks" and Path("a.ipynb").is_file()
    import course_in_colab

    assert course_in_colab.answer == 42 and (os.environ["GOMP_SPINCOUNT"], os.environ["KMP_BLOCKTIME"]) == ("600", "1")
    path = os.environ["PATH"]
    exec(cell, {})  # a reader may run the cell again
    assert os.environ["PATH"] == path == os.pathsep.join([str(Path(sys.executable).parent), os.defpath])
    assert called == ["git", sys.executable, sys.executable]


def test_a_kernel_that_was_started_by_its_path_finds_its_environment_by_name(tmp_path):
    """As from a JupyterLab of another environment, and by those who run the cell twice: what ``%%bash`` and ``%tensorboard`` do."""
    script = f"""
from tensorboard import manager
for _ in range(2):
    get_ipython().run_cell({COLAB_CELL.format(repository=URL)!r})
get_ipython().run_cell_magic("bash", "", "command -v tensorboard python3; echo $PYTHON; echo $PATH")
print(type(manager.start(["--version"])).__name__)  # it says its version and ends, where it is found
"""
    command = [sys.executable, "-m", "IPython", "--no-banner", "--quick", "-c", script]
    bare = {"PATH": os.defpath, "HOME": str(tmp_path), "PYTHON": "python3.9"}
    done = subprocess.run(command, env=bare, capture_output=True, text=True, timeout=300)
    own = Path(sys.executable).parent
    found = [f"{own}/tensorboard", f"{own}/python3", sys.executable, f"{own}:{os.defpath}", "StartFailed"]
    assert (done.stdout.splitlines(), done.stderr) == (found, "")
