#!/usr/bin/env bash
# Share MedNIST out over pretend hospitals, each with a folder of its own. See --help.
exec bash "$(dirname -- "${BASH_SOURCE[0]}")/_run.sh" mednist_sites "$@"
