#!/usr/bin/env bash
# Run the whole pipeline on synthetic heads: data, training, metrics, views, videos, meshes, a photo reconstructed in 3D, and one
# HTML page with the results.
#   bash auto_bash/quickstart.sh [OUTPUT_DIR, default: quickstart]
# Run it again to continue training. Environment: QUICKSTART_MINUTES of training (2.5), QUICKSTART_HEADS (1500).
#
# In OUTPUT_DIR: heads/ (the data), data.png, train/ (checkpoints, samples, log), scores/, imgs/, vids/, shapes/, mesh_images/,
# photo/ and inverted/ (a head that is not in the training set, and its reconstruction), history.jsonl (log of the shipped
# run), steps.tsv (commands run), live.html (the live generator), index.html (the results).
set -euo pipefail
usage="usage: bash auto_bash/quickstart.sh [OUTPUT_DIR]"
if [ $# -gt 1 ] || { [ $# = 1 ] && [ -z "$1" ]; }; then echo "$usage" >&2; exit 2; fi
case "${1:-}" in
  -h | --help) sed -n '2,10s/^# \{0,1\}//p' "$0"; exit 0 ;;
  -*) echo "$usage" >&2; exit 2 ;;
esac
MINUTES="${QUICKSTART_MINUTES:-2.5}"
HEADS="${QUICKSTART_HEADS:-1500}"
if ! [[ "$MINUTES" =~ ^[0-9]+(\.[0-9]+)?$ && "$HEADS" =~ ^[1-9][0-9]*$ ]]; then
  echo "quickstart.sh: error: QUICKSTART_MINUTES=$MINUTES, QUICKSTART_HEADS=$HEADS: set them to a number of minutes and a positive integer" >&2
  exit 2
fi
OUT="$(python3 -c 'import os, sys; print(os.path.realpath(sys.argv[1]))' "${1:-"$(dirname "$0")/../quickstart"}")"
cd "$(dirname "$0")/.."
OUT="${OUT#"$PWD"/}" # a relative path in the printed commands, if it is inside the project
if ! mkdir -p "$OUT/scores" 2>/dev/null; then echo "quickstart.sh: error: cannot write to $OUT; name another folder" >&2; exit 2; fi

NUM_STEPS=10
STEP=0
SECONDS=0
step() { # TITLE
  STEP=$((STEP + 1)) TITLE="$1"
  printf '\n[%d/%d] %s   (%d:%02d)\n' "$STEP" "$NUM_STEPS" "$TITLE" $((SECONDS / 60)) $((SECONDS % 60))
}
attempt() { # COMMAND...: print, run and record it; returns its exit status
  local started=$SECONDS code=0 shown result=ok
  shown="$(printf '%q ' "$@")"
  shown="${shown/"$(printf '%q' "$PYTHON")"/python}"
  echo "  \$ $shown"
  "$@" || code=$?
  [ "$code" = 0 ] || result="failed ($code)"
  printf '%s\t%d\t%s\t%s\n' "$TITLE" $((SECONDS - started)) "$result" "${shown% }" >>"$OUT/steps.tsv"
  echo "  -> $result, $((SECONDS - started)) s"
  return "$code"
}
must() {
  local code=0
  attempt "$@" || code=$?
  [ "$code" = 0 ] && return
  echo "quickstart.sh: stopped in step $STEP of $NUM_STEPS ($TITLE); run the same command again to continue" >&2
  exit "$code"
}
may() { # an optional command; only an interrupt by the user stops the script
  local code=0
  attempt "$@" || code=$?
  if [ "$code" = 130 ] || [ "$code" = 143 ]; then exit "$code"; fi
  [ "$code" = 0 ] || echo "  (optional; continuing)"
}

step "Environment"
source auto_bash/setup.sh
: >"$OUT/steps.tsv"

step "Data: $HEADS procedural heads"
must "$PYTHON" -m tools.synthetic_heads --output_dir "$OUT/heads" --num_images "$HEADS" --image_size 64
may "$PYTHON" dataset.py --check "$OUT/heads/images" --dataset Heads --image_size 64 --output "$OUT/data.png"

