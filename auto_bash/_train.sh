# Sourced by photos.sh, bfm.sh, celeba.sh and cats.sh: train CURRICULUM on all GPUs in CUDA_VISIBLE_DEVICES, or on the CPU.
#   bash auto_bash/cats.sh DATASET_PATH [OUTPUT_DIR] [further arguments of train.py]
# TRAIN_OPTIONS: arguments of train.py that the caller may override.
set -euo pipefail
USAGE="usage: bash auto_bash/$(basename "$0") DATASET_PATH [OUTPUT_DIR] [arguments of train.py]"
case "${1:-}" in
  -h | --help) echo "$USAGE"; exit 0 ;;
  "" | -*) echo "$USAGE" >&2; exit 2 ;;
esac
DATASET_PATH="$1"; shift
[ "${DATASET_PATH#/}" != "$DATASET_PATH" ] || DATASET_PATH="$PWD/$DATASET_PATH" # globs are relative to the caller's directory too
OUTPUT_DIR="$(dirname "${BASH_SOURCE[0]}")/../outputs/$CURRICULUM"
if [ $# -gt 0 ] && [ "${1#--}" = "$1" ]; then OUTPUT_DIR="$1"; shift; fi
OUTPUT_DIR="$(python3 -c 'import os, sys; print(os.path.realpath(sys.argv[1]))' "$OUTPUT_DIR")"
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source auto_bash/setup.sh
NUM_GPUS="$("$PYTHON" -c 'import torch; print(torch.cuda.device_count())')"
# shellcheck disable=SC2086 # TRAIN_OPTIONS is a list of words
ARGUMENTS=(train.py --curriculum "$CURRICULUM" --dataset_path "$DATASET_PATH" --output_dir "$OUTPUT_DIR" ${TRAIN_OPTIONS:-} "$@")
if [ "$NUM_GPUS" -gt 1 ]; then
  exec "$PYTHON" -m torch.distributed.run --standalone --nproc_per_node="$NUM_GPUS" "${ARGUMENTS[@]}"
fi
exec "$PYTHON" "${ARGUMENTS[@]}"
