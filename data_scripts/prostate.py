"""Task05_Prostate: find it, fetch it or draw it; convert it to T2 with a mask of the whole gland; share it out over sites.

``Task05_Prostate/{imagesTr,labelsTr}/NAME.nii.gz`` with ``dataset.json`` is raw: T2 and ADC, labels 0, 1, 2. Beside it comes
``prostate_t2/{images,labels}/NAME.nii.gz``, converted: T2 alone, the whole gland as 0 and 1.
"""

import os
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from data_scripts.fetching import fetch
from data_scripts.folders import generated, is_generated, one_at_a_time, staged
from data_scripts.nifti import one_geometry, read_image, read_mask, suspicious
from data_scripts.phantoms.prostate import parameters, write
from data_scripts.sharing import partition, split, write_sites
from src.common.datalists import PARTS
from src.common.errors import CourseError, all_of, first_line, some_of
from src.common.files import read_json, stamp, write_json
from src.common.paths import data_source, raw_folder
from src.prostate.card import CARD, Settings

DRAWN_CASES = 36
SITES = 4
"""How many hospitals play where nothing says which case comes from which."""

GOOGLE_DRIVE_ID = "1Ff7c21UksxyT4JfETjaarmuKEjdqe1-a"
"""Task05_Prostate.tar in the Google Drive folder that http://medicaldecathlon.com links to."""

_CHANNELS = ("modality", "channel_names")  # keys of the Decathlon and of nnU-Net
_RECORD = "conversion.json"
_VERSION = 2  # changes whenever the same input gives another conversion
_GLAND = r"(whole )?gland|.*\b(prostat\w*|peripheral|transition(al)?|central|fibromuscular|pz|tz|cz|cg|afs|wg)\b.*"


def find_or_make(source: str | None = None, root: Path | None = None, say: Callable[[str], None] = print) -> Path:
    """The folder ``Task05_Prostate``.

    Args:
        source: ``generated``: drawings in ``<root>/generated/Task05_Prostate``, made if missing. ``real``:
            ``<root>/Task05_Prostate``, used as it is when it is there, else downloaded (229 MB) from MONAI's mirror or from
            Google Drive, verified and unpacked. Default :func:`src.common.paths.data_source`.
        root: folder of all data sets, default :func:`src.common.paths.data_root`.
        say: called with each line of progress.

    Raises:
        CourseError: if a part of it is missing, or the data cannot be fetched, verified, unpacked or written.
    """
    folder = raw_folder("Task05_Prostate", source, root)
    if data_source(source) == "generated":
        return generated(folder, parameters(DRAWN_CASES, 0), lambda new: write(new, DRAWN_CASES, 0))
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        fetch(folder, *_official(), _check, _from_google_drive, say=say)
    _check(folder)
    return folder


def _check(folder: Path) -> None:
    missing = [name for name in ("imagesTr", "labelsTr", "dataset.json") if not (folder / name).exists()]
    if missing:
        raise CourseError(
            f"{folder} lacks {', '.join(missing)}. Add it, or move the rest away and run this again to get all."
        )


def _official() -> tuple[str, str]:
    """Address and MD5 sum of MONAI's copy of the archive."""
    from monai.apps import DecathlonDataset

    return DecathlonDataset.resource["Task05_Prostate"], DecathlonDataset.md5["Task05_Prostate"]


def _from_google_drive(archive: Path) -> None:
    import gdown
    from gdown.exceptions import DownloadError

    try:
        with archive.open("wb") as file:  # no cookies: they would be kept in the reader's home
            gdown.download(id=GOOGLE_DRIVE_ID, output=file, use_cookies=False, timeout=60)
    except DownloadError as error:
        raise CourseError(f"Google Drive: {first_line(error)}") from error


def describe(folder: Path) -> str:
    """One line for the screen: which data set this is, how many cases, which channels; for any folder to convert."""
    folder = Path(folder)
    kind = "generated drawings, not patients" if is_generated(folder) else "real cases"
    more = sum(_case_name(file) is not None for file in folder.glob("imagesTs/*"))
    channels = ", ".join(_names(folder, *_CHANNELS).values()) or "without names"
    return f"{kind}: {len(_pairs(folder)[0])} cases with mask, {more} without; channels {channels} ({folder})"


# -- which files there are -----------------------------------------------------------------------------------------------


