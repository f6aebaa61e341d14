"""Behind datalists_gen.sh: the arguments of src.prostate.make_datalists."""

import _cli

from src import prostate

TEXT = """\
Split the cases of each site 50 : 25 : 25 into training, validation and testing and write one JSON file per site in the
format of the Medical Segmentation Decathlon, with paths relative to the folder of the converted data.

Cases are dealt out to sites at random, or with --sites they keep the hospitals that they come from. Then each site is
split by itself. No case is in two parts or at two sites."""


def main():
    parser = _cli.parser("datalists_gen", TEXT)
    parser.add_argument(
        "data", nargs="?", type=_cli.folder, help="converted data; default: prostate_t2 of the data folder"
    )
    parser.add_argument(
        "out", nargs="?", type=_cli.folder, help="folder to make; default: prostate_datalists beside DATA"
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--num-sites", type=int, default=4, help="sites to deal out to (default: %(default)s)")
    which.add_argument("--sites", type=_cli.folder, metavar="FILE", help='JSON: {"site name": ["case name", ...], ...}')
    parser.add_argument("--seed", type=int, default=0, help="of the random generator (default: %(default)s)")
    arguments = parser.parse_args()
    data = arguments.data or prostate.folders().converted
    sites = prostate.read_sites(arguments.sites) if arguments.sites else arguments.num_sites
    prostate.make_datalists(data, arguments.out or data.parent / "prostate_datalists", sites, arguments.seed)


_cli.run(main)
