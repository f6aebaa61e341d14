"""Task05_Prostate: find or fetch it, convert it to T2 with a whole-gland mask, split it over sites.

Layout, next to each other in the data folder (``generated/`` comes between for generated data)::

    Task05_Prostate/{imagesTr,labelsTr}/NAME.nii.gz, dataset.json     raw: T2 and ADC, labels 0, 1, 2
    prostate_t2/{images,labels}/NAME.nii.gz                           converted: T2 alone, whole gland as 0 and 1
    prostate_datalists/SITE.json                                      which case is in which part, site by site

Data set: Antonelli et al., *The Medical Segmentation Decathlon*, Nature Communications 2022,
doi:10.1038/s41467-022-30695-9; http://medicaldecathlon.com.
"""

import contextlib
import errno
import gzip
import json
import math
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np

from src.errors import CourseError
from src.fetching import download, md5_of, unpack
from src.paths import data_root, data_source

PARTS = {"training": 0.50, "validation": 0.25, "testing": 0.25}
"""The parts of each site and their shares."""

GOOGLE_DRIVE_ID = "1Ff7c21UksxyT4JfETjaarmuKEjdqe1-a"
"""Task05_Prostate.tar in the Google Drive folder that http://medicaldecathlon.com links to."""

_RECORD = "conversion.json"
_TOLERANCE_MM = 0.1  # well under a voxel, well above what float32 affines lose on their way through other software
_SITE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


class Folders(NamedTuple):
    """Where the three stages of the data live."""

    raw: Path
    converted: Path
    datalists: Path


def folders(source: str | None = None, root: Path | None = None) -> Folders:
    """Default folders of a data source; none needs to exist.

    Args:
        source: ``generated`` or ``real``; default ``COURSE_DATA_SOURCE``.
        root: data folder; default ``COURSE_DATA``.
    """
    source = source or data_source()
    if source not in ("generated", "real"):
        raise CourseError(f"The data source is {source!r}; choose 'generated' or 'real'.")
    parent = Path(root) if root is not None else data_root()
    if source == "generated":
        parent = parent / "generated"
    return Folders(parent / "Task05_Prostate", parent / "prostate_t2", parent / "prostate_datalists")


# ---------------------------------------------------------------------------------------------------------------------
# Many problems, one message.


def _all_of(what: str, problems: list[str]) -> CourseError:
    """One error that lists all problems."""
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    return CourseError(f"{what}: {count}.\n" + "\n".join(f"  - {problem}" for problem in problems))


@contextlib.contextmanager
def _writing(folder: Path, needs: str) -> Iterator[None]:
    """Turn what the operating system says while writing to ``folder`` into a CourseError."""
    try:
        yield
    except OSError as error:
        hint = "Free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "Check the folder's permissions"
        raise CourseError(
            f"Cannot write to {folder}: {error.strerror or error}. {hint} ({needs}) or choose another folder; "
            "what was there before is unchanged. Then call this again."
        ) from error


# ---------------------------------------------------------------------------------------------------------------------
# Finding or fetching the raw data.

_RAW = ("imagesTr", "labelsTr", "dataset.json")


def find_or_make(source: str | None = None, root: Path | None = None, say: Callable[[str], None] = print) -> Path:
    """The folder ``Task05_Prostate``: found, drawn or downloaded.

    Real data that are there already are used as they are. Otherwise the archive of 229 MB is downloaded, from MONAI's
    mirror or else from Google Drive, its checksum is verified, and the folder appears when it is complete. A download
    that was interrupted goes on where it stopped. ``<root>/Task05_Prostate.tar`` from elsewhere is taken, too.

    Args:
        source: ``generated`` or ``real``; default ``COURSE_DATA_SOURCE``.
        root: data folder; default ``COURSE_DATA``.
        say: called with each line of progress.

    Raises:
        CourseError: if the data cannot be found, drawn or downloaded, or something else is in their place.
    """
    folder = folders(source, root).raw
    if (source or data_source()) == "generated":
        from src.prostate_phantoms import make_prostate

        return make_prostate(folder, cases=32, seed=0)
    if _is_complete(folder):
        return folder
    with _writing(folder.parent, "download and unpacking take 0.5 GB"):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _one_at_a_time(folder.parent):
            if not _is_complete(folder):
                _fetch(folder, say)
    return folder


