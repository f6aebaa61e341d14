"""What only somebody has who plays all hospitals on one machine: every site's datalist at once. It is for teaching and tests."""

from src.common.datalists import DATALIST, PARTS, Datalists, read_site
from src.common.errors import CourseError
from src.common.paths import sites_folder


def sites_of(data: str) -> list[str]:
    """Names of the sites whose folders of this data lie on this machine; a ``CourseError`` where there is none."""
    folder = sites_folder(data)
    names = sorted(path.parent.name for path in folder.glob(f"*/{DATALIST}") if not path.parent.name.startswith("."))
    if not names:
        first = "data_scripts/mednist_sites.sh, or the prostate's prostate_download.sh, data_conversion.sh and datalists_gen.sh."
        first += " They make mednist and prostate; data of your own have the name of their folder."
        raise CourseError(f"No site has data in {folder}. Share the data out first: {first}")
    return names


def read_sites(data: str) -> dict[str, dict[str, list[dict]]]:
    """The datalists of all sites on this machine."""
    return {site: read_site(data, site) for site in sites_of(data)}


def pooled(datalists: Datalists) -> dict[str, list[dict]]:
    """The items of all sites in one place, part by part."""
    return {part: [item for parts in datalists.values() for item in parts[part]] for part in PARTS}
