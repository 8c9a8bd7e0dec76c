#!/usr/bin/env bash
# Trains a small model while killing it, filling its disk and damaging its files, and shows that the result is the undisturbed
# run's, bit for bit. About 6 minutes; --quick: about 2. The last line is JSON; the exit status is 0 only if all went well.
#   bash auto_bash/soak.sh [--quick] [--seed N] [--work_dir DIR]
set -euo pipefail
CALLED_FROM="$PWD"
cd "$(dirname "$0")/.."
source auto_bash/setup.sh
ISOLATED=() # a mount table of its own, so that no file system can be left mounted; users other than root need it to mount at all
for unshare in "unshare --mount" "unshare --mount --map-root-user"; do
  if $unshare true 2>/dev/null; then read -ra ISOLATED <<<"$unshare"; break; fi
done
export PYTHONPATH="$PWD/tests"
exec ${ISOLATED[@]+"${ISOLATED[@]}"} "$PYTHON" -m soak.soak --called_from "$CALLED_FROM" "$@"
