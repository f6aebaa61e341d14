"""Behind prostate_download.sh: the arguments of data_scripts.prostate.find_or_make."""

import _cli

from data_scripts.prostate import describe, find_or_make

TEXT = """\
Put Task05_Prostate of the Medical Segmentation Decathlon into the data folder, unless it is there.

real:       DATA/Task05_Prostate, 229 MB from MONAI's mirror, or from the Decathlon's Google Drive if that fails. The
            checksum is verified. No network here? Bring the archive as DATA/Task05_Prostate.tar.
generated:  DATA/generated/Task05_Prostate, 32 drawn cases in the same layout, and hospitals.json, which says which
            of the four drawn hospitals each case comes from."""


def main():
    parser = _cli.parser("prostate_download", TEXT)
    parser.add_argument("data", nargs="?", type=_cli.folder, help="data folder; default: COURSE_DATA")
    parser.add_argument("--source", choices=("generated", "real"), help="default: COURSE_DATA_SOURCE")
    arguments = parser.parse_args()
    print(describe(find_or_make(arguments.source, arguments.data)))


_cli.run(main)