def _case_name(file: Path) -> str | None:
    """``prostate_00`` of ``prostate_00.nii.gz`` or ``.nii``; None for other files and for macOS ``._`` companions."""
    match = re.fullmatch(r"([^.].*)\.nii(\.gz)?", file.name, re.IGNORECASE)
    # A Mac writes ä as a and two dots, most others write it as one letter: the same name is to be the same text.
    return unicodedata.normalize("NFC", match[1]) if match else None


def _pairs(folder: Path) -> tuple[dict[str, tuple[Path, Path]], list[str], list[str]]:
    """Image and mask of each case by name, what is wrong with the pairing, and which files are left out."""
    for images_in, masks_in in (("imagesTr", "labelsTr"), ("images", "labels")):
        if (folder / images_in).is_dir() and (folder / masks_in).is_dir():
            break
    else:
        raise CourseError(
            f"{folder} has neither imagesTr/ and labelsTr/ nor images/ and labels/. Get Task05_Prostate with "
            "data_scripts/prostate_download.sh and convert it with data_conversion.sh, or name the folder of your own cases: "
            "NIfTI files images/NAME.nii.gz with their masks labels/NAME.nii.gz."
        )
    problems, left_out = [], []
    images = _cases_in(folder / images_in, problems, left_out)
    masks = _cases_in(folder / masks_in, problems, left_out)
    wrong = [f"{images[name]}: no mask of that name in {masks_in}/" for name in images if name not in masks]
    wrong += [f"{masks[name]}: no image of that name in {images_in}/" for name in masks if name not in images]
    if not images and not masks:
        wrong = [f"{folder / images_in}: no NIfTI file (.nii.gz or .nii) in it"]
    elif images and all(re.fullmatch(r".*_\d{4}", name) and name[:-5] in masks for name in images):
        wrong = [
            f"{folder / images_in}: its names end in _0000, as nnU-Net's do, one file a channel; keep T2's and rename them "
            f"to those of {masks_in}/"
        ]
    return {name: (images[name], masks[name]) for name in images if name in masks}, problems + wrong, left_out


def _cases_in(folder: Path, problems: list[str], left_out: list[str]) -> dict[str, Path]:
    try:
        os.listdir(folder)  # noqa: PTH208 - the search below would hide that the folder cannot be read
    except OSError as error:
        raise CourseError(f"Cannot read {folder}: {error.strerror}. Mend its permissions, or copy it.") from error
    cases: dict[str, Path] = {}
    for file in sorted(folder.rglob("[!.]*")):
        name = _case_name(file) if file.parent == folder else None
        if name is None:
            left_out += [f"{folder.name}/{file.relative_to(folder)}"] if file.is_file() else []
        elif not file.is_file():
            problems.append(f"{file}: is a folder or a link to nowhere")
        elif name in cases:
            problems.append(f"{cases[name]}: the case is there twice, also as {file.name}")
        elif re.search("[\udc80-\udcff]", name):
            problems.append(f"{str(file)!a}: its name is not UTF-8; rename it")
        else:
            cases[name] = file
    return cases


# -- conversion ----------------------------------------------------------------------------------------------------------


def convert(
    raw: Path,
    out: Path,
    channel: int | None = None,
    labels: Sequence[int] | None = None,
    say: Callable[[str], None] = print,
) -> Path:
    """Take one channel of every image and make its mask binary: whole gland 1, all else 0; returns ``out``.

    Intensities, data type and voxels of the image stay as they are; the mask becomes uint8 on the grid of its image. Both get
    one geometry, :func:`data_scripts.nifti.one_geometry`. ``out`` appears when all cases are in it; where the input is
    unchanged, nothing is done.

    Args:
        raw: folder with ``imagesTr`` and ``labelsTr``, or ``images`` and ``labels``: 3D (x, y, z) or 4D (x, y, z, channel) NIfTI,
            masks (x, y, z). Its ``dataset.json``, if there is one, names the channels and the labels.
        out: folder that gets ``images``, ``labels``, and ``conversion.json``, the record of what was made from what.
        channel: index of the T2 channel; by default the one that is so named, else 0.
        labels: mask values of the gland; by default those that are named as parts of the prostate, else 1 and 2.
        say: called with each line of progress, and with what a person should look at.

    Raises:
        CourseError: names all that is wrong with the cases (nothing is written then), or says that ``out`` holds something else
            or cannot be written.
    """
    raw, out = Path(raw).resolve(), Path(out).resolve()
    if raw == out or raw in out.parents or out in raw.parents:
        raise CourseError(f"Cannot convert {raw} into {out}: one folder lies inside the other. Choose another one.")
    cases, problems, left_out = _pairs(raw)
    if left_out:
        say(f"Left out, {len(left_out)} files that have no NIfTI name or lie in a subfolder: {some_of(left_out)}")
    choice = _choose(raw, channel, labels, problems)
    # Relative, so that a data folder that was moved as a whole is still known.
    record = {"version": _VERSION, "from": os.path.relpath(raw, out.parent), "generated": is_generated(raw)}
    record |= {"choice": choice, "cases": {name: stamp(*files) for name, files in cases.items()}}
    with one_at_a_time(out.parent):
        found = read_json(out / _RECORD)
        if found is None and out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise CourseError(f"{out} holds something that this conversion did not write. Choose another folder.")
        if found is not None and found.get("from") != record["from"]:
            other = out.parent / str(found.get("from"))
            raise CourseError(f"{out} holds the conversion of {other}. Choose another folder, or delete this one.")
        if not problems and found == {**record, "bytes": _sizes(out)}:
            say(f"{out}: all {len(cases)} cases are converted already, nothing to do.")
        else:
            say(f"Checking and converting {len(cases)} cases into {out}")
            with staged(out) as new:
                remarks = _convert_all(cases, choice, problems, new, say)
                write_json(new / _RECORD, {**record, "bytes": _sizes(new)})
            say(f"Converted {len(cases)} of {len(cases)} cases: {choice['said']}.")
            if remarks:
                say("\n  - ".join(["Look at these:", *remarks]))
    return out


