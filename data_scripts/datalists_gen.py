"""Behind datalists_gen.sh: the arguments of data_scripts.prostate.share_out."""

import _cli

from data_scripts.prostate import read_hospitals, share_out

TEXT = """\
Give every site a folder of its own, COURSE_DATA/sites/NAME/SITE: its cases, and datalist.json in the format of the
Medical Segmentation Decathlon, in which they are split 45 : 22 : 33 into training, validation and testing.

Cases keep the hospitals that they come from: those of --sites, or of hospitals.json beside the raw data. Without either
they are dealt out at random. No case is in two parts or at two sites."""


def main():
    parser = _cli.parser("datalists_gen", TEXT)
    parser.add_argument(
        "data", nargs="?", type=_cli.folder, help="converted data; default: prostate_t2 of the data folder"
    )
    parser.add_argument("--name", help="what jobs call these data (default: prostate)")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--num-sites", type=int, help="sites to deal out to at random (default: 4, without hospitals)")
    which.add_argument("--sites", type=_cli.folder, metavar="FILE", help='JSON: {"site name": ["case name", ...], ...}')
    parser.add_argument("--seed", type=int, default=0, help="of the random generator (default: %(default)s)")
    arguments = parser.parse_args()
    sites = read_hospitals(arguments.sites) if arguments.sites else arguments.num_sites
    share_out(sites, arguments.seed, arguments.name, arguments.data)


_cli.run(main)
