"""Create the built-in data set: images of procedural heads with exact geometry.

    python -m tools.synthetic_heads --output_dir data/heads64 --num_images 4000

writes

    DIR/meta.json                  seed, curriculum, count, size, camera
    DIR/images/000000.png          the image, with a transparent background
    DIR/ground_truth/000000.npz    depth (H, W) float32: t along the unit ray, 0 where it hits nothing
                                   normals (3, H, W) float32: unit, outward, world axes, 0 where the ray hits nothing
                                   mask (H, W) bool: True where the ray through the pixel's center hits the head
                                   yaw, pitch: radians

Head i depends only on (seed, i, cameras of the curriculum, size). A smaller set is therefore a prefix of a larger one: an
interrupted run resumes where it stopped, and a larger --num_images extends a set. From Python: ``sample_heads`` ->
``render_heads``, and ``head_sdf`` for the exact shape.
"""

from __future__ import annotations

if __name__ == "__main__":
    import common.interrupts  # noqa: F401

import multiprocessing
import os
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from common.arguments import ArgumentParser
from common.errors import UserError
from common.files import make_output_dir, npz_bytes, read_json, write_atomically, write_json
from common.program import run_script
from common.workers import follow_parent, interrupts_ignored
from generators.cameras import CameraPoses
from generators.pose_prior import sample_prior_poses
from heads.parameters import HeadParameters, head_generator, sample_heads
from heads.render import HeadImages, render_heads
from heads.sdf import head_sdf
from settings.curriculum import Curriculum
from settings.registry import get_curriculum
from visualization.images import png_bytes

__all__ = ["HeadImages", "HeadParameters", "generate", "head_poses", "head_sdf", "render_heads", "sample_heads"]

BLOCK = 32  # heads rendered together
_CAMERA_FIELDS = ("fov", "h_mean", "v_mean", "h_stddev", "v_stddev", "sample_dist")
MAX_IMAGES, MAX_SIZE = 10_000_000, 8192
_VERSION = 2  # increase it when the same seed gives different images


def head_poses(indices: Iterable[int], seed: int, curriculum: Curriculum) -> CameraPoses:
    """Return the camera poses of heads ``indices`` of the set ``seed``: pitch and yaw (B,), radians."""
    poses = [sample_prior_poses(1, curriculum, head_generator(seed ^ 0x5EED, index)) for index in indices]
    return CameraPoses(torch.cat([p.pitch for p in poses]), torch.cat([p.yaw for p in poses]))


def _image_path(output_dir: Path, index: int) -> Path:
    return output_dir / "images" / f"{index:06d}.png"


def _truth_path(output_dir: Path, index: int) -> Path:
    return output_dir / "ground_truth" / f"{index:06d}.npz"


def _write(output_dir: Path, index: int, heads: HeadImages, row: int, poses: CameraPoses) -> None:
    """Write a head's two files, each atomically."""
    alpha = heads.alpha[row]
    colors = (heads.images[row] + 1) / 2 / alpha.clamp(min=0.25)  # alpha is 0 or at least a quarter: four rays per pixel
    pixels = (torch.cat([colors, alpha.unsqueeze(0)]) * 255).round().clamp(0, 255).byte().permute(1, 2, 0).numpy()
    truth = {
        "depth": heads.depth[row].numpy(),
        "normals": heads.normals[row].numpy(),
        "mask": heads.mask[row].numpy(),
        "yaw": np.float32(poses.yaw[row]),
        "pitch": np.float32(poses.pitch[row]),
    }
    write_atomically(_image_path(output_dir, index), png_bytes(pixels), sync=False)
    write_atomically(_truth_path(output_dir, index), npz_bytes(truth), sync=False)


def _make_block(indices: list[int], output_dir: Path, image_size: int, seed: int, curriculum: Curriculum) -> int:
    """Render and write the heads ``indices``; return their number."""
    poses = head_poses(indices, seed, curriculum)
    heads = render_heads(sample_heads(indices, seed), poses, image_size, curriculum.fov)
    for row, index in enumerate(indices):
        _write(output_dir, index, heads, row, poses)
    return len(indices)


def _start_worker() -> None:
    follow_parent()
    torch.set_num_threads(1)


def _meta(num_images: int, image_size: int, seed: int, curriculum: Curriculum) -> dict[str, Any]:
    camera = {name: getattr(curriculum, name) for name in _CAMERA_FIELDS}
    head = {"kind": "procedural heads", "version": _VERSION, "seed": seed, "curriculum": curriculum.name}
    return {**head, "num_images": num_images, "image_size": image_size, "camera": camera}


