#!/usr/bin/env bash
# The tests, on a fresh machine too: sets the environment up, checks style, runs the suite.
#   bash auto_bash/test.sh [pytest arguments]
set -euo pipefail
cd "$(dirname "$0")/.."
source auto_bash/setup.sh
"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
exec "$PYTHON" -m pytest "$@"
