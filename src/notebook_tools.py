"""Keep the notebooks as the repository wants them: ``python -m src.notebook_tools``, which is what ``make tidy`` calls.

No outputs, no execution counts, no state of one reader's editor, and as first code cell the one that installs the
course in Google Colab. ``--repository URL`` makes a fork its own: Colab then installs the course from there.
"""

import argparse
import re
import sys
from pathlib import Path

from src.errors import CourseError
from src.paths import write_text

# Colab starts with an empty machine, so the first cell brings the course there. Everywhere else it does nothing.
# A copy of the course, not an editable install: only a copy can be imported by the process that has just installed it.
COLAB_CELL = """\
# In Google Colab this installs the course from its repository; anywhere else it does nothing.
import sys

COURSE_REPOSITORY = "{repository}"

if "google.colab" in sys.modules:
    import importlib
    import os
    import subprocess
    from pathlib import Path

    course = Path("/content/course")
    if not course.is_dir():
        subprocess.run(["git", "clone", "--quiet", "--depth=1", COURSE_REPOSITORY, course], check=True)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "-r", "requirements.txt"]
    subprocess.run(pip, cwd=course, check=True)
    importlib.invalidate_caches()
    os.chdir(course / "notebooks")"""

# Cell metadata that is part of the notebook; the rest is the state of one editor or one run.
_KEPT_CELL_METADATA = ("tags", "jupyter")
_SLUG = r"[\w.-]+/[\w.-]+?"


def repository(root: Path) -> str:
    """The course's repository: ``Repository`` under ``[project.urls]`` in ``pyproject.toml`` of the checkout ``root``.

    Raises:
        CourseError: if there is no such file, or it names no repository.
    """
    path = root / "pyproject.toml"
    if not path.is_file():
        raise CourseError(f"{root} is not a checkout of the course: there is no {path.name} in it.")
    found = re.search(r'^Repository = "(.+)"$', path.read_text(encoding="utf-8"), re.MULTILINE)
    if not found:
        raise CourseError(f'{path} has no line Repository = "https://github.com/..." in [project.urls].')
    return found[1]


def read_notebook(path: Path):
    """A notebook file as an nbformat 4 node; one of an older minor version comes with the cell ids of 4.5.

    Raises:
        CourseError: if the file is not a notebook.
    """
    import nbformat

    try:
        notebook = nbformat.read(path, as_version=4)
    except (nbformat.reader.NotJSONError, nbformat.ValidationError, UnicodeDecodeError, AttributeError) as error:
        reason = (str(error).splitlines() or ["?"])[0]
        raise CourseError(
            f"{path} is not a notebook that can be read ({reason[:200]}). Restore it: git checkout -- '{path.name}'"
        ) from error
    if notebook.nbformat_minor < 5:
        notebook = nbformat.v4.upgrade(notebook, from_version=4, from_minor=notebook.nbformat_minor)
    return notebook


def tidy(notebook, url: str) -> None:
    """Bring one notebook (nbformat 4.5 node), in place, into the form that is committed.

    Clears outputs and execution counts, reduces the metadata to what every reader shares, and makes :data:`COLAB_CELL`
    (the cell tagged ``colab``) the first of the code cells.
    """
    import nbformat

    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    colab = next((cell for cell in notebook.cells if "colab" in cell.metadata.get("tags", ())), None)
    if colab is None:
        colab = nbformat.v4.new_code_cell(metadata={"tags": ["colab"]}, id="colab")
    colab.source = COLAB_CELL.format(repository=url)
    others = [cell for cell in notebook.cells if cell is not colab]
    first = next((place for place, cell in enumerate(others) if cell.cell_type == "code"), len(others))
    notebook.cells = [*others[:first], colab, *others[first:]]
    for cell in notebook.cells:
        for key in set(cell.metadata) - set(_KEPT_CELL_METADATA):
            del cell.metadata[key]
        # Whether the last reader had outputs folded away is not part of the notebook; a folded source is.
        cell.metadata.get("jupyter", {}).pop("outputs_hidden", None)
        if not cell.metadata.get("jupyter", True):
            del cell.metadata["jupyter"]
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None


def notebook_text(notebook) -> str:
    """The notebook as the text of its file."""
    import nbformat

    return nbformat.writes(notebook).rstrip("\n") + "\n"


def tidy_all(root: Path, url: str | None = None) -> list[Path]:
    """Tidy all notebooks of the checkout ``root`` and, if ``url`` is given, make it the repository that all files name.

    Args:
        root: the checkout.
        url: ``https://github.com/<owner>/<name>``; Colab opens notebooks from GitHub.

    Returns:
        The files that were changed.

    Raises:
        CourseError: for a URL of another form, or a notebook that cannot be read.
    """
    old = repository(root)
    url = (url or old).removesuffix("/").removesuffix(".git")
    if not re.fullmatch(rf"https://github\.com/{_SLUG}", url):
        raise CourseError(f"{url} is not of the form https://github.com/<owner>/<name>, which Colab can open.")
    tidied = {}
    for path in sorted((root / "notebooks").glob("*.ipynb")):
        notebook = read_notebook(path)
        tidy(notebook, url)
        tidied[path] = notebook_text(notebook)
    old_slug, slug = (address.removeprefix("https://github.com/") for address in (old, url))
    others = [path for path in (root / "pyproject.toml", root / "README.md") if path.is_file()]
    changed = []
    for path in (*others, *tidied):
        before = path.read_text(encoding="utf-8")
        # The address itself, and Colab's and nbviewer's links to the files in it.
        after = re.sub(
            rf"(github(?:\.com)?/){re.escape(old_slug)}(?![\w-])",
            lambda match: match[1] + slug,
            tidied.get(path, before),
        )
        if after != before:
            write_text(path, after)
            changed.append(path)
    return changed


def main(arguments: list[str] | None = None) -> int:
    """Command line of :func:`tidy_all`."""
    parser = argparse.ArgumentParser(prog="python -m src.notebook_tools", description="Tidy the notebooks.")
    parser.add_argument("--repository", metavar="URL", help="the repository that Colab installs the course from")
    try:
        changed = tidy_all(Path(__file__).resolve().parent.parent, parser.parse_args(arguments).repository)
    except CourseError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n".join(f"tidied {path.name}" for path in changed) or "The notebooks are tidy.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
