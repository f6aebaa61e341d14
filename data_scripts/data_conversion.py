"""Behind data_conversion.sh: the arguments of data_scripts.prostate.convert."""

import _cli

from data_scripts.prostate import convert
from src.common.paths import raw_folder

TEXT = """\
Take one channel (T2) of every image and make its mask binary (whole gland), all cases in one go.
Data type and intensities stay as they are; image and mask get one geometry in mm that all programs read the same.
Every case is checked: pairing, damage, channels, labels, shape and affine. All problems are printed at once and
nothing is written then. What is legal but looks wrong is printed at the end.

Your own cases work too: 3D or 4D NIfTI in RAW/images/NAME.nii.gz with masks in RAW/labels/NAME.nii.gz."""


def main():
    parser = _cli.parser("data_conversion", TEXT)
    parser.add_argument(
        "raw",
        nargs="?",
        type=_cli.folder,
        help="imagesTr/ and labelsTr/, or images/ and labels/; default: Task05_Prostate of the data folder",
    )
    parser.add_argument("out", nargs="?", type=_cli.folder, help="folder to make; default: prostate_t2 beside RAW")
    parser.add_argument("--channel", type=int, help="index of T2 in 4D images; default: by its name, else 0")
    parser.add_argument(
        "--labels",
        type=lambda text: [int(one) for one in text.split(",")],
        metavar="N,N",
        help="mask values that make up the gland; default: by their names, else 1,2",
    )
    arguments = parser.parse_args()
    raw = arguments.raw or raw_folder("Task05_Prostate")
    convert(raw, arguments.out or raw.parent / "prostate_t2", arguments.channel, arguments.labels)


_cli.run(main)