step "Start: the generator of heads that the project ships"
CURRICULUM=SYNTH_TRIPLANE # a resumed run keeps its settings
if compgen -G "$OUT/train/checkpoint_*.pt" >/dev/null && [ -f "$OUT/train/run.json" ]; then CURRICULUM="$OUT/train/run.json"; fi
TRAIN=("$PYTHON" train.py --curriculum "$CURRICULUM" --dataset_path "$OUT/heads/images" --output_dir "$OUT/train")
SHIPPED="$(compgen -G 'pretrained/SYNTH_TRIPLANE/checkpoint_*.pt' | sort | tail -n 1 || true)"
if compgen -G "$OUT/train/checkpoint_*.pt" >/dev/null; then
  echo "  $OUT/train already contains a run: it will be resumed"
elif [ -n "$SHIPPED" ]; then
  START="$(basename "$SHIPPED" .pt)" START=$((10#${START#checkpoint_}))
  # --max_steps equal to the initial step: load the weights, render the samples before training, and stop
  must "${TRAIN[@]}" --load_dir pretrained/SYNTH_TRIPLANE --set_step "$START" --max_steps "$START"
  if [ -f pretrained/SYNTH_TRIPLANE/log.jsonl ]; then cp pretrained/SYNTH_TRIPLANE/log.jsonl "$OUT/history.jsonl"; fi
else
  echo "  pretrained/SYNTH_TRIPLANE has no checkpoint: training starts from a ball, and $MINUTES minutes are too short to form heads"
fi

step "Training for $MINUTES minutes"
must "${TRAIN[@]}" --max_minutes "$MINUTES"
GENERATOR="$OUT/train/generator.safetensors"

step "Scores"
may "$PYTHON" eval_metrics.py "$GENERATOR" --dataset_path "$OUT/heads/images" --metrics fd prc swd --num_images 256 \
  --image_size 64 --output_json "$OUT/scores/images.json"
may "$PYTHON" cal_weighted_var.py "$GENERATOR" --seeds_end 8 --image_size 64 --output_json "$OUT/scores/weighted_variance.json"
may "$PYTHON" -m tools.eval_geometry "$GENERATOR" --dataset_path "$OUT/heads" --num_images 64 --num_truth 1000 --predictor_steps 250 \
  --output_json "$OUT/scores/geometry.json"

step "Views"
must "$PYTHON" render_multiview_images.py "$GENERATOR" --seeds_end 4 --image_size 128 --output_dir "$OUT/imgs"

step "Videos"
may "$PYTHON" render_video.py "$GENERATOR" --seeds 0 1 2 --num_frames 24 --image_size 128 --fps 16 --output_dir "$OUT/vids"
may "$PYTHON" render_video_interpolation.py "$GENERATOR" --seeds 0 1 2 3 --num_frames 12 --image_size 128 --fps 16 \
  --output_dir "$OUT/vids"

step "Meshes"
may "$PYTHON" extract_shapes.py "$GENERATOR" --seeds 0 1 2 --voxel_resolution 128 --largest_piece --output_dir "$OUT/shapes"
may "$PYTHON" render_meshimg.py --input_dir "$OUT/shapes" --output_dir "$OUT/mesh_images" --image_size 256

step "A photo in 3D: a head that is not in the training set"
may "$PYTHON" -m tools.synthetic_heads --output_dir "$OUT/photo" --num_images 1 --image_size 64 --seed 12345 --num_workers 1
may "$PYTHON" invert.py "$OUT/photo/images/000000.png" --generator "$GENERATOR" --output_dir "$OUT/inverted"

step "The page"
may "$PYTHON" export_web.py "$GENERATOR" --output "$OUT/live.html"
must "$PYTHON" -m tools.report "$OUT"

printf '\nDone in %d:%02d. Open %s in a browser.\n' $((SECONDS / 60)) $((SECONDS % 60)) "$(realpath "$OUT/index.html")"
if FAILED="$(grep -c $'\tfailed' "$OUT/steps.tsv")"; then echo "$FAILED command(s) failed along the way; the page lists them."; fi