def _is_complete(folder: Path) -> bool:
    """True if the raw data are there, False if nothing is.

    Raises:
        CourseError: if some of it is there.
    """
    missing = [name for name in _RAW if not (folder / name).exists()]
    if missing and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CourseError(
            f"{folder} exists, but lacks {', '.join(missing)}. Add what is missing, "
            "or move it away: then the whole data set is downloaded."
        )
    return not missing


def _official() -> tuple[str, str]:
    """Address and MD5 sum of MONAI's copy of the archive."""
    from monai.apps import DecathlonDataset

    return DecathlonDataset.resource["Task05_Prostate"], DecathlonDataset.md5["Task05_Prostate"]


def _from_google_drive(archive: Path, md5: str):
    """Download the Decathlon's own copy; gdown answers Google's questions and goes on with a partial file.

    Raises:
        CourseError: if Google refuses, the network fails, or the checksum differs.
    """
    import gdown
    import requests
    from gdown.exceptions import DownloadError

    arriving = archive.with_name(f"{archive.name}.drive")
    try:
        # No cookies: they would be kept in the reader's home.
        gdown.download(id=GOOGLE_DRIVE_ID, output=str(arriving), resume=True, use_cookies=False, timeout=60, retries=2)
    except (requests.RequestException, DownloadError) as error:
        raise CourseError(f"Google Drive: {error}") from error
    found = md5_of(arriving)
    if found != md5:
        arriving.unlink()
        raise CourseError(f"What arrived from Google Drive has the MD5 checksum {found}, expected {md5}; deleted.")
    arriving.replace(archive)


def _fetch(folder: Path, say: Callable[[str], None]):
    address, md5 = _official()
    archive = folder.with_suffix(".tar")
    brought = archive.exists()
    try:
        if not brought:
            say(f"Downloading Task05_Prostate from {address}")
        download(address, archive, md5)
    except CourseError as mirror:
        if brought:
            raise
        say(f"{mirror}\nTrying the Decathlon's copy on Google Drive")
        try:
            _from_google_drive(archive, md5)
        except CourseError as drive:
            raise _all_of(
                "Task05_Prostate could not be downloaded. Call this again to go on with what arrived (or delete "
                f"{archive}.* to begin anew), put the archive from http://medicaldecathlon.com at {archive}, or use "
                "COURSE_DATA_SOURCE=generated",
                [str(mirror), str(drive)],
            ) from drive
    unpack(archive, folder, _is_complete)
    if not brought:
        for file in (
            archive,
            *archive.parent.glob(f"{archive.name}.part"),
            *archive.parent.glob(f"{archive.name}.drive*"),
        ):
            file.unlink()
    say(f"{folder}: unpacked.")


def describe(folder: Path) -> str:
    """One line to print above every picture of these data: what they are, how many, and whether they are drawn.

    Args:
        folder: ``Task05_Prostate``, or a folder of your own cases that :func:`convert` takes.

    Raises:
        CourseError: if there is no data set.
    """
    folder = Path(folder)
    pairs, _ = _pairs(folder)
    about = _read_json(folder / "dataset.json") or {}
    kind = "GENERATED drawings, not patients" if "generator" in about else "real cases"
    without = folder / "imagesTs"
    more = len(_cases_in(without, [])) if without.is_dir() else 0
    counts = f"{len(pairs)} cases with mask" + (f", {more} without" if more else "")
    channels = about.get("modality")
    shown = f"; channels {', '.join(map(str, channels.values()))}" if isinstance(channels, dict) else ""
    return f"{folder.name}: {kind}; {counts}{shown} ({folder})"


# ---------------------------------------------------------------------------------------------------------------------
# Reading NIfTI pairs.


def _case_name(file: Path) -> str | None:
    """``prostate_00`` of ``prostate_00.nii.gz`` or ``.nii``; None for other files and for macOS ``._`` companions."""
    if file.name.startswith("."):
        return None
    for suffix in (".nii.gz", ".nii"):
        if file.name.endswith(suffix):
            return file.name.removesuffix(suffix)
    return None


