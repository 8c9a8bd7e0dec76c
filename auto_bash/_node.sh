# One machine's part of a run: torchrun with the arguments of train.py. Started by slurm.sh and ssh.sh on every machine.
#   NODES NODE_RANK MASTER_ADDR MASTER_PORT   which of how many, and where the first one listens
#   PROCESSES (one per GPU, 1 without)  MAX_RESTARTS (3)  STOP_WITH_STDIN (stop when standard input ends)
# Exit status: torchrun's; 138, 143 or 130 after SIGUSR1, SIGTERM or SIGINT, when a checkpoint has been written.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2
source auto_bash/setup.sh
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT="${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-100}" # seconds for the last checkpoint
if [ -z "${PROCESSES:-}" ]; then
  PROCESSES="$("$PYTHON" -c 'import torch; print(max(1, torch.cuda.device_count()))')"
fi
STOPPED=0
exec 3<&0 # bash gives background jobs an empty standard input

# Slurm sends SIGUSR1 to all processes of a job's step: train.py heeds it, torchrun would die of it. It is told by SIGTERM
# instead, once, for a second one would keep it from waiting; it then starts nothing anew.
(
  trap '' USR1
  exec "$PYTHON" -m torch.distributed.run --nnodes="$NODES" --node_rank="${NODE_RANK:-${SLURM_NODEID:-0}}" \
    --nproc_per_node="$PROCESSES" --master_addr="$MASTER_ADDR" --master_port="$MASTER_PORT" \
    --max_restarts="${MAX_RESTARTS:-3}" train.py "$@" </dev/null 3<&-
) &
TORCHRUN=$!
# shellcheck disable=SC2329 # the traps call it
stop() {
  if [ "$STOPPED" = 0 ]; then
    STOPPED=$1
    kill -TERM "$TORCHRUN" 2>/dev/null
  fi
}
trap 'stop 138' USR1
trap 'stop 143' TERM
trap 'stop 130' INT
WATCHER=
if [ -n "${STOP_WITH_STDIN:-}" ]; then
  {
    trap - USR1 TERM INT
    while read -r -u 3; do :; done
    kill -TERM $$
  } &
  WATCHER=$!
fi
while true; do # a signal ends a wait, not torchrun
  wait "$TORCHRUN"
  STATUS=$?
  kill -0 "$TORCHRUN" 2>/dev/null || break
done
[ -z "$WATCHER" ] || kill "$WATCHER" 2>/dev/null
[ "$STOPPED" = 0 ] || exit "$STOPPED"
exit "$STATUS"
