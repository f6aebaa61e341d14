"""Take one channel (T2) of every image and make its mask binary (whole gland), all cases in one go.
Data type and intensities stay as they are; image and mask get one geometry in mm that all programs read the same.
Every case is checked: pairing, damage, channels, labels, shape and affine. All problems are printed at once and
nothing is written then. What is legal but looks wrong is printed at the end.

Your own cases work too: 3D or 4D NIfTI in RAW/images/NAME.nii.gz with masks in RAW/labels/NAME.nii.gz."""

import os
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from data_scripts import command
from data_scripts.folders import is_generated, one_at_a_time, raw_folder, staged
from data_scripts.nifti import Case, examine, one_geometry
from src.common.errors import CourseError, all_of, some_of
from src.common.files import read_json, stamp, write_json

RECORD = "conversion.json"
CHANNELS = ("modality", "channel_names")  # keys of the Decathlon and of nnU-Net in dataset.json
VERSION = 3  # changes whenever the same input gives another conversion
_GLAND = r"(whole )?gland|.*\b(prostat\w*|peripheral|transition(al)?|central|fibromuscular|pz|tz|cz|cg|afs|wg)\b.*"


def case_name(file: Path) -> str | None:
    """``prostate_00`` of ``prostate_00.nii.gz`` or ``.nii``; None for other files and for macOS ``._`` companions."""
    match = re.fullmatch(r"([^.].*)\.nii(\.gz)?", file.name, re.IGNORECASE)
    # A Mac writes ä as a and two dots, most others write it as one letter: the same name is to be the same text.
    return unicodedata.normalize("NFC", match[1]) if match else None


def pairs(folder: Path) -> tuple[dict[str, tuple[Path, Path]], list[str], list[str]]:
    """Image and mask of each case by name, what is wrong with the pairing, and which files are left out."""
    for images_in, masks_in in (("imagesTr", "labelsTr"), ("images", "labels")):
        if (folder / images_in).is_dir() and (folder / masks_in).is_dir():
            break
    else:
        what = "Get Task05_Prostate with data_scripts/prostate_download.sh and convert it with data_conversion.sh"
        own = "or name the folder of your own cases: NIfTI files images/NAME.nii.gz with their masks labels/NAME.nii.gz"
        raise CourseError(f"{folder} has neither imagesTr/ and labelsTr/ nor images/ and labels/. {what}, {own}.")
    problems, left_out = [], []
    images, masks = (_cases_in(folder / one, problems, left_out) for one in (images_in, masks_in))
    wrong = [f"{images[name]}: no mask of that name in {masks_in}/" for name in images if name not in masks]
    wrong += [f"{masks[name]}: no image of that name in {images_in}/" for name in masks if name not in images]
    if not images and not masks:
        wrong = [f"{folder / images_in}: no NIfTI file (.nii.gz or .nii) in it"]
    elif images and all(re.fullmatch(r".*_\d{4}", name) and name[:-5] in masks for name in images):
        what = f"as nnU-Net's do, one file a channel; keep T2's and rename them to those of {masks_in}/"
        wrong = [f"{folder / images_in}: its names end in _0000, {what}"]
    return {name: (images[name], masks[name]) for name in images if name in masks}, problems + wrong, left_out


def _cases_in(folder: Path, problems: list[str], left_out: list[str]) -> dict[str, Path]:
    try:
        os.listdir(folder)  # noqa: PTH208 - the search below would hide that the folder cannot be read
    except OSError as error:
        raise CourseError(f"Cannot read {folder}: {error.strerror}. Mend its permissions, or copy it.") from error
    cases: dict[str, Path] = {}
    for file in sorted(folder.rglob("[!.]*")):
        name = case_name(file) if file.parent == folder else None
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


