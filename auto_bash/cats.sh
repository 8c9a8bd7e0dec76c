#!/usr/bin/env bash
# Train the published CATS curriculum: bash auto_bash/cats.sh DATASET_PATH [OUTPUT_DIR] [arguments of train.py]
CURRICULUM=CATS
source "$(dirname "$0")/_train.sh"
