#!/usr/bin/env bash
# The tests, on a fresh machine too: sets the environment up, checks style, runs the suite, two files at a time.
#   bash auto_bash/test.sh [pytest arguments]
set -euo pipefail
cd "$(dirname "$0")/.."
source auto_bash/setup.sh
"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" # more would only wait for each other
exec "$PYTHON" -m pytest --numprocesses 2 --dist loadfile "$@"
