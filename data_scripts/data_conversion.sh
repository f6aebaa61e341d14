#!/usr/bin/env bash
# Take T2 out of the 4D images and make the masks binary. See --help.
exec bash "$(dirname -- "${BASH_SOURCE[0]}")/_run.sh" data_conversion "$@"
