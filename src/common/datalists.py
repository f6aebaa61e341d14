"""Sites and their data: the folder in which a site finds its own.

A site's folder is ``$COURSE_DATA/sites/<data name>/<site>/``. It holds ``datalist.json``, in the format of the Medical Segmentation
Decathlon: the parts ``training``, ``validation`` and ``testing``, each a list of ``{"image": path, "label": path or number}`` with
paths relative to the folder. A job names the data and never says where they are.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from src.common.errors import CourseError, all_of
from src.common.paths import sites_folder

PARTS = ("training", "validation", "testing")
DATALIST = "datalist.json"

Datalists = Mapping[str, Mapping[str, list[dict]]]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_RESERVED = ("server", "all")


def site_names(sites: int | Sequence[str]) -> list[str]:
    """``site-1``, ``site-2``, … for a number; a list of names is checked and returned.

    Raises:
        CourseError: for fewer than one site, a name that occurs twice, or one that cannot be a file's and a host's name.
    """
    if isinstance(sites, int) and sites > 0:
        return [f"site-{number}" for number in range(1, sites + 1)]
    names = [] if isinstance(sites, int | str) else list(sites)
    if not names or len({str(name).lower() for name in names}) != len(names):  # on a Mac, A and a are one folder
        raise CourseError(
            f"sites is {sites!r}; give a number of at least 1, or a list of names that differ in more than capitals."
        )
    for name in names:
        if not isinstance(name, str) or not _NAME.fullmatch(name) or name.lower() in _RESERVED:
            raise CourseError(
                f"{name!r} cannot be the name of a site: use letters, digits, - and _ alone, for it becomes a file's and a "
                f"host's name, and none of {', '.join(_RESERVED)}."
            )
    return names


def _each(datalists: Datalists) -> Iterator[tuple[str, str, dict]]:
    """Site, part and item of all items."""
    return ((site, part, item) for site, parts in datalists.items() for part, items in parts.items() for item in items)


def _shared(datalists: Datalists) -> list[str]:
    """Images in two places, a scan under another name too, one problem each. Small pictures with a class may well be equal."""
    seen: dict[str, tuple[str, str]] = {}
    problems = []
    for site, part, item in _each(datalists):
        image, here = item["image"], f"{site} {part}".strip()
        try:
            volume = _is_file(item, "label") and Path(image).is_file()
            key = hashlib.sha256(Path(image).read_bytes()).hexdigest() if volume else image
        except OSError as error:
            raise CourseError(f"Cannot read {image}: {error.strerror}.", "an image cannot be read") from error
        if key in seen:
            other, there = seen[key]
            names = " and ".join(dict.fromkeys((other, image)))
            problems.append(f"{names}: the same image is in {there} and in {here}; take it out of one of them")
        seen.setdefault(key, (image, here))
    return problems


def _is_file(item: Mapping, key: str) -> bool:
    return isinstance(item.get(key), str | Path)


def _files(item: Mapping) -> list[str]:
    return [item[key] for key in ("image", "label") if _is_file(item, key)]


def cache_folder(data: str, site: str) -> Path:
    """Where a site keeps what it prepared from its data, for its next run."""
    return sites_folder(data) / site / "cache"


def sites_of(data: str) -> list[str]:
    """Names of the sites whose folders of this data lie on this machine.

    Raises:
        CourseError: if there is none; says how to make them.
    """
    folder = sites_folder(data)
    names = sorted(path.parent.name for path in folder.glob(f"*/{DATALIST}") if not path.parent.name.startswith("."))
    if not names:
        raise CourseError(
            f"No site has data in {folder}. Share the data out first: data_scripts/mednist_sites.sh, or the prostate's "
            "prostate_download.sh, data_conversion.sh and datalists_gen.sh. Or put <site>/datalist.json there yourself."
        )
    return names


def read_site(data: str, site: str) -> dict[str, list[dict]]:
    """The datalist of one site on this machine; see :func:`read_datalist`."""
    return read_datalist(sites_folder(data) / site / DATALIST, site)


def read_sites(data: str) -> dict[str, dict[str, list[dict]]]:
    """The datalists of all sites on this machine. In a real federation nobody can call this: it is for teaching and tests."""
    return {site: read_site(data, site) for site in sites_of(data)}


def read_datalist(path: Path, site: str = "") -> dict[str, list[dict]]:
    """Read a datalist and look whether its files are there.

    Args:
        path: the JSON file; paths in it start from its folder.
        site: name of the site, added to each item so that messages can name it.

    Returns:
        ``{"training": items, "validation": items, "testing": items}``, with absolute paths.

    Raises:
        CourseError: names all that is wrong: a file that cannot be read, a part or key that is missing, nothing to train on, an
            image in two places, files that are missing.
    """
    path, kind = Path(path).absolute(), "its datalist cannot be used"
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        said = getattr(error, "strerror", None) or error
        raise CourseError(
            f"Cannot read the datalist {path}: {said}. It comes from data_scripts/mednist_sites.sh or datalists_gen.sh.",
            "its datalist is missing or cannot be read",
        ) from error
    if not isinstance(content, dict):
        raise CourseError(f"The datalist {path} is not a JSON object with the parts {', '.join(PARTS)}.", kind)
    problems: list[str] = []
    parts: dict[str, list[dict]] = {}
    for part in PARTS:
        parts[part] = []
        entries = content.get(part)
        if not isinstance(entries, list) or (part == "training" and not entries):
            problems.append(f"part {part!r} is missing or empty")
            continue
        for number, entry in enumerate(entries):
            if (
                not isinstance(entry, dict)
                or not _is_file(entry, "image")
                or not isinstance(entry.get("label"), str | int)
            ):
                problems.append(f"{part}[{number}]: no 'image' with its 'label'")
                continue
            item = {**entry, "site": site}
            item |= {key: str(path.parent / entry[key]) for key in ("image", "label") if _is_file(entry, key)}
            problems += [
                f"{part}[{number}]: {name} does not exist" for name in _files(item) if not Path(name).is_file()
            ]
            parts[part].append(item)
    if problems := problems + _shared({site: parts}):
        raise all_of(f"The datalist {path} cannot be used", problems, kind)
    return parts


def pooled(datalists: Datalists) -> dict[str, list[dict]]:
    """The items of all sites in one place, part by part: what only a teacher can have."""
    return {part: [item for parts in datalists.values() for item in parts[part]] for part in PARTS}
