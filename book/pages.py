"""Turn executed notebooks into pages: what Sphinx needs beside them, a front page with a card for each, and the call."""

import base64
import io
import mimetypes
import os
import platform
import re
import shutil
import sys
import tempfile
import time
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from jinja2 import StrictUndefined, Template
from markdown_it import MarkdownIt
from nbformat import NotebookNode
from nbformat.v4 import new_markdown_cell
from sphinx.application import Sphinx
from sphinx.util.docutils import docutils_namespace, patch_docutils

from book.headline import in_words
from book.tidy import ROOT, notebook_text, read_notebook, repository
from data_scripts.folders import data_source
from src.common.files import write_file, writing

_BOOK = Path(__file__).resolve().parent
_DATA = {"generated": "generated drawings, not patients", "real": "the real data sets"}
_HIDDEN = {"colab": "remove-cell", "solution": "hide-cell"}  # by MyST-NB


def write_pages(build: Path, notebooks: Path, summary: dict[str, dict]) -> None:
    """Write the front page, and a page for each notebook of the summary, beside the executed ones in ``build``.

    Relative links in them start from ``notebooks``, where they come from.
    """
    with writing(build), tempfile.TemporaryDirectory(prefix=".pages-", dir=build) as temporary:
        source, output = Path(temporary, "source"), Path(temporary, "output")
        (source / "thumbnails").mkdir(parents=True)
        cards, docs = [], sorted((notebooks.parent / "docs").glob("*.md"))
        for name in sorted(summary):
            notebook = read_notebook(build / f"{name}.ipynb")
            cards.append(_card(notebook, name, summary[name], source))
            _prepare(notebook, notebooks, source, summary)
            write_file(source / f"{name}.ipynb", notebook_text(notebook))
        for page in docs:
            write_file(source / page.name, _linked(page.read_text("utf-8"), page.parent, notebooks, source, summary))
        template = Template((_BOOK / "index.md").read_text("utf-8"), undefined=StrictUndefined, trim_blocks=True)
        index = template.render(cards=cards, docs=[page.stem for page in docs], measured=_measured(summary))
        write_file(source / "index.md", index)
        warnings = io.StringIO()
        with patch_docutils(_BOOK), docutils_namespace():
            Sphinx(source, _BOOK, output, Path(temporary, "doctrees"), "html", status=None, warning=warnings).build()
        # Without colours, and of the file that a reader can mend.
        sys.stderr.write(re.sub(r"\x1b\[[0-9;]*m", "", warnings.getvalue()).replace(str(source), str(notebooks)))
        for new in output.iterdir():  # folders as a whole, so that no picture of an earlier run stays
            if (build / new.name).is_dir():
                shutil.rmtree(build / new.name)
            new.replace(build / new.name)


def duration(seconds: float) -> str:
    """A measured time as a reader sees it."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def _linked(text: str, base: Path, notebooks: Path, source: Path, names: dict) -> str:
    """Point the relative links of a text in the folder ``base`` to pages, pictures and the repository."""
    root = notebooks.parent

    def place(found: re.Match) -> str:
        start, address = found[1], urlsplit(found[2])
        target = (base / unquote(address.path)).resolve()
        if address.scheme or not address.path or not target.exists() or root not in target.parents:
            return found[0]
        page = target.parent == notebooks and target.suffix == ".ipynb" and target.stem in names
        if page or (target.parent == root / "docs" and target.suffix == ".md"):
            file = target.name if start == "](" else f"{target.stem}.html"
            return start + quote(file) + (f"#{address.fragment}" if address.fragment else "")
        file, kind = target.relative_to(root).as_posix(), mimetypes.guess_type(target.name)[0] or ""
        if start.startswith("src"):  # in HTML, which Sphinx leaves alone
            return f"{start}data:{kind};base64,{base64.b64encode(target.read_bytes()).decode()}"
        if kind.startswith("image/"):  # Sphinx finds no picture whose name is quoted
            return start + Path(shutil.copyfile(target, source / re.sub(r"[^\w.-]", "-", file))).name
        return f"{start}{repository(ROOT)}/{'tree' if target.is_dir() else 'blob'}/main/{quote(file)}"

    return re.sub(r"""(\]\(|(?:href|src)=["'])([^)"'\s]+)""", place, text)


def _prepare(notebook: NotebookNode, notebooks: Path, source: Path, names: dict) -> None:
    """Point relative links to pages, pictures and the repository, and say what is hidden."""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = _linked(cell.source, notebooks, notebooks, source, names)
        tags = cell.metadata.get("tags", [])
        cell.metadata.tags = tags + [_HIDDEN[tag] for tag in tags if tag in _HIDDEN]


def _card(notebook: NotebookNode, name: str, entry: dict, source: Path) -> dict:
    """What the front page says of one notebook; its picture is put into ``source``."""
    title, opening = _title_and_opening(notebook)
    if not title:  # a page has to have one
        title = name
        notebook.cells.insert(0, new_markdown_cell(f"# {name}"))
    # The last one of a cell tagged `thumbnail`, else the last one of all.
    cells = sorted(notebook.cells, key=lambda cell: "thumbnail" in cell.metadata.get("tags", ()))
    outputs = [output.get("data", {}) for cell in cells for output in cell.get("outputs", ())]
    pictures = [data["image/png"] for data in outputs if "image/png" in data]
    if pictures:
        write_file(source / "thumbnails" / f"{name}.png", base64.b64decode(pictures[-1]))
    return {
        "name": name,
        "number": re.sub(r"^0*(\d*).*", r"\1", name) or "·",
        "title": title,
        "stop": re.sub(r"^\d+[\s.:·_-]*", "", title) or title,  # on the map, which shows the number already
        "opening": opening,
        "picture": f"thumbnails/{name}.png" if pictures else "",
        "headlines": in_words(entry),
        "time": duration(entry["seconds"]),
        "error": entry.get("error"),
    }


def _title_and_opening(notebook: NotebookNode) -> tuple[str, str]:
    """The notebook's title and the first sentence of its first paragraph, without markup."""
    found = {"h1": "", "p": ""}
    text = "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    for start, content in pairwise(MarkdownIt().parse(text)):
        parts = [part for part in content.children or () if part.type not in ("image", "html_inline")]
        plain = "".join(" " if part.type == "softbreak" else part.content for part in parts).strip()
        # A paragraph that is neither in a list nor a picture or a row of badges.
        if start.nesting == 1 and (start.tag == "h1" or (start.tag == "p" and start.level == 0 and len(plain) > 40)):
            found[start.tag] = found[start.tag] or plain
    return found["h1"], re.match(r".+?[.!?:](?=\s|$)|.*", found["p"])[0].rstrip(":")


def _measured(summary: dict) -> str:
    """What the numbers on the page were measured with: without that they are no measurements."""
    versions = ", ".join(f"{package} {version(package)}" for package in ("nvflare", "monai", "torch"))
    run = f"Run in {duration(sum(entry['seconds'] for entry in summary.values()))}, finished {time.strftime('%Y-%m-%d %H:%M')}"
    machine = f"on {os.cpu_count()} processor cores with Python {platform.python_version()}, {versions}"
    return f"{run}, {machine}. Images: {_DATA[data_source()]}."
