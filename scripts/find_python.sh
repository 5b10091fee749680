#!/usr/bin/env bash
# Print the first Python of 3.11 or newer that really runs and can make environments; say what to install if there is none.
# With an argument such as 3.14: the first that is older than that, for packages which do not know the newest ones.
set -u
below=${1:-4}
for python in ${PYTHON:-} python3 python3.14 python3.13 python3.12 python3.11 python; do
  if "$python" -c 'import sys, venv, ensurepip
below = tuple(map(int, sys.argv[1].split(".")))
sys.exit(not (3, 11) <= sys.version_info[:2] < below)' "$below" >/dev/null 2>&1; then
    echo "$python"
    exit 0
  fi
done
echo "this needs Python 3.11 or newer${1:+, older than $1,} with the venv module; none was found." >&2
echo "Debian and Ubuntu: sudo apt install python3 python3-venv    macOS: brew install python" >&2
echo "If yours has another name: make PYTHON=/path/to/python ..." >&2
exit 1