def _cases_in(folder: Path, problems: list[str]) -> dict[str, Path]:
    cases: dict[str, Path] = {}
    for file in sorted(folder.iterdir()):
        name = _case_name(file)
        if name is None:
            continue
        if name in cases:
            problems.append(f"{file}: the case is there twice, as .nii and as .nii.gz")
        if file.is_file():
            cases[name] = file
        else:
            problems.append(f"{file}: is a folder or a link to nowhere")
    return cases


def _pairs(folder: Path) -> tuple[dict[str, tuple[Path, Path]], list[str]]:
    """Image and mask of each case by name, and what is wrong with the pairing.

    Raises:
        CourseError: if there is no pair of folders at all.
    """
    for images, labels in (("imagesTr", "labelsTr"), ("images", "labels")):
        if (folder / images).is_dir() and (folder / labels).is_dir():
            break
    else:
        raise CourseError(
            f"{folder} has neither imagesTr/ and labelsTr/ nor images/ and labels/. Get Task05_Prostate with "
            "data_scripts/prostate_download.sh, or name the folder of your own cases: NIfTI files images/NAME.nii.gz "
            "with their masks labels/NAME.nii.gz."
        )
    problems: list[str] = []
    found, masks = _cases_in(folder / images, problems), _cases_in(folder / labels, problems)
    problems += [f"{found[name]}: no mask of that name in {labels}/" for name in sorted(found.keys() - masks.keys())]
    problems += [f"{masks[name]}: no image of that name in {images}/" for name in sorted(masks.keys() - found.keys())]
    if not found and not masks:
        problems.append(f"{folder / images}: no NIfTI file (.nii.gz or .nii) in it")
    return {name: (found[name], masks[name]) for name in sorted(found.keys() & masks.keys())}, problems


def _load(file: Path) -> nib.Nifti1Image:
    """Read a whole NIfTI file. Unlike ``nib.load`` this reaches the gzip checksum, so that bit errors are seen too."""
    content = file.read_bytes()
    if file.name.endswith(".gz"):
        content = gzip.decompress(content)
    second = content[:4] in ((540).to_bytes(4, "little"), (540).to_bytes(4, "big"))
    image = (nib.Nifti2Image if second else nib.Nifti1Image).from_bytes(content)
    # Before nibabel sets memory aside for what a damaged header claims.
    needed = math.prod(image.shape) * image.get_data_dtype().itemsize + int(image.dataobj.offset)
    if len(content) < needed:
        raise ValueError(f"it has {len(content)} bytes of the {needed} that its header announces")
    return image


def _open_case(file: Path) -> tuple[nib.Nifti1Image | None, np.ndarray | None, str | None]:
    """Image and stored voxels (before the header's slope and intercept), or what is wrong with the file."""
    try:
        image = _load(file)
        stored = image.dataobj.get_unscaled()
    except Exception as error:  # a damaged file makes gzip, zlib, numpy and nibabel raise a dozen kinds
        why = str(error) or type(error).__name__
        return None, None, f"{file}: cannot be read as NIfTI, it may be damaged ({why})"
    if not (np.issubdtype(stored.dtype, np.integer) or np.issubdtype(stored.dtype, np.floating)):
        return None, None, f"{file}: its voxels are {stored.dtype}, not single numbers"
    return image, stored, None


def _corner_distance(first: np.ndarray, second: np.ndarray, shape: tuple[int, ...]) -> float:
    """How far apart in mm two affines (4, 4) put the corners of a volume, at most."""
    corners = np.array(np.meshgrid(*[(0, size - 1) for size in shape], [1], indexing="ij")).reshape(4, -1)
    return float(np.linalg.norm(((first - second) @ corners)[:3], axis=0).max())


def _channels(shape: tuple[int, ...]) -> int | None:
    """Number of channels of a 3D or 4D volume, None for any other shape."""
    return {3: 1, 4: shape[-1]}.get(len(shape))


