#!/usr/bin/env bash
# Get Task05_Prostate: draw it, or download it with its checksum. See --help.
exec bash "$(dirname -- "${BASH_SOURCE[0]}")/_run.sh" prostate_download "$@"
