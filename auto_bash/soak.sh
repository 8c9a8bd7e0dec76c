#!/usr/bin/env bash
# Train a small model while killing it, filling its disk and damaging its files, and check that the result is bitwise identical
# to that of an undisturbed run. About 6 minutes; --quick: about 2. The last line is JSON. The exit status is 0 only on success.
#   bash auto_bash/soak.sh [--quick] [--seed N] [--work_dir DIR]
set -euo pipefail
CALLED_FROM="$PWD"
cd "$(dirname "$0")/.."
source auto_bash/setup.sh
ISOLATED=() # a private mount table, so that no file system stays mounted; non-root users need it to mount at all
for unshare in "unshare --mount" "unshare --mount --map-root-user"; do
  if $unshare true 2>/dev/null; then read -ra ISOLATED <<<"$unshare"; break; fi
done
export PYTHONPATH="$PWD/tests"
exec ${ISOLATED[@]+"${ISOLATED[@]}"} "$PYTHON" -m soak.soak --called_from "$CALLED_FROM" "$@"