def _choose(raw: Path, channel: int | None, labels: Sequence[int] | None, problems: list[str]) -> dict:
    """Which ``channel`` is T2, of how many ``channels``, which labels are the ``gland`` and which are ``known``; None: any."""
    names, parts = _names(raw, *_CHANNELS), _names(raw, "labels")
    if channel is None and len(names) > 1:
        named = [number for number, name in names.items() if "t2" in name.lower()]
        if len(named) != 1:
            problems.append(f"{raw / 'dataset.json'}: which of the channels {names} is T2? Say it with --channel")
        channel = named[0] if named else 0
    channel = channel or 0
    if channel < 0:
        problems.append(f"channel is {channel}; count from 0")
    gland = sorted(labels or [number for number in parts if number] or [1, 2])
    words = [re.sub(r"[\W_]+", " ", parts.get(number, "gland").lower()) for number in gland]
    if labels is None and not all(re.fullmatch(_GLAND, word) for word in words):
        problems.append(f"{raw / 'dataset.json'}: which of the labels {parts} are the gland? Say it with --labels")
    known = None if labels else [0, *gland]
    said = f"channel {channel} ({names.get(channel, 'not named')}), labels {', '.join(map(str, gland))}"
    return {"channel": channel, "channels": len(names) or None, "gland": gland, "known": known, "said": said}


def _names(raw: Path, *keys: str) -> dict[int, str]:
    """Names by number under the first of the keys that ``dataset.json`` has, as the Decathlon or nnU-Net write them."""
    file = raw / "dataset.json"
    content = read_json(file) if file.exists() else {}
    if content is None:
        raise CourseError(f"{file} cannot be read as JSON. Get it again, or delete it if these are your own cases.")
    names = next((content[key] for key in keys if isinstance(content.get(key), dict)), {})
    # nnU-Net names labels the other way round: {"background": 0}.
    pairs = [(key, value) if key.isdecimal() else (value, key) for key, value in names.items()]
    return {int(number): str(name) for number, name in pairs if str(number).isdecimal()}


def _sizes(folder: Path) -> dict[str, int]:
    return {f"{file.parent.name}/{file.name}": file.stat().st_size for file in sorted(folder.glob("*/*.nii.gz"))}


def _convert_all(cases: Mapping, choice: dict, problems: list[str], new: Path, say: Callable) -> list[str]:
    """Convert all cases into ``new`` and return remarks on them; after the first problem only look for more problems."""
    remarks, channels, found = [], choice["channels"], False
    for kind in ("images", "labels"):
        (new / kind).mkdir()
    for number, (name, (image_file, mask_file)) in enumerate(cases.items(), start=1):
        image = None
        try:
            image, channels, said = read_image(image_file, choice["channel"], channels)
        except ValueError as error:
            problems.append(f"{image_file}: {error}")
        try:
            gland = read_mask(mask_file, choice["gland"], choice["known"], image)
            found |= gland.any()
        except ValueError as error:
            problems.append(f"{mask_file}: {error}")
        if not problems:
            said += suspicious(np.asanyarray(image.dataobj), gland)
            remarks += [f"{name}: {'; '.join(said)}"] if said else []
            for kind, volume in (("images", image), ("labels", one_geometry(gland, image.affine))):
                volume.to_filename(new / kind / f"{name}.nii.gz")  # the same voxels give the same bytes
        if number % 25 == 0:
            say(f"  {number} of {len(cases)} cases")
    if not problems and not found and choice["known"] is None:
        problems.append(
            f"no mask has a voxel of the labels {', '.join(map(str, choice['gland']))}; choose with --labels"
        )
    if problems:
        raise all_of("Nothing was converted", problems)
    return remarks


