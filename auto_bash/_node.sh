# Run torchrun on one machine, with the arguments of train.py. slurm.sh and ssh.sh start this script on every machine.
#   NODES NODE_RANK MASTER_ADDR MASTER_PORT   number of machines, rank of this one, address and port of the first one
#   PROCESSES (default: one per GPU, or 1)  MAX_RESTARTS (default: 3)  STOP_WITH_STDIN (stop when standard input closes)
# Exit status: torchrun's; 138, 143 or 130 after SIGUSR1, SIGTERM or SIGINT, once a checkpoint is written.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2
source auto_bash/setup.sh
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT="${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-100}" # seconds to write the last checkpoint
if [ -z "${PROCESSES:-}" ]; then
  PROCESSES="$("$PYTHON" -c 'import torch; print(max(1, torch.cuda.device_count()))')"
fi
STOPPED=0
exec 3<&0 # bash gives background jobs an empty standard input

# Slurm sends SIGUSR1 to all processes of a job step. train.py handles it, but it would kill torchrun. So torchrun ignores it
# and gets one SIGTERM instead, after which it restarts nothing. A second SIGTERM would stop torchrun from waiting for it.
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
while true; do # a signal interrupts wait, but not torchrun
  wait "$TORCHRUN"
  STATUS=$?
  kill -0 "$TORCHRUN" 2>/dev/null || break
done
[ -z "$WATCHER" ] || kill "$WATCHER" 2>/dev/null
[ "$STOPPED" = 0 ] || exit "$STOPPED"
exit "$STATUS"