def _convert_case(
    image_file: Path, mask_file: Path, channel: int, expected: int | None
) -> tuple[nib.Nifti1Image | None, nib.Nifti1Image | None, int | None, list[str]]:
    """T2 volume, binary mask and number of channels of one case, and what is wrong with it."""
    image, stored, damage = _open_case(image_file)
    mask, _, mask_damage = _open_case(mask_file)
    problems = [problem for problem in (damage, mask_damage) if problem]
    t2, channels = None, None
    if image is not None:
        channels = _channels(stored.shape)
        if channels is None:
            problems.append(
                f"{image_file}: has shape {stored.shape}; a 3D image or a 4D one with channels last is needed"
            )
        elif expected is not None and channels != expected:
            problems.append(f"{image_file}: has {channels} channel(s), dataset.json names {expected}")
        elif channel >= channels:
            problems.append(f"{image_file}: has {channels} channel(s), so there is no channel {channel}")
        else:
            t2 = stored[..., channel] if stored.ndim == 4 else stored
            if not np.isfinite(t2).all():
                problems.append(f"{image_file}: {int((~np.isfinite(t2)).sum())} voxels are NaN or infinite")
            if not np.isfinite(image.affine).all():
                problems.append(f"{image_file}: its affine is not finite")
    gland = None
    if mask is not None:
        labels = np.asanyarray(mask.dataobj)
        values = np.unique(labels)
        wrong = values[~np.isin(values, (0, 1, 2))]
        if len(wrong):
            shown = ", ".join(f"{value:g}" for value in wrong[:5]) + (", …" if len(wrong) > 5 else "")
            problems.append(f"{mask_file}: labels outside 0, 1, 2: {shown}")
        elif not labels.any():
            problems.append(f"{mask_file}: the mask is empty")
        gland = (labels > 0).astype(np.uint8)
    if image is not None and gland is not None and channels is not None:
        if gland.shape != stored.shape[:3]:
            problems.append(f"{mask_file}: has shape {gland.shape}, its image {stored.shape[:3]}")
        else:
            apart = _corner_distance(image.affine, mask.affine, gland.shape)
            if not apart <= _TOLERANCE_MM:
                problems.append(f"{mask_file}: its affine puts it up to {apart:.3g} mm away from its image")
    if problems:
        return None, None, channels, problems

    # The stored voxels with their own slope and intercept: no rounding, no change of type, the intensities as given.
    header = image.header.copy()
    header.set_data_shape(t2.shape)
    volume = type(image)(t2, image.affine, header)
    volume.header.set_slope_inter(image.dataobj.slope, image.dataobj.inter)
    # The mask takes over the image's geometry, so that both agree to the last bit.
    header = image.header.copy()
    header.set_data_shape(t2.shape)
    header.set_data_dtype(np.uint8)
    header["cal_min"] = header["cal_max"] = 0
    binary = type(image)(gland, image.affine, header)
    binary.header.set_slope_inter(1, 0)
    return volume, binary, channels, []


# ---------------------------------------------------------------------------------------------------------------------
# Conversion.


def _save(image: nib.Nifti1Image, file: Path):
    """Write beside and rename: under its final name a file is whole. The same voxels give the same bytes."""
    part = file.with_name(f".{file.name}.part")
    with part.open("wb") as raw, gzip.GzipFile("", "wb", compresslevel=1, fileobj=raw, mtime=0) as packed:
        packed.write(image.to_bytes())
    os.replace(part, file)  # noqa: PTH105 - the fault tests replace this one call


def _save_json(content: dict, file: Path):
    part = file.with_name(f".{file.name}.part")
    part.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    os.replace(part, file)  # noqa: PTH105