# -- sharing out ---------------------------------------------------------------------------------------------------------


def read_hospitals(path: Path) -> dict[str, list[str]]:
    """Site → names of its cases, from a JSON file; a ``CourseError`` where it is missing or holds something else."""
    found = read_json(path)
    if not found or not all(isinstance(v, list) and all(isinstance(n, str) for n in v) for v in found.values()):
        raise CourseError(
            f'{path} is no map of sites to cases; write {{"site-1": ["case_a", "case_b", …], "site-2": […]}}'
        )
    return found


def share_out(
    sites: int | Mapping[str, Sequence[str]] | None = None,
    seed: int = 0,
    data: str | None = None,
    folder: Path | None = None,
    say: Callable[[str], None] = print,
) -> str:
    """Share the converted cases out over sites, each with a folder, a training, a validation and a testing part of its own.

    Args:
        sites: how many sites get the cases at random, or site → case names, so that hospitals keep their cases. Default: as
            ``hospitals.json`` beside the raw data says; without it four sites, or fewer for few cases.
        seed: fixes who gets what; a site's parts depend on its name, its cases and the seed alone.
        data: name of the result, by default that of the task's settings.
        folder: the converted data, by default ``prostate_t2`` in the data folder.
        say: called with each line of progress and with a warning that names the cases in no site.

    Returns:
        The name, for the job's settings.

    Raises:
        CourseError: for files without a partner, unknown cases, cases named twice, sites with too few cases (all named at once),
            and what :func:`data_scripts.sharing.write_sites` refuses.
    """
    folder = Path(folder or raw_folder("Task05_Prostate").with_name("prostate_t2")).absolute()
    pairs, problems, _ = _pairs(folder)
    items = {name: {"image": str(image), "label": str(mask)} for name, (image, mask) in pairs.items()}
    record = read_json(folder / _RECORD) or {}
    hospitals = folder.parent / record.get("from", folder.name) / "hospitals.json"
    if sites is None:
        sites = read_hospitals(hospitals) if hospitals.exists() else max(1, min(SITES, len(items) // len(PARTS)))
    random = isinstance(sites, int)
    shares = partition([*items.values()], sites, seed=seed) if random else _given(items, sites, problems, say)
    problems += [
        f"site {site}: {len(own)} case(s), at least {len(PARTS)} are needed: {', '.join(PARTS)}"
        for site, own in shares.items()
        if len(own) < len(PARTS)
    ]
    if problems:
        raise all_of(f"Nothing was shared out from {folder}", problems)
    datalists = {site: split(own, CARD.validation, CARD.testing, seed, site) for site, own in shares.items()}
    about = {"task": CARD.name, "generated": bool(record.get("generated")), "seed": seed}
    return write_sites(Settings.checked({"data": data or CARD.name}).data, datalists, folder, about, say)


def _given(items: Mapping, sites: Mapping, problems: list[str], say: Callable) -> dict[str, list[dict]]:
    owner: dict[str, str] = {}
    for site, names in sites.items():
        for name in (_case_name(Path(case)) or _case_name(Path(f"{case}.nii")) or case for case in names):
            if name not in items:
                problems.append(f"site {site}: there is no case {name}")
            elif name in owner:
                problems.append(f"site {site}: case {name} is named twice, before that in {owner[name]}")
            owner.setdefault(name, site)
    left_out = [name for name in items if name not in owner]
    if left_out:
        say(f"warning: in no site, so left out: {', '.join(left_out)}")
    return {site: [items[name] for name in items if owner.get(name) == site] for site in sites}


def prepare(say: Callable[[str], None] = print) -> str:
    """All steps from nothing to the folders of the sites, with the notebook's settings; returns the name of the data."""
    raw = find_or_make(say=say)
    return share_out(folder=convert(raw, raw.with_name("prostate_t2"), say=say), say=say)
