"""Measure the accuracy of tools/pose_spread.py on built-in heads of known camera prior: the table in docs/own_photos.md.

Run as ``python benchmarks/pose_spread.py``.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common.arguments import ArgumentParser
from common.files import default_cache_dir
from common.program import run_script
from generators.cameras import CameraPoses, sample_camera_poses
from heads.parameters import sample_heads
from heads.render import render_heads
from metrics.pose_readout import INPUT_SIZE, PosedHeads, ReadoutSettings, get_pose_readout, vary
from metrics.pose_statistics import fit_prior
from tools.pose_spread import read_with_heads, spreads_of

PRIORS = (("gaussian", 0.2, 0.1), ("gaussian", 0.3, 0.155), ("uniform", 0.5, 0.4), ("uniform", 0.7, 0.25))
NUM_HEADS = 300
FIRST_SEED = 101  # of heads and poses for the first prior, increased by 1 for each further prior


def posed_heads(prior: tuple[str, float, float], seed: int) -> PosedHeads:
    """Render NUM_HEADS heads that are not in the training set of the network, from poses of the prior."""
    means = {"h_mean": math.pi / 2, "v_mean": math.pi / 2}
    names = dict(zip(("sample_dist", "h_stddev", "v_stddev"), prior, strict=True))
    poses = sample_camera_poses(NUM_HEADS, **means, **names, generator=torch.Generator().manual_seed(seed))
    images, masks = [], []
    for start in range(0, NUM_HEADS, 50):
        some = CameraPoses(poses.pitch[start : start + 50], poses.yaw[start : start + 50])
        rendered = render_heads(sample_heads(range(start, start + 50), seed), some, INPUT_SIZE)
        images.append(((rendered.images + 1) * 127.5).round().to(torch.uint8))
        masks.append(rendered.mask)
    return PosedHeads(torch.cat(images), torch.cat(masks), torch.stack([poses.yaw, poses.pitch], dim=1) - math.pi / 2)


def main() -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--readout_cache", help="folder of trained networks (default: the cache of decoded images)")
    args = parser.parse_args()
    settings = ReadoutSettings()
    cache_dir = Path(args.readout_cache) if args.readout_cache else default_cache_dir()
    readout, path = get_pose_readout(settings, cache_dir, torch.device("cpu"))
    print(f"{NUM_HEADS} heads of {INPUT_SIZE} px for each prior, seeds from {FIRST_SEED}; {path.name}")
    for number, prior in enumerate(PRIORS):  # "varied": random backgrounds, colors, sizes and positions
        heads = posed_heads(prior, FIRST_SEED + number)
        kinds = {"on black": (heads.images.float() / 127.5 - 1, heads.poses)}
        kinds["varied"] = vary(heads, torch.Generator().manual_seed(number))
        for kind, (images, truth) in kinds.items():
            yaw, pitch = spreads_of(read_with_heads(images, readout, path.name, settings))
            fitted = fit_prior(yaw, pitch)
            truths, found = (", ".join(f"{v:.3f}" for v in pair) for pair in (truth.std(0), (yaw.stddev or 0, pitch.stddev or 0)))
            name = f"{prior[0]} {prior[1]:g}, {prior[2]:g}"
            settings_found = " ".join(fitted.settings()) if fitted else "rejected"
            print(f"{name:<22} {kind:<9} true deviations {truths}  estimated {found}  {settings_found}")


if __name__ == "__main__":
    run_script(main)
