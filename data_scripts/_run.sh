#!/usr/bin/env bash
# Find the course's Python and run one of the Python modules beside this one: _run.sh NAME [ARGUMENT...]
set -euo pipefail

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P)
repository=$(dirname -- "$here")

if [[ -z ${PYTHON:-} ]]; then
  PYTHON=python3
  [[ -x $repository/.venv/bin/python ]] && PYTHON=$repository/.venv/bin/python
fi
if ! command -v -- "$PYTHON" >/dev/null; then
  echo "error: there is no '$PYTHON'. Run 'make course' first, or say which Python has the course: PYTHON=... $0" >&2
  exit 2
fi

# The course need not be installed: what it imports must be.
export PYTHONPATH="$repository${PYTHONPATH:+:$PYTHONPATH}"
exec "$PYTHON" "$here/command.py" "$@"
