"""Keep the notebooks as they are committed: ``python -m book.tidy``, which is what ``make tidy`` calls.

No outputs, no execution counts, no state of an editor, and as first code cell the one that installs the course in Google Colab.
``--repository URL`` makes a fork its own: Colab then installs the course from there.
"""

import argparse
import itertools
import re
import sys
from pathlib import Path

import nbformat

from src.common.errors import CourseError, first_line
from src.common.files import write_file

ROOT = Path(__file__).resolve().parent.parent
GITHUB = "https://github.com/"
# A copy of the course, not an editable install: only a copy can be imported by the process that has just installed it.
COLAB_CELL = """\
# PyTorch's threads wait by spinning; a short wait leaves the cores to others. Read when PyTorch loads.
# Then, in Google Colab alone, this installs the course from its repository.
import os
import sys
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "600")
os.environ.setdefault("KMP_BLOCKTIME", "1")
# This kernel's environment comes first wherever a program is looked for by name: nobody need have activated it.
os.environ["PATH"] = os.pathsep.join(dict.fromkeys([str(Path(sys.executable).parent), *os.get_exec_path()]))
os.environ["PYTHON"] = sys.executable  # of the scripts in data_scripts
COURSE_REPOSITORY = "{repository}"

if "google.colab" in sys.modules:
    import importlib
    import subprocess

    course = Path("/content/course")
    if not course.is_dir():
        subprocess.run(["git", "clone", "--quiet", "--depth=1", COURSE_REPOSITORY, course], check=True, timeout=600)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "-r", "requirements.txt"]
    subprocess.run(pip, cwd=course, check=True, timeout=3600)
    importlib.invalidate_caches()
    os.chdir(course / "notebooks")"""
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


def repository(root: Path) -> str:
    """The course's repository: ``Repository`` under ``[project.urls]`` in ``pyproject.toml`` of the checkout ``root``."""
    path = root / "pyproject.toml"
    found = re.search(r'^Repository = "(.+)"$', path.read_text("utf-8") if path.is_file() else "", re.MULTILINE)
    if not found:
        raise CourseError(f'{path} has no line Repository = "{GITHUB}..." in [project.urls]. Is {root} a checkout?')
    return found[1]


def read_notebook(path: Path) -> nbformat.NotebookNode:
    """A notebook file as an nbformat 4.5 node; a CourseError if it is none."""
    try:
        notebook = nbformat.read(path, as_version=4)
    except (nbformat.reader.NotJSONError, nbformat.ValidationError, UnicodeDecodeError, AttributeError) as error:
        what = f"{path} is not a notebook that can be read ({first_line(error)})."
        raise CourseError(f"{what} Restore it: git checkout -- '{path.name}'") from error
    # An older minor version has no cell ids.
    return nbformat.v4.upgrade(notebook)


def notebook_text(notebook: nbformat.NotebookNode) -> str:
    """The notebook as the text of its file."""
    return nbformat.writes(notebook).rstrip("\n") + "\n"


def tidy(notebook: nbformat.NotebookNode, url: str) -> None:
    """Bring a notebook, in place, into its committed form; the cell tagged ``colab`` becomes the first code cell."""
    notebook.metadata = nbformat.from_dict({"kernelspec": KERNEL, "language_info": {"name": "python"}})
    for cell in notebook.cells:
        folded = cell.metadata.get("jupyter", {}).get("source_hidden")
        kept = {"tags": cell.metadata.get("tags"), "jupyter": {"source_hidden": True} if folded else None}
        cell.metadata = nbformat.from_dict({key: value for key, value in kept.items() if value})
        if cell.cell_type == "code":
            cell.update(outputs=[], execution_count=None)
    colab = next((cell for cell in notebook.cells if "colab" in cell.metadata.get("tags", ())), None)
    colab = colab or nbformat.v4.new_code_cell(metadata={"tags": ["colab"]}, id="colab")
    colab.source = COLAB_CELL.format(repository=url)
    others = [cell for cell in notebook.cells if cell is not colab]
    opening = list(itertools.takewhile(lambda cell: cell.cell_type != "code", others))
    notebook.cells = [*opening, colab, *others[len(opening) :]]


def tidy_all(root: Path, url: str | None = None) -> list[Path]:
    """Tidy all notebooks of the checkout ``root``; with ``url``, also make it the repository that all files name.

    Returns the files that were changed. A CourseError for a URL or a notebook that cannot be used changes nothing.
    """
    old = repository(root)
    url = (url or old).removesuffix("/").removesuffix(".git")
    if not re.fullmatch(rf"{GITHUB}[\w.-]+/[\w.-]+", url):
        raise CourseError(f"{url} is not of the form {GITHUB}<owner>/<name>, which Colab can open.")
    texts = {path: path.read_text("utf-8") for path in (root / "pyproject.toml", root / "README.md")}
    for path in sorted((root / "notebooks").glob("*.ipynb")):
        notebook = read_notebook(path)
        tidy(notebook, url)
        texts[path] = notebook_text(notebook)
    # The address itself, and Colab's and nbviewer's links to the files in it.
    ours = re.compile(rf"(github(?:\.com)?/){re.escape(old.removeprefix(GITHUB))}(?![\w-])")
    new = {path: ours.sub(lambda found: found[1] + url.removeprefix(GITHUB), text) for path, text in texts.items()}
    return [write_file(path, text) for path, text in new.items() if text != path.read_text("utf-8")]


def main(arguments: list[str] | None = None) -> int:
    """Command line of :func:`tidy_all`. Returns 0, or 2 for a bad call."""
    parser = argparse.ArgumentParser(prog="python -m book.tidy", description="Tidy the notebooks.")
    parser.add_argument("--repository", metavar="URL", help="the repository that Colab installs the course from")
    try:
        changed = tidy_all(ROOT, parser.parse_args(arguments).repository)
    except CourseError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n".join(f"tidied {path.name}" for path in changed) or "The notebooks are tidy.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
