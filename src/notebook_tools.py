"""Keep the notebooks as the repository wants them: ``python -m src.notebook_tools``, which is what ``make tidy`` calls.

No outputs, no execution counts, no state of one reader's editor, and as first code cell the one that installs the course in
Google Colab. ``--repository URL`` makes a fork its own: Colab then installs the course from there.
"""

import argparse
import os
import re
import sys
from pathlib import Path

from src.errors import CourseError

# Colab starts with an empty machine, so the first cell brings the course there. Everywhere else it does nothing.
COLAB_CELL = """\
# In Google Colab this installs the course from its repository; anywhere else it does nothing.
COURSE_REPOSITORY = "{repository}"

import sys

if "google.colab" in sys.modules:
    import os
    import subprocess

    course = "/content/course"
    if not os.path.isdir(course):
        subprocess.run(["git", "clone", "--quiet", "--depth", "1", COURSE_REPOSITORY, course], check=True)
    pip = [sys.executable, "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, "--requirement", "requirements.txt"], cwd=course, check=True)
    subprocess.run([*pip, "--no-deps", "--editable", "."], cwd=course, check=True)
    sys.path.insert(0, course)  # an editable install is seen by new processes only
    os.chdir(f"{{course}}/notebooks")"""

_SLUG = r"[\w.-]+/[\w.-]+?"


def repository(root: Path) -> str:
    """The course's repository: ``Repository`` under ``[project.urls]`` in ``pyproject.toml`` of the checkout ``root``.

    Raises:
        CourseError: if the file names none.
    """
    found = re.search(r'^Repository = "(.+)"$', (root / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    if not found:
        raise CourseError(
            f'{root / "pyproject.toml"} has no line Repository = "https://github.com/..." in [project.urls].'
        )
    return found[1]


def tidy(notebook, url: str) -> None:
    """Bring one notebook (nbformat 4 node), in place, into the form that is committed.

    Clears outputs and execution counts, reduces the metadata to what every reader shares, and sets the first code cell (the
    one tagged ``colab``; made if there is none) to :data:`COLAB_CELL`.
    """
    import nbformat

    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for cell in code:
        cell.outputs, cell.execution_count = [], None
        cell.metadata.pop("execution", None)
    colab = next((cell for cell in code if "colab" in cell.metadata.get("tags", ())), None)
    if colab is None:
        colab = nbformat.v4.new_code_cell(metadata={"tags": ["colab"]}, id="colab")
        notebook.cells.insert(notebook.cells.index(code[0]) if code else len(notebook.cells), colab)
    colab.source = COLAB_CELL.format(repository=url)


def tidy_all(root: Path, url: str | None = None) -> list[Path]:
    """Tidy all notebooks of the checkout ``root`` and, if ``url`` is given, make it the repository that all files name.

    Args:
        root: the checkout.
        url: ``https://github.com/<owner>/<name>``; Colab opens notebooks from GitHub.

    Returns:
        The files that were changed.

    Raises:
        CourseError: for a URL of another form.
    """
    import nbformat

    old = repository(root)
    url = (url or old).removesuffix("/").removesuffix(".git")
    if not re.fullmatch(rf"https://github\.com/{_SLUG}", url):
        raise CourseError(f"{url} is not of the form https://github.com/<owner>/<name>, which Colab can open.")
    changed = {}
    for path in sorted((root / "notebooks").glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        tidy(notebook, url)
        changed[path] = nbformat.writes(notebook) + "\n"
    slug = url.removeprefix("https://github.com/")
    for path in (root / "pyproject.toml", root / "README.md", *changed):
        text = changed.get(path) or path.read_text(encoding="utf-8")
        # The address itself, and Colab's and nbviewer's links to the files in it.
        changed[path] = re.sub(
            rf"(github(?:\.com)?/){re.escape(old.removeprefix('https://github.com/'))}(?![\w-])",
            lambda match: match[1] + slug,
            text,
        )
    changed = {path: text for path, text in changed.items() if path.read_text(encoding="utf-8") != text}
    for path, text in changed.items():
        beside = path.with_name(f".{path.name}.new")
        beside.write_text(text, encoding="utf-8")
        os.replace(beside, path)
    return list(changed)


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