def convert(
    raw: Path, out: Path, channel: int | None = None, labels: Sequence[int] | None = None, say: Callable = print
) -> Path:
    """Take one channel of every image and make its mask binary: whole gland 1, all else 0; returns ``out``.

    Intensities, data type and voxels of the image stay as they are; the mask becomes uint8 on its grid. ``out`` appears when all
    cases are in it, with ``conversion.json``, the record of what was made from what; where ``raw`` is unchanged, nothing is done.
    ``raw`` is as ``data_conversion.sh --help`` says; its ``dataset.json`` may name channels and labels, from which the T2 channel
    (else 0) and the gland's mask values (else 1 and 2) are taken by default.

    A ``CourseError`` names all that is wrong with the cases, or says that ``out`` cannot be written or holds something else.
    """
    raw, out = Path(raw).resolve(), Path(out).resolve()
    if raw == out or raw in out.parents or out in raw.parents:
        raise CourseError(f"Cannot convert {raw} into {out}: one folder lies inside the other. Choose another one.")
    cases, problems, left_out = pairs(raw)
    if left_out:
        say(f"Left out, {len(left_out)} files that have no NIfTI name or lie in a subfolder: {some_of(left_out)}")
    choice = _choose(raw, channel, labels, problems)
    # Relative, so that a data folder that was moved as a whole is still known.
    record = {"version": VERSION, "from": os.path.relpath(raw, out.parent), "generated": is_generated(raw)}
    record |= {"choice": choice, "cases": {name: stamp(*files) for name, files in cases.items()}}
    with one_at_a_time(out.parent):
        found = read_json(out / RECORD)
        if found is None and out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise CourseError(f"{out} holds something that this conversion did not write. Choose another folder.")
        if found is not None and found.get("from") != record["from"]:
            other = out.parent / str(found.get("from"))
            raise CourseError(f"{out} holds the conversion of {other}. Choose another folder, or delete this one.")
        if not problems and found == {**record, "bytes": _sizes(out)}:
            say(f"{out}: all {len(cases)} cases are converted already, nothing to do.")
            return out
        say(f"Checking and converting {len(cases)} cases into {out}")
        with staged(out) as new:
            remarks = _convert_all(cases, choice, problems, new, say)
            write_json(new / RECORD, {**record, "bytes": _sizes(new)})
        say(f"Converted {len(cases)} of {len(cases)} cases: {choice['said']}.")
        if remarks:
            say("\n  - ".join(["Look at these:", *remarks]))
    return out


def names_of(raw: Path, *keys: str) -> dict[int, str]:
    """Names by number under the first of the keys that ``dataset.json`` has, as the Decathlon or nnU-Net write them."""
    file = raw / "dataset.json"
    content = read_json(file) if file.exists() else {}
    if content is None:
        raise CourseError(f"{file} cannot be read as JSON. Get it again, or delete it if these are your own cases.")
    names = next((content[key] for key in keys if isinstance(content.get(key), dict)), {})
    # nnU-Net names labels the other way round: {"background": 0}.
    numbered = [(key, value) if key.isdecimal() else (value, key) for key, value in names.items()]
    return {int(number): str(name) for number, name in numbered if str(number).isdecimal()}


def _choose(raw: Path, channel: int | None, labels: Sequence[int] | None, problems: list[str]) -> dict:
    """Which ``channel`` is T2, of how many ``channels``, which labels are the ``gland`` and which are ``known``; None: any."""
    names, parts = names_of(raw, *CHANNELS), names_of(raw, "labels")
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


def _sizes(folder: Path) -> dict[str, int]:
    return {f"{file.parent.name}/{file.name}": file.stat().st_size for file in sorted(folder.glob("*/*.nii.gz"))}


def _convert_all(cases: Mapping, choice: dict, problems: list[str], new: Path, say: Callable) -> list[str]:
    """Convert all cases into ``new`` and return remarks on them; after the first problem only look for more problems."""
    remarks, channels, found = [], choice["channels"], False
    for kind in ("images", "labels"):
        (new / kind).mkdir()
    for number, (name, files) in enumerate(cases.items(), start=1):
        case = Case(*files, choice["channel"], channels, choice["gland"], choice["known"])
        refused, said = examine(case)
        problems += refused.values()
        channels = channels if "image" in refused else case.found
        if not problems:
            found |= case.gland.any()
            remarks += [f"{name}: {'; '.join(said)}"] if said else []
            for kind, volume in (("images", case.t2), ("labels", one_geometry(case.gland, case.t2.affine))):
                volume.to_filename(new / kind / f"{name}.nii.gz")  # the same voxels give the same bytes
        if number % 25 == 0:
            say(f"  {number} of {len(cases)} cases")
    if not problems and not found and choice["known"] is None:
        problems = [f"no mask has a voxel of the labels {', '.join(map(str, choice['gland']))}; choose with --labels"]
    if problems:
        raise all_of("Nothing was converted", problems)
    return remarks


def main() -> None:
    parser = command.parser("data_conversion", __doc__)
    add, numbers = parser.add_argument, lambda text: [int(one) for one in text.split(",")]
    layout = "imagesTr/ and labelsTr/, or images/ and labels/; default: Task05_Prostate of the data folder"
    add("raw", nargs="?", type=command.folder, help=layout)
    add("out", nargs="?", type=command.folder, help="folder to make; default: prostate_t2 beside RAW")
    add("--channel", type=int, help="index of T2 in 4D images; default: by its name, else 0")
    add("--labels", type=numbers, metavar="N,N", help="mask values of the gland; default: by their names, else 1,2")
    a = parser.parse_args()
    raw = a.raw or raw_folder("Task05_Prostate")
    convert(raw, a.out or raw.parent / "prostate_t2", a.channel, a.labels)


if __name__ == "__main__":
    command.run(main)
