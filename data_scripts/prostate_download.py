"""Put Task05_Prostate of the Medical Segmentation Decathlon into the data folder, unless it is there.

real:       DATA/Task05_Prostate, 229 MB from MONAI's mirror, or from the Decathlon's Google Drive if that fails. The
            checksum is verified. No network here? Bring the archive as DATA/Task05_Prostate.tar.
generated:  DATA/generated/Task05_Prostate, 36 drawn cases in the same layout, and hospitals.json, which says which
            of the four drawn hospitals each case comes from. They outline alike; with --outlines own each by a protocol
            of its own, in DATA/generated/Task05_Prostate_own."""

from collections.abc import Callable
from pathlib import Path

from data_scripts import command
from data_scripts.data_conversion import CHANNELS, case_name, names_of, pairs
from data_scripts.fetching import SECONDS, fetch
from data_scripts.folders import data_source, generated, is_generated, raw_folder
from data_scripts.phantoms.prostate import parameters, write
from src.common.errors import CourseError, first_line

DRAWN_CASES = 36  # as is said above
GOOGLE_DRIVE_ID = "1Ff7c21UksxyT4JfETjaarmuKEjdqe1-a"  # in the folder that http://medicaldecathlon.com links to


def find_or_make(
    source: str | None = None,
    root: Path | None = None,
    say: Callable[[str], None] = print,
    outlines: str = "shared",
) -> Path:
    """The folder ``Task05_Prostate`` of a source (``generated`` or ``real``), below the folder of all data sets; made if missing.
    ``outlines`` of drawings are ``shared`` by all hospitals, or each one's ``own``, in a folder of their own. A ``CourseError``
    if a part of it is missing, or the data cannot be fetched, verified, unpacked or written, or for real data with others."""
    folder = raw_folder("Task05_Prostate", source, root)
    if data_source(source) == "generated":
        folder = folder if outlines == "shared" else folder.with_name(f"{folder.name}_{outlines}")
        asked = DRAWN_CASES, 0, outlines
        return generated(folder, parameters(*asked), lambda new: write(new, *asked))
    if outlines != "shared":
        raise CourseError("Real cases are outlined as they are; outlines='own' is for drawings.")
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        fetch(folder, *_official(), _check, _from_google_drive, say=say)
    _check(folder)
    return folder


def _check(folder: Path) -> None:
    if missing := [name for name in ("imagesTr", "labelsTr", "dataset.json") if not (folder / name).exists()]:
        what = "Add it, or move the rest away and run this again to get all."
        raise CourseError(f"{folder} lacks {', '.join(missing)}. {what}")


def _official() -> tuple[str, str]:  # address and MD5 sum of MONAI's copy of the archive
    from monai.apps import DecathlonDataset

    return DecathlonDataset.resource["Task05_Prostate"], DecathlonDataset.md5["Task05_Prostate"]


def _from_google_drive(archive: Path) -> None:
    import gdown
    from gdown.exceptions import DownloadError

    try:
        with archive.open("wb") as file:  # no cookies: they would be kept in the reader's home
            gdown.download(id=GOOGLE_DRIVE_ID, output=file, use_cookies=False, timeout=SECONDS)
    except DownloadError as error:
        raise CourseError(f"Google Drive: {first_line(error)}") from error


def describe(folder: Path) -> str:
    """One line for the screen: which data set this is, how many cases, which channels; for any folder to convert."""
    kind = "generated drawings, not patients" if is_generated(folder) else "real cases"
    more = sum(case_name(file) is not None for file in Path(folder).glob("imagesTs/*"))
    channels = ", ".join(names_of(folder, *CHANNELS).values()) or "without names"
    return f"{kind}: {len(pairs(folder)[0])} cases with mask, {more} without; channels {channels} ({folder})"


def main() -> None:
    parser = command.parser("prostate_download", __doc__)
    parser.add_argument("data", nargs="?", type=command.folder, help="data folder; default: COURSE_DATA")
    parser.add_argument("--source", choices=("generated", "real"), help="default: COURSE_DATA_SOURCE")
    parser.add_argument(
        "--outlines", choices=("shared", "own"), default="shared", help="of drawings (default: %(default)s)"
    )
    a = parser.parse_args()
    print(describe(find_or_make(a.source, a.data, outlines=a.outlines)))


if __name__ == "__main__":
    command.run(main)
