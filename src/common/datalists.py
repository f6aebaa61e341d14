"""Sites and their data: the folder in which a site finds its own, ``$COURSE_DATA/sites/<data name>/<site>/``.

In it lies ``datalist.json``, in the format of the Medical Segmentation Decathlon: the parts ``training``, ``validation`` and
``testing``, each a list of ``{"image": path, "label": path or number}``; and, where labels are files, ``checked.json``, the volumes
that came through ``data_scripts/datalists_gen.sh``: ``{path: {"sha256": …, "bytes": …}}``. Paths start from the folder."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path

from src.common.errors import CourseError, all_of, some_of
from src.common.files import load_json, read_json
from src.common.paths import sites_folder

PARTS = ("training", "validation", "testing")
DATALIST, CHECKED = "datalist.json", "checked.json"
Datalists = Mapping[str, Mapping[str, list[dict]]]


def site_names(sites: int | Sequence[str]) -> list[str]:
    """``site-1``, ``site-2``, … for a number; a list of names is returned, or refused where one cannot be a site's."""
    if isinstance(sites, Integral) and not isinstance(sites, bool) and sites > 0:
        return [f"site-{number}" for number in range(1, int(sites) + 1)]
    # A set has another order in each process.
    names = list(sites) if isinstance(sites, Sequence) and not isinstance(sites, str | bytes) else []
    if not names or len({str(name).lower() for name in names}) != len(names):  # on a Mac, A and a are one folder
        said = "give a number of at least 1, or a list of names that differ in more than capitals."
        raise CourseError(f"sites is {sites!r}; {said}")
    for name in names:
        if not isinstance(name, str) or not re.fullmatch("(?ai)(?!(server|all)$)[a-z0-9][a-z0-9_-]{0,63}", name):
            said = "use letters, digits, - and _ alone, 64 at most, for it names a file and a certificate; not server, all."
            raise CourseError(f"{name!r} cannot be the name of a site: {said}")
    return names


def read_site(data: str, site: str, labels: Sequence[str] | None = None) -> dict[str, list[dict]]:
    """The datalist of one site on this machine; see :func:`read_datalist`."""
    return read_datalist(sites_folder(data) / site / DATALIST, site, labels)


def each(datalists: Datalists) -> Iterator[tuple[str, str, dict]]:
    """Site, part and item of all items; a ``CourseError`` for a part that is none of :data:`PARTS`."""
    for site, parts in datalists.items():
        if unknown := [repr(part) for part in parts if part not in PARTS]:
            raise CourseError(f"{site} has a part {some_of(unknown)}; there are {', '.join(PARTS)}.")
        yield from ((site, part, item) for part, items in parts.items() for item in items)


def plain_item(item: object, classes: Sequence[str] | None = None) -> dict:
    """An item with paths as text and a number as an ``int``; a ``CourseError`` names one whose label is neither. A label is the
    number of one of a card's ``classes``, or a file's path where there are none; None, of no known task, allows both."""
    image, label = (item.get("image"), item.get("label")) if isinstance(item, Mapping) else (None, None)
    if not isinstance(image, str | os.PathLike) or label is None:
        raise CourseError("no 'image' with its 'label'", "a label cannot be used")
    plain, kind = label, getattr(getattr(label, "dtype", None), "kind", "i")
    if getattr(label, "ndim", None) == 0:  # a number of NumPy or PyTorch, if it is not masked, or a time
        plain = label.item() if kind in "biufU" and not getattr(label, "mask", False) else None
    most = float("inf") if classes is None else len(classes)
    if isinstance(plain, str | os.PathLike) and not classes and re.search(r"[^-+.\d\s]", str(plain)):
        return {**item, "image": str(image), "label": str(plain)}
    if isinstance(plain, Real) and not isinstance(plain, bool) and 0 <= plain == plain // 1 < most:
        return {**item, "image": str(image), "label": int(plain)}
    right = f"a whole number from 0, {classes[0]}, to {most - 1}, {classes[-1]}" if classes else "the path of a file"
    right += ", or a whole number from 0 on" if classes is None else ""
    raise CourseError(f"{image}: its label is {label!r}; it must be {right}", "a label cannot be used")


def volumes(item: Mapping) -> dict[str, str]:
    """Image and label of an item whose label is a file; none of a picture, whose label is a number."""
    return {key: str(item[key]) for key in ("image", "label") if isinstance(item["label"], str | os.PathLike)}


def in_two_places(datalists: Datalists, sums: Mapping[str, str]) -> list[str]:
    """A problem for each image that is in two places: known again by its sum where ``sums`` has one, else by its path."""
    seen, problems = {}, []
    for site, part, item in each(datalists):
        place = item["image"], f"{site} {part}".strip()
        path = os.path.normpath(item["image"])
        first = seen.setdefault(sums.get(item["image"]) or sums.get(path, path), place)
        if first is not place:
            names = " and ".join(dict.fromkeys((first[0], place[0])))
            problems.append(f"{names}: the same image is in {first[1]} and in {place[1]}; take it out of one of them")
    return problems


def read_datalist(path: Path, site: str = "", labels: Sequence[str] | None = None) -> dict[str, list[dict]]:
    """The items of each part, with absolute paths and their ``site``, by a card's labels; a ``CourseError`` names what is wrong."""
    path, kind = Path(path).absolute(), "its datalist cannot be used"
    source = "It comes from data_scripts/mednist_sites.sh or datalists_gen.sh."
    content = load_json(path, "datalist", source, "its datalist is missing or cannot be read")
    if not isinstance(content, dict):
        raise CourseError(f"The datalist {path} is not a JSON object with the parts {', '.join(PARTS)}.", kind)
    checked = {name: one for name, one in (read_json(path.with_name(CHECKED)) or {}).items() if isinstance(one, dict)}
    parts, problems, unknown = {part: [] for part in PARTS}, [], []
    for part, items in parts.items():
        entries = content.get(part)
        if not isinstance(entries, list) or (part == "training" and not entries):
            problems.append(f"part {part!r} is missing or empty")
            continue
        for number, entry in enumerate(entries):
            try:
                items.append({**plain_item(entry, labels), "site": site})
            except CourseError as error:
                problems.append(f"{part}[{number}]: {error}")
                continue
            for key, name in {"image": entry["image"], **volumes(entry)}.items():
                file = path.parent / name
                items[-1][key] = str(file)
                if not os.path.isfile(file):  # noqa: PTH113 - Path's raises for a name too long, or in a closed folder
                    problems.append(f"{part}[{number}]: {file} does not exist, or cannot be read")
                elif volumes(entry) and file.stat().st_size != checked.get(name, {}).get("bytes"):
                    unknown.append(str(file))
    if unknown:
        problems.append(f"{some_of(unknown)}: did not come through data_scripts/datalists_gen.sh; run it")
    sums = {str(path.parent / name): one["sha256"] for name, one in checked.items() if "sha256" in one}
    if problems := problems + in_two_places({site: parts}, sums):
        raise all_of(f"The datalist {path} cannot be used", problems, kind)
    return parts
