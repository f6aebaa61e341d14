#!/usr/bin/env bash
# Give every site a folder of its own, its cases split into training, validation and testing. See --help.
exec bash "$(dirname -- "${BASH_SOURCE[0]}")/_run.sh" datalists_gen "$@"
