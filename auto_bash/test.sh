#!/usr/bin/env bash
# Set up the environment, check the style, and run the test suite with two processes.
#   bash auto_bash/test.sh [pytest arguments]
set -euo pipefail
cd "$(dirname "$0")/.."
source auto_bash/setup.sh
# Tests of HTML pages need a browser, and are skipped without one.
if ! command -v chromedriver >/dev/null; then
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "Installing Chromium for the tests of HTML pages ..."
    (timeout 120 apt-get update -qq && DEBIAN_FRONTEND=noninteractive timeout 300 apt-get install -y -qq chromium chromium-driver) \
      >/dev/null 2>&1 || echo "Note: installing Chromium failed; the tests of HTML pages will be skipped."
  else
    echo "Note: Chromium is not installed (Debian: chromium chromium-driver); the tests of HTML pages will be skipped."
  fi
fi
# Independent readers of meshes (tests/readers.py): Khronos' validator and three.js.
if [ ! -d tests/node/node_modules ]; then
  { command -v npm >/dev/null && timeout 120 npm install --silent --no-audit --no-fund --prefix tests/node >/dev/null 2>&1; } ||
    echo "Note: npm could not install tests/node; the tests that read meshes with its packages will be skipped."
fi
"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" # more threads would compete for the cores
exec "$PYTHON" -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder "$@"
