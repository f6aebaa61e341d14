#!/usr/bin/env bash
# Split the cases of each site into training, validation and testing. See --help.
exec bash "$(dirname -- "${BASH_SOURCE[0]}")/_run.sh" datalists_gen "$@"
