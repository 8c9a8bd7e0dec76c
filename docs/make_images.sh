#!/usr/bin/env bash
# Make the README's images from a generator: docs/NAME.png (views, normals, meshes), docs/NAME.webp (rotation) and
# docs/NAME_between.webp (interpolation).
#   bash docs/make_images.sh GENERATOR [NAME, default: heads] [SEEDS, default: "0 1 2 3"]
set -euo pipefail
if [ $# -lt 1 ] || [ $# -gt 3 ] || [ ! -f "$1" ]; then
  echo "usage: bash docs/make_images.sh GENERATOR [NAME] [SEEDS]" >&2
  exit 2
fi
GENERATOR="$(realpath "$1")"
NAME="${2:-heads}"
read -r -a SEEDS <<<"${3:-0 1 2 3}"
cd "$(dirname "$0")/.."
PYTHON=python3
[ -x .venv/bin/python ] && PYTHON=.venv/bin/python
[ -n "${VIRTUAL_ENV:-}" ] && PYTHON="$VIRTUAL_ENV/bin/python"
WORK="$(mktemp -d)"
trap 'rm -rf "$WORK"' EXIT

for seed in "${SEEDS[@]}"; do
  "$PYTHON" render_multiview_images.py "$GENERATOR" --seeds_start "$seed" --seeds_end $((seed + 1)) --image_size 160 \
    --output_dir "$WORK/imgs"
done
"$PYTHON" render_video.py "$GENERATOR" --seeds "${SEEDS[@]}" --image_size 160 --quantities image normals --output_dir "$WORK/vids"
"$PYTHON" render_video_interpolation.py "$GENERATOR" --seeds "${SEEDS[@]}" --trajectory ellipse --num_frames 16 --image_size 160 \
  --quantities image normals --output_dir "$WORK/vids"
"$PYTHON" extract_shapes.py "$GENERATOR" --seeds "${SEEDS[@]}" --voxel_resolution 160 --largest_piece --output_dir "$WORK/shapes"
"$PYTHON" render_meshimg.py --input_dir "$WORK/shapes" --output_dir "$WORK/meshes" --image_size 160
PYTHONPATH=. "$PYTHON" tools/compose_images.py "$WORK" "docs/$NAME" --seeds "${SEEDS[@]}"
