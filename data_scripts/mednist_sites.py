"""Behind mednist_sites.sh: the arguments of data_scripts.mednist.share_out."""

import _cli

from data_scripts.mednist import FEW, describe, find_or_make, share_out

TEXT = """\
Share MedNIST out over pretend hospitals. Every site gets a folder of its own, COURSE_DATA/sites/NAME/SITE: its images, and
datalist.json, in which they are split 70 : 10 : 20 into training, validation and testing. No image is at two sites.

MedNIST is found in the data folder, or else drawn or downloaded there."""


def main():
    parser = _cli.parser("mednist_sites", TEXT)
    parser.add_argument(
        "mednist", nargs="?", type=_cli.folder, help="folder of the six classes; default: found or made"
    )
    parser.add_argument("--name", help="what jobs call these data (default: mednist)")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--num-sites", type=int, default=2, help="number of sites (default: %(default)s)")
    which.add_argument("--sites", nargs="+", metavar="SITE", help="names of the sites")
    parser.add_argument(
        "--how",
        default="specialised",
        choices=("specialised", "even", "counts", "dirichlet", "scanners"),
        help="each class at home at one site and --few images of it elsewhere, equal shares, the numbers of --counts, a random "
        "mix of classes at each site, or equal shares seen by another scanner at each site (default: %(default)s)",
    )
    parser.add_argument(
        "--few", type=int, default=FEW, metavar="N", help="for --how specialised (default: %(default)s)"
    )
    parser.add_argument("--counts", type=int, nargs="+", metavar="N", help="images of each site, for --how counts")
    parser.add_argument(
        "--alpha", type=float, default=0.5, help="for --how dirichlet: 100 nearly equal, 0.1 very different"
    )
    parser.add_argument("--per-class", type=int, metavar="N", help="at most so many images of each class")
    parser.add_argument("--seed", type=int, default=0, help="of the random generator (default: %(default)s)")
    a = parser.parse_args()
    folder = a.mednist or find_or_make()
    share_out(a.sites or a.num_sites, a.how, a.counts, a.alpha, a.few, a.seed, a.name, folder, a.per_class)
    print(describe(folder))


_cli.run(main)
