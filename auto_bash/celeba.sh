#!/usr/bin/env bash
# Train the published CelebA curriculum: bash auto_bash/celeba.sh DATASET_PATH [OUTPUT_DIR] [arguments of train.py]
CURRICULUM=CelebA
source "$(dirname "$0")/_train.sh"
