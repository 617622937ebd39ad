#!/usr/bin/env bash
# Make a virtual environment with nothing in it but pip and, where that saves gigabytes, torch.
#
#     scripts/make_env.sh PYTHON DIRECTORY
#
# PYTHON is an interpreter.  VXPRESS_TORCH names the torch to put in first ("torch==2.13.0", or "" for none: the
# package then takes the newest of the registry).  Unset, it is 2.13.0 on Python 3.11, for which a CPU build is used
# where pip is configured to find one, and none elsewhere.
set -euo pipefail

python=$1
directory=$2

"$python" -m venv "$directory"
version=$("$directory/bin/python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')

default_torch=""
if [ "$version" = 3.11 ]; then
    default_torch="torch==2.13.0"
fi
torch=${VXPRESS_TORCH-$default_torch}
if [ -n "$torch" ]; then
    "$directory/bin/python" -m pip install "$torch"
fi

# on GitHub, the steps that follow use this environment
if [ -n "${GITHUB_PATH:-}" ]; then
    (cd "$directory/bin" && pwd) >> "$GITHUB_PATH"
fi
