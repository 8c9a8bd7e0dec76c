#!/usr/bin/env bash
# Train on several machines that are reachable by ssh without a password. The first machine has rank 0, which writes the output.
#   bash auto_bash/ssh.sh "host1 host2" CURRICULUM DATASET OUTPUT [arguments of train.py]
# The checkout, DATASET and OUTPUT must have the same path on all machines. One process per GPU, or PROCESSES=N per machine.
# If one machine fails, all are stopped. If this script ends, by Ctrl-C or otherwise, all write a checkpoint and stop.
# MASTER_PORT (29400) must be free on the first machine, and the others must reach that machine by the name given here.
set -uo pipefail
if [ $# -lt 4 ]; then
  echo "usage: bash auto_bash/ssh.sh \"host1 host2 ...\" CURRICULUM DATASET OUTPUT [arguments of train.py]" >&2
  exit 2
fi
read -r -a HOSTS <<<"$1"
CURRICULUM="$2" DATASET="$(realpath -ms "$3")" OUTPUT="$(realpath -ms "$4")"
shift 4
CHECKOUT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
[ ! -f "$CURRICULUM" ] || CURRICULUM="$(realpath "$CURRICULUM")"
HOLD="$(mktemp -d)"
trap 'rm -rf "$HOLD"' EXIT
mkfifo "$HOLD/fifo"
exec 4<>"$HOLD/fifo" # keeps standard input open on every machine; when this script ends, it closes
PARTS=()
for i in "${!HOSTS[@]}"; do
  COMMAND=(env STOP_WITH_STDIN=1 NODES="${#HOSTS[@]}" NODE_RANK="$i" MASTER_ADDR="${HOSTS[0]#*@}" MASTER_PORT="${MASTER_PORT:-29400}")
  for NAME in PROCESSES MAX_RESTARTS GOF_PEER_TIMEOUT GOF_CACHE OMP_NUM_THREADS CUDA_VISIBLE_DEVICES VIRTUAL_ENV CONDA_PREFIX \
    GLOO_SOCKET_IFNAME NCCL_SOCKET_IFNAME NCCL_IB_HCA NCCL_DEBUG; do
    [ -z "${!NAME:-}" ] || COMMAND+=("$NAME=${!NAME}")
  done
  COMMAND+=(bash "$CHECKOUT/auto_bash/_node.sh" --curriculum "$CURRICULUM" --dataset_path "$DATASET" --output_dir "$OUTPUT" "$@")
  (
    exec 4<&-
    ssh -o BatchMode=yes -o ServerAliveInterval=15 -o ServerAliveCountMax=8 "${HOSTS[$i]}" "$(printf '%q ' "${COMMAND[@]}")" \
      <"$HOLD/fifo"
    STATUS=$?
    if [ "$STATUS" != 0 ]; then
      echo "$STATUS ${HOSTS[$i]}" >>"$HOLD/failed"
      kill -USR2 $$
    fi
  ) &
  PARTS+=($!)
done
STOPPED=0
# shellcheck disable=SC2329 # the traps call it
stop() {
  [ "$STOPPED" != 0 ] || STOPPED=$1
  exec 4<&-
}
trap 'stop 1' USR2
trap 'stop 129' HUP
trap 'stop 130' INT
trap 'stop 143' TERM
for PART in "${PARTS[@]}"; do
  while kill -0 "$PART" 2>/dev/null; do # a signal interrupts wait, but not the job
    wait "$PART"
  done
done
if [ "$STOPPED" -le 1 ] && [ -f "$HOLD/failed" ]; then
  read -r STOPPED HOST <"$HOLD/failed"
  echo "ssh.sh: error: $HOST failed first, with status $STOPPED; all machines were stopped" >&2
fi
exit "$STOPPED"
