#!/usr/bin/env bash
# Train the published BFM curriculum: bash auto_bash/bfm.sh DATASET_PATH [OUTPUT_DIR] [arguments of train.py]
CURRICULUM=BFM
source "$(dirname "$0")/_train.sh"