def _read_json(file: Path) -> dict | None:
    """A JSON object, or None where there is none that can be read: then the work is done again."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _stamp(*files: Path) -> list[int]:
    """Size and time of files: changes when one of them does."""
    return [number for file in files for number in (file.stat().st_size, file.stat().st_mtime_ns)]


def _outputs(folder: Path, name: str) -> tuple[Path, Path]:
    return folder / "images" / f"{name}.nii.gz", folder / "labels" / f"{name}.nii.gz"


def _is_current(folder: Path, record: dict, name: str, source: list[int]) -> bool:
    """True if the case in ``folder`` was made from files of this stamp and is still as long as it was."""
    known = record.get("cases", {}).get(name, {})
    files = _outputs(folder, name)
    return (
        known.get("from") == source
        and all(file.is_file() for file in files)
        and known.get("bytes") == [file.stat().st_size for file in files]
    )


@contextlib.contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Let one process convert into ``folder`` at a time; another waits, then finds the work done."""
    import fcntl

    handle = os.open(folder, os.O_RDONLY)
    try:
        # Some network file systems cannot lock a folder; then two conversions at once are the caller's affair.
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _move_into_place(staged: Path, out: Path):
    """Put a complete folder where an older one may be."""
    old = out.with_name(f".{out.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    staged.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def _expected_channels(raw: Path) -> int | None:
    """Number of channels that ``dataset.json`` names; None if there is no such file.

    Raises:
        CourseError: if the file is there and cannot be used.
    """
    file = raw / "dataset.json"
    if not file.is_file():
        return None
    try:
        return len(json.loads(file.read_text(encoding="utf-8"))["modality"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CourseError(
            f"{file} has no readable 'modality', which names the channels ({error!r}). Get the data again, "
            "or delete this file if these are your own cases."
        ) from error


def convert(raw: Path, out: Path, channel: int = 0, say: Callable[[str], None] = print) -> Path:
    """Take one channel of every image and make its mask binary: whole gland 1, all else 0.

    Intensities, data type, voxel grid and affine of the image stay as they are; the mask becomes uint8 on the grid of
    its image. Every case is checked, and all that is wrong is reported together. ``out`` appears only when all cases
    are in it. A conversion that was killed goes on with the cases that it lacks; one whose input is
    unchanged does nothing.

    Args:
        raw: folder with ``imagesTr`` and ``labelsTr``, or ``images`` and ``labels``: 3D (x, y, z) or 4D (x, y, z,
            channel) NIfTI, masks (x, y, z) with labels 0, 1, 2. If it has a ``dataset.json``, its ``modality`` gives
            the number of channels.
        out: folder that gets ``images`` and ``labels``, float and integer types as in ``raw``, and ``conversion.json``,
            the record of what was made from what.
        channel: index of the T2 channel; in Task05_Prostate it is 0.
        say: called with each line of progress.

    Returns:
        ``out``.

    Raises:
        CourseError: for unpaired or damaged files, wrong shapes, channels, labels, affines, empty masks (all named at
            once, nothing written), and if ``out`` holds something else or cannot be written.
    """
    raw, out = Path(raw).resolve(), Path(out).resolve()
    if channel < 0:
        raise CourseError(f"channel is {channel}; count from 0.")
    if raw == out or raw in out.parents or out in raw.parents:
        raise CourseError(f"Cannot convert {raw} into {out}: one folder lies inside the other. Choose another one.")
    pairs, problems = _pairs(raw)
    expected = _expected_channels(raw)
    # Relative, so that a data folder that was moved as a whole is still known.
    origin = {"from": os.path.relpath(raw, out.parent), "channel": channel}
    with _writing(out, "a converted case takes about 1 to 10 MB"):
        out.parent.mkdir(parents=True, exist_ok=True)
        with _one_at_a_time(out.parent):
            return _convert_all(pairs, problems, expected, origin, out, say)


def _convert_all(pairs, problems, expected, origin, out: Path, say) -> Path:
    stamps = {name: _stamp(*files) for name, files in pairs.items()}
    record = _read_json(out / _RECORD)
    if out.exists() and record is None and any(out.iterdir()):
        raise CourseError(f"{out} holds something that this conversion did not write. Choose another folder.")
    if record is not None:
        if record.get("from") != origin["from"]:
            raise CourseError(
                f"{out} holds the conversion of {out.parent / str(record.get('from'))}. "
                "Choose another folder, or delete it if you no longer need it."
            )
        done = record.get("channel") == origin["channel"] and record.get("cases", {}).keys() == stamps.keys()
        if done and not problems and all(_is_current(out, record, *item) for item in stamps.items()):
            say(f"{out}: all {len(pairs)} cases are converted already, nothing to do.")
            return out

    staged = out.with_name(f".{out.name}.part")
    progress = _read_json(staged / _RECORD) or {}
    if {key: progress.get(key) for key in origin} != origin:
        shutil.rmtree(staged, ignore_errors=True)
        progress = {**origin, "cases": {}}
    for folder in ("images", "labels"):
        (staged / folder).mkdir(parents=True, exist_ok=True)
    say(f"Checking and converting {len(pairs)} cases: channel {origin['channel']}, mask of the whole gland, into {out}")
    try:
        _stage(pairs, problems, expected, stamps, origin["channel"], staged, progress, say)
        if problems:
            raise _all_of("Nothing was converted", problems)
        # An interrupted call may have left half a case, or cases that are no longer in raw.
        wanted = {file for name in pairs for file in _outputs(staged, name)}
        for file in {*staged.glob("images/*"), *staged.glob("labels/*")} - wanted:
            file.unlink()
        progress["cases"] = {name: progress["cases"][name] for name in pairs}
        _save_json(progress, staged / _RECORD)
        _move_into_place(staged, out)
    except (CourseError, OSError):
        # Only a process that was stopped leaves its work for the next call.
        shutil.rmtree(staged, ignore_errors=True)
        raise
    say(f"Converted {len(pairs)} of {len(pairs)} cases.")
    return out


def _stage(pairs, problems, expected, stamps, channel, staged, progress, say):
    """Convert every case that ``staged`` lacks; after the first problem only look for more problems."""
    counts: dict[int, list[Path]] = {}
    said = time.monotonic()
    for number, (name, (image_file, mask_file)) in enumerate(pairs.items(), start=1):
        if _is_current(staged, progress, name, stamps[name]):
            counts.setdefault(progress["cases"][name]["channels"], []).append(image_file)
            continue
        image, mask, channels, wrong = _convert_case(image_file, mask_file, channel, expected)
        problems += wrong
        if channels is not None:
            counts.setdefault(channels, []).append(image_file)
        if not problems:
            files = _outputs(staged, name)
            _save(image, files[0])
            _save(mask, files[1])
            sizes = [file.stat().st_size for file in files]
            progress["cases"][name] = {"from": stamps[name], "bytes": sizes, "channels": channels}
            _save_json(progress, staged / _RECORD)
        if time.monotonic() - said > 2:
            said = time.monotonic()
            say(f"  {number} of {len(pairs)} cases")
    if expected is None and len(counts) > 1:
        # Without dataset.json nothing says which case is the odd one: name the smaller groups.
        usual = max(counts, key=lambda count: len(counts[count]))
        problems += [
            f"{file}: has {count} channel(s), most others {usual}: is channel {channel} T2 in both?"
            for count, files in counts.items()
            if count != usual
            for file in files
        ]


# ---------------------------------------------------------------------------------------------------------------------
# Datalists.


def read_sites(path: Path) -> dict[str, list[str]]:
    """Read which case belongs to which site: a JSON object of site name → list of case names.

    Raises:
        CourseError: if the file cannot be read or is something else.
    """
    try:
        sites = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CourseError(f"Cannot read the site file {path}: {error}. It must be JSON: {_SITES_EXAMPLE}") from error
    _check_sites_type(sites, str(path))
    return sites


_SITES_EXAMPLE = '{"site-1": ["case_a", "case_b", "case_c"], "site-2": [...]}'


def _check_sites_type(sites, where: str):
    good = isinstance(sites, dict) and sites
    good = good and all(isinstance(v, list) and all(isinstance(name, str) for name in v) for v in sites.values())
    if not good:
        raise CourseError(f"{where} is not a map of site name to list of case names, such as {_SITES_EXAMPLE}")


def part_sizes(cases: int) -> dict[str, int]:
    """Sizes of the parts of one site by largest remainder, at least one case each.

    Raises:
        CourseError: if there are fewer cases than parts.
    """
    if cases < len(PARTS):
        raise CourseError(f"{cases} case(s) cannot be split into {', '.join(PARTS)}: at least {len(PARTS)} are needed.")
    sizes = {part: int(cases * share) for part, share in PARTS.items()}
    by_remainder = sorted(PARTS, key=lambda part: sizes[part] - cases * PARTS[part])
    for part in by_remainder[: cases - sum(sizes.values())]:
        sizes[part] += 1
    return sizes


def _random_sites(names: list[str], count: int, seed: int) -> dict[str, list[str]]:
    shuffled = np.random.default_rng(seed).permutation(sorted(names))
    return {f"site-{i}": [str(n) for n in part] for i, part in enumerate(np.array_split(shuffled, count), start=1)}


def _given_sites(names: list[str], sites: dict[str, list[str]], problems: list[str], say) -> dict[str, list[str]]:
    """The sites with plain case names; reports what does not fit the cases that are there."""
    owner: dict[str, str] = {}
    plain: dict[str, list[str]] = {}
    for site, cases in sites.items():
        if not _SITE_NAME.fullmatch(site):
            problems.append(f"site {site!r}: use letters, digits, - and _ alone, it becomes a file and a host name")
        plain[site] = []
        for case in cases:
            name = _case_name(Path(case)) or case
            if name not in names:
                problems.append(f"site {site}: there is no case {case}")
            elif name in owner:
                problems.append(f"site {site}: case {case} is named twice, before that in {owner[name]}")
            else:
                owner[name] = site
                plain[site].append(name)
    left_out = sorted(set(names) - owner.keys())
    if left_out:
        say(f"warning: in no site, so left out: {', '.join(left_out)}")
    return plain


def make_datalists(
    images_folder: Path,
    out: Path,
    sites: int | dict[str, list[str]] = 4,
    seed: int = 0,
    say: Callable[[str], None] = print,
) -> dict[str, dict[str, list[dict[str, str]]]]:
    """Split each site 50 : 25 : 25 into training, validation and testing; write one Decathlon datalist per site.

    No case is in two parts or at two sites. A site's split depends on its name, its cases and the seed alone.

    Args:
        images_folder: converted data: ``images/NAME.nii.gz`` and ``labels/NAME.nii.gz``.
        out: folder that gets ``SITE.json`` for each site and nothing else; datalists of an earlier call are replaced.
        sites: how many sites to deal the cases out to at random (``site-1`` …), or site → case names, so that a
            multi-centre data set keeps its centres.
        seed: of the random generator.
        say: called with each line of progress and with a warning that names the cases in no site.

    Returns:
        Site → ``{"training": [...], "validation": [...], "testing": [...]}``, each a list of ``{"image", "label"}``
        with paths relative to ``images_folder``. This is what the files hold, too.

    Raises:
        CourseError: for unpaired files, unknown cases, cases named twice, sites with fewer cases than parts (all
            named at once, nothing written), and if ``out`` holds something else or cannot be written.
    """
    images_folder, out = Path(images_folder).resolve(), Path(out).resolve()
    if isinstance(sites, int) and sites < 1:
        raise CourseError(f"The number of sites is {sites}; it must be 1 or more.")
    if seed < 0:
        raise CourseError(f"seed is {seed}; it must be 0 or more.")
    pairs, problems = _pairs(images_folder)
    if isinstance(sites, int):
        members = _random_sites(list(pairs), sites, seed)
    else:
        _check_sites_type(sites, "sites")
        members = _given_sites(list(pairs), sites, problems, say)
    datalists = {}
    for site, names in members.items():
        if len(names) < len(PARTS):
            problems.append(f"site {site}: {len(names)} case(s), at least {len(PARTS)} are needed: {', '.join(PARTS)}")
            continue
        order = np.random.default_rng([seed, *site.encode()]).permutation(sorted(names))
        ends = np.cumsum(list(part_sizes(len(names)).values()))[:-1]
        datalists[site] = {
            part: [_entry(pairs[name], images_folder) for name in sorted(chosen)]
            for part, chosen in zip(PARTS, np.split(order, ends), strict=True)
        }
    if problems:
        raise _all_of(f"No datalist was made from {images_folder}", problems)
    _write_datalists(datalists, out, say)
    return datalists


def _entry(pair: tuple[Path, Path], base: Path) -> dict[str, str]:
    return {key: file.relative_to(base).as_posix() for key, file in zip(("image", "label"), pair, strict=True)}


def _write_datalists(datalists: dict, out: Path, say):
    files = sorted(out.iterdir()) if out.is_dir() else []
    files = [file for file in files if not file.name.startswith("._")]
    foreign = [f for f in files if f.suffix != ".json" or (_read_json(f) or {}).keys() != PARTS.keys()]
    if foreign or (out.exists() and not out.is_dir()):
        raise CourseError(f"{foreign[0] if foreign else out} is no datalist. Choose another folder for the datalists.")
    if {file.stem: _read_json(file) for file in files} == datalists:
        say(f"{out}: the {len(datalists)} datalists are there already, nothing to do.")
        return
    with _writing(out, "the datalists are small"):
        out.parent.mkdir(parents=True, exist_ok=True)
        staged = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
        try:
            staged.chmod(0o755)  # mkdtemp's 0700 would shut out colleagues
            for site, datalist in datalists.items():
                _save_json(datalist, staged / f"{site}.json")
            _move_into_place(staged, out)
        finally:
            shutil.rmtree(staged, ignore_errors=True)
    for site, datalist in datalists.items():
        counts = ", ".join(f"{len(cases)} {part}" for part, cases in datalist.items())
        say(f"{out / site}.json: {counts}")


def read_datalist(path: Path, base: Path) -> dict[str, list[dict[str, Path]]]:
    """Read a site's datalist and look whether its files are there.

    Args:
        path: ``SITE.json`` as written by :func:`make_datalists`, or another datalist in Decathlon format.
        base: folder that its paths are relative to: the converted data.

    Returns:
        ``{"training": [...], "validation": [...], "testing": [...]}``, each a list of ``{"image", "label"}`` with
        absolute paths.

    Raises:
        CourseError: if the file cannot be read, a part or a key is missing, a part is empty, a case is in two parts
            or a file is missing; all that is wrong is named at once.
    """
    path, base = Path(path), Path(base).resolve()
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CourseError(
            f"Cannot read the datalist {path}: {error}. Make it with data_scripts/datalists_gen.sh."
        ) from error
    if not isinstance(content, dict):
        raise CourseError(f"The datalist {path} is not a JSON object with the parts {', '.join(PARTS)}.")
    problems: list[str] = []
    parts: dict[str, list[dict[str, Path]]] = {}
    seen: dict[Path, str] = {}
    for part in PARTS:
        parts[part] = []
        entries = content.get(part)
        if not isinstance(entries, list) or not entries:
            problems.append(f"part {part!r} is missing or empty")
            continue
        for number, entry in enumerate(entries):
            if not isinstance(entry, dict) or not all(isinstance(entry.get(key), str) for key in ("image", "label")):
                problems.append(f"{part}[{number}]: no 'image' and 'label'")
                continue
            case = {key: base / entry[key] for key in ("image", "label")}
            problems += [f"{part}[{number}]: {file} does not exist" for file in case.values() if not file.is_file()]
            if case["image"] in seen:
                problems.append(f"{part}[{number}]: {entry['image']} is in {seen[case['image']]} already")
            seen[case["image"]] = part
            parts[part].append(case)
    if problems:
        raise _all_of(f"The datalist {path} cannot be used with {base}", problems)
    return parts


def partition_table(datalists: dict[str, dict[str, list]]):
    """Number of cases by site and part.

    Args:
        datalists: site → datalist, from :func:`make_datalists`, or with :func:`read_datalist` for each site.

    Returns:
        pandas.DataFrame: a row for each site and one for all, a column for each part and one for all.
    """
    import pandas as pd

    counts = {site: {part: len(datalist[part]) for part in PARTS} for site, datalist in datalists.items()}
    table = pd.DataFrame.from_dict(counts, orient="index", columns=list(PARTS))
    table["all parts"] = table.sum(axis=1)
    table.loc["all sites"] = table.sum()
    return table.rename_axis("site")