def _open_set(output_dir: Path, meta: dict[str, Any]) -> None:
    """Write ``meta`` to ``output_dir``. Raises UserError if it holds anything but this set or a prefix of it."""
    meta_path = output_dir / "meta.json"
    if meta_path.exists():
        try:
            found = read_json(meta_path)
            same = {**found, "num_images": None} == {**meta, "num_images": None}
            count = int(found["num_images"])
        except (UserError, ValueError, TypeError, KeyError):
            raise UserError(f"cannot read {meta_path}; choose another folder with --output_dir") from None
        if not same or count > meta["num_images"]:
            differs = [key for key in meta if found.get(key) != meta[key]]
            raise UserError(
                f"{output_dir} already holds another set of heads (different {', '.join(differs)}); choose another folder"
            )
    elif any(path.name not in ("images", "ground_truth") or any(path.iterdir()) for path in output_dir.iterdir()):
        raise UserError(f"{output_dir} is not empty and is not a set of heads; choose another folder with --output_dir")
    write_json(meta_path, meta)


def generate(
    output_dir: str | Path,
    num_images: int = 1000,
    image_size: int = 64,
    seed: int = 0,
    curriculum: Curriculum | None = None,
    num_workers: int | None = None,
) -> int:
    """Create or complete the set in ``output_dir``; return the number of heads rendered, 0 if the set was complete.

    ``num_workers``: processes (None: one per core; 1: only this process). Raises UserError if the folder holds something
    else or cannot be written.
    """
    if not 1 <= num_images <= MAX_IMAGES or not 2 <= image_size <= MAX_SIZE:
        ranges = f"--num_images from 1 to {MAX_IMAGES} and --image_size from 2 to {MAX_SIZE}"
        raise UserError(f"cannot create {num_images} images of {image_size} px; use {ranges}")
    if not -(2**63) <= seed < 2**63:
        raise UserError(f"--seed {seed} is not a signed 64-bit number; use a smaller one")
    curriculum = curriculum or get_curriculum("SYNTH")
    output_dir = make_output_dir(output_dir)
    _open_set(output_dir, _meta(num_images, image_size, seed, curriculum))
    for name in ("images", "ground_truth"):
        make_output_dir(output_dir / name)
    missing = [i for i in range(num_images) if not (_image_path(output_dir, i).exists() and _truth_path(output_dir, i).exists())]
    # larger images in smaller blocks, so that memory stays constant
    block = max(1, min(BLOCK, BLOCK * 64**2 // image_size**2))
    blocks = [missing[i : i + block] for i in range(0, len(missing), block)]
    work = partial(_make_block, output_dir=output_dir, image_size=image_size, seed=seed, curriculum=curriculum)
    num_workers = min(num_workers or os.cpu_count() or 1, max(len(blocks), 1))
    with tqdm(total=num_images, initial=num_images - len(missing), unit="head", disable=not missing) as progress:
        if num_workers == 1:
            for indices in blocks:
                progress.update(work(indices))
        else:
            # spawned, not forked: torch's threads do not survive a fork
            with interrupts_ignored():
                pool = multiprocessing.get_context("spawn").Pool(num_workers, initializer=_start_worker)
            with pool:
                for count in pool.imap_unordered(work, blocks):
                    progress.update(count)
    return len(missing)


def main(argv: Sequence[str] | None = None) -> None:
    parser = ArgumentParser("Create the built-in data set: procedural heads with exact depth, normals, mask and pose.")
    parser.add_argument("--output_dir", required=True, help="folder of the set; an incomplete set is resumed")
    parser.add_argument("--num_images", type=int, default=1000)
    parser.add_argument("--image_size", type=int, default=64, help="pixels")
    parser.add_argument("--seed", type=int, default=0, help="seed of the heads")
    parser.add_argument("--curriculum", default="SYNTH", help="curriculum whose cameras are used (default: %(default)s)")
    parser.add_argument("--num_workers", type=int, default=None, help="processes (default: one per core)")
    args = parser.parse_args(argv)
    if args.num_workers is not None and args.num_workers < 1:
        raise UserError(f"--num_workers must be at least 1, not {args.num_workers}")
    curriculum = get_curriculum(args.curriculum)
    made = generate(args.output_dir, args.num_images, args.image_size, args.seed, curriculum, args.num_workers)
    if made:
        print(f"{args.num_images} heads in {args.output_dir} ({made} new)")
    else:
        print(f"{args.output_dir} already holds these {args.num_images} heads; nothing to do")


if __name__ == "__main__":
    run_script(main)
