"""Give every site a folder of its own, COURSE_DATA/sites/NAME/SITE: its cases, and datalist.json in the format of the
Medical Segmentation Decathlon, in which they are split 45 : 22 : 33 into training, validation and testing.

Cases keep the hospitals that they come from: those of --sites, or of hospitals.json beside the raw data. Without either
they are dealt out at random. No case is in two parts or at two sites. Beside the datalist, checked.json keeps the checksums
of its volumes: a site trains on no others."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from data_scripts import command
from data_scripts.data_conversion import RECORD, convert, pairs
from data_scripts.folders import raw_folder
from data_scripts.prostate_download import find_or_make
from data_scripts.sharing import partition, split, write_sites
from src.common.datalists import PARTS
from src.common.errors import CourseError, all_of
from src.common.files import read_json
from src.prostate.card import CARD, Settings

SITES = 4  # where nothing says which case comes from which hospital


def read_hospitals(path: Path) -> dict[str, list[str]]:
    """Site → names of its cases, from a JSON file; a ``CourseError`` where it is missing or holds something else."""
    found = read_json(path)
    if not found or not all(isinstance(v, list) and all(isinstance(n, str) for n in v) for v in found.values()):
        what = 'write {"site-1": ["case_a", "case_b", …], "site-2": […]}'
        raise CourseError(f"{path} is no map of sites to cases; {what}")
    return found


def share_out(
    sites: int | Mapping[str, Sequence[str]] | None = None,
    seed: int = 0,
    data: str | None = None,
    folder: Path | None = None,
    say: Callable[[str], None] = print,
) -> str:
    """Share the converted cases out over sites, each with a folder and three parts of its own; returns the name of the data.
    ``sites``: how many get the cases at random, or site → case names; by default as ``hospitals.json`` beside the raw data says,
    else four, or fewer for few cases. A site's parts depend on its name, its cases and ``seed``. A ``CourseError`` names all that
    is wrong with files, sites and cases, or is that of ``write_sites``."""
    folder = Path(folder or raw_folder("Task05_Prostate").with_name("prostate_t2")).absolute()
    found, problems, _ = pairs(folder)
    items = {name: {"image": str(image), "label": str(mask)} for name, (image, mask) in found.items()}
    record = read_json(folder / RECORD) or {}
    hospitals = folder.parent / record.get("from", folder.name) / "hospitals.json"
    if sites is None:
        sites = read_hospitals(hospitals) if hospitals.exists() else max(1, min(SITES, len(items) // len(PARTS)))
    named = isinstance(sites, Mapping)
    shares = _given(items, sites, problems, say) if named else partition([*items.values()], sites, seed=seed)
    few = f"case(s), at least {len(PARTS)} are needed: {', '.join(PARTS)}"
    problems += [f"site {site}: {len(own)} {few}" for site, own in shares.items() if len(own) < len(PARTS)]
    if problems:
        raise all_of(f"Nothing was shared out from {folder}", problems)
    datalists = {site: split(own, CARD.validation, CARD.testing, seed, site) for site, own in shares.items()}
    about = {"task": CARD.name, "generated": bool(record.get("generated")), "seed": seed}
    data = Settings(data=data or CARD.name).data
    return write_sites(data, datalists, folder, about, say, CARD.classes)


def _given(items: Mapping, sites: Mapping, problems: list[str], say: Callable) -> dict[str, list[dict]]:
    owner: dict[str, str] = {}
    for site, names in sites.items():
        for name in (re.sub(r"\.nii(\.gz)?$", "", case, flags=re.I) for case in names):
            if name not in items:
                problems.append(f"site {site}: there is no case {name}")
            elif name in owner:
                problems.append(f"site {site}: case {name} is named twice, before that in {owner[name]}")
            owner.setdefault(name, site)
    if left_out := [name for name in items if name not in owner]:
        say(f"warning: in no site, so left out: {', '.join(left_out)}")
    return {site: [items[name] for name in items if owner.get(name) == site] for site in sites}


def prepare(say: Callable[[str], None] = print, outlines: str = "shared") -> str:
    """All steps from nothing to the folders of the sites, with the notebook's settings; returns the name of the data: ``prostate``,
    or ``prostate_own`` of drawings with such ``outlines``."""
    raw = find_or_make(say=say, outlines=outlines)
    which = raw.name.removeprefix("Task05_Prostate")
    folder = convert(raw, raw.with_name(f"prostate_t2{which}"), say=say)
    return share_out(data=f"{CARD.name}{which}", folder=folder, say=say)


def main() -> None:
    parser = command.parser("datalists_gen", __doc__)
    add = parser.add_argument
    add("data", nargs="?", type=command.folder, help="converted data; default: prostate_t2 of the data folder")
    add("--name", help="what jobs call these data (default: prostate)")
    which = parser.add_mutually_exclusive_group().add_argument
    which("--num-sites", type=int, help="sites to deal out to at random (default: 4, without hospitals)")
    which("--sites", type=command.folder, metavar="FILE", help='JSON: {"site name": ["case name", ...], ...}')
    add("--seed", type=int, default=0, help="of the random generator (default: %(default)s)")
    a = parser.parse_args()
    share_out(read_hospitals(a.sites) if a.sites else a.num_sites, a.seed, a.name, a.data)


if __name__ == "__main__":
    command.run(main)
