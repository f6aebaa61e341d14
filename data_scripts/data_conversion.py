"""Behind data_conversion.sh: the arguments of src.prostate.convert."""

import _cli

from src import prostate

TEXT = """\
Take one channel (T2) of every image and make its mask binary (whole gland), all cases in one go.
Data type, intensities and affine of the images stay as they are. Every case is checked first-hand: pairing,
damage, channels, labels, shape and affine; all problems are printed at once and nothing is written then.

Your own cases work too: 3D or 4D NIfTI in FOLDER/images/NAME.nii.gz with masks in FOLDER/labels/NAME.nii.gz."""


def main():
    parser = _cli.parser("data_conversion", TEXT)
    parser.add_argument(
        "raw",
        nargs="?",
        type=_cli.folder,
        help="imagesTr/ and labelsTr/, or images/ and labels/; default: Task05_Prostate of the data folder",
    )
    parser.add_argument("out", nargs="?", type=_cli.folder, help="folder to make; default: prostate_t2 beside RAW")
    parser.add_argument("--channel", type=int, default=0, help="index of T2 in 4D images (default: %(default)s)")
    arguments = parser.parse_args()
    raw = arguments.raw or prostate.folders().raw
    prostate.convert(raw, arguments.out or raw.parent / "prostate_t2", arguments.channel)


_cli.run(main)
