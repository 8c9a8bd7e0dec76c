#!/usr/bin/env bash
# Train on your own photos, with tri-planes: bash auto_bash/photos.sh DATASET_PATH [OUTPUT_DIR] [arguments of train.py]
# Trains on all photos (CATS_TRIPLANE alone holds out 800). Further --set settings are added to these.
CURRICULUM=CATS_TRIPLANE
TRAIN_OPTIONS="--dataset Images --eval_freq 1000 --set num_holdout=0"
source "$(dirname "$0")/_train.sh"
