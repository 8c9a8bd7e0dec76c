"""Reconstruct a photo in 3D: find its latent and camera, and write its shape.

    python invert.py photo.jpg --generator cats --tune
    python invert.py photos/ --generator outputs/run/generator.safetensors --output_dir inverted
    python invert.py cats64.zip --split holdout --num_images 16 --generator cats --output_dir inverted
    python invert.py --evaluate data/heads64_heldout --generator heads --tune

Writes for each photo, where STEM is its file name without the extension:
- ``STEM_latent.safetensors``: the latent, which render scripts accept as --latent.
- ``STEM.png``: photo, reconstruction and five views; their normals; the mesh (docs/photos_in_3d.md explains the rows).
- ``STEM.mp4`` and ``STEM.glb``: a turn of the camera, and a mesh with vertex colors. ``STEM_frames/``: the video's frames.
With several photos, also ``overview.png``, with a part of each sheet.
--tune also fits the generator's weights to the photo while preserving the shape. Ctrl-C writes the best result so far for the
current photo and stops. --evaluate inverts images of known surface and camera and writes the errors to evaluation.json.
"""

from __future__ import annotations

if __name__ == "__main__":
    import common.interrupts  # noqa: F401

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from checkpoints.latents import GeneratorName
from checkpoints.loading import LoadedGenerator
from common.arguments import ArgumentParser, add_device_argument, image_side, positive_int, resolve_device, seed_number
from common.errors import UserError
from common.files import make_output_dir, read_json, write_json
from common.program import run_script
from dataset import spec_over
from inversion.evaluation import evaluate, summarize, summary_table
from inversion.features import open_features
from inversion.outputs import overview_part, write_all
from inversion.reconstruction import Inversion, invert, pose_text
from inversion.search import Scene, SearchSettings, open_scene
from inversion.tuning import TuneSettings, tune_settings_of
from loading.decoding import decode_block
from loading.files import PARTS, Split, find_images, part_of
from metrics.truth import TruthFiles, find_truth
from settings.curriculum import Curriculum
from visualization.generator_scripts import claim_for_generator, load_with_notes
from visualization.images import image_grid, save_image

IMAGE_SIZES = (16, 32, 64, 128, 256, 512)
POOR_PSNR_DB = 18.0  # photos of other objects stay below it


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument("photos", nargs="*", metavar="PHOTO", help="images, folders, globs or zips")
    parser.add_argument(
        "--generator", required=True, metavar="PATH", help="a generator file, or the name of a pretrained generator"
    )
    parser.add_argument("--curriculum", help="name or .json file; required if the generator file contains no settings")
    parser.add_argument("--output_dir", default="inverted", help="output folder; created if missing")
    parser.add_argument("--dataset", help="crop of the photos: a preset of dataset.py (default: that of the generator)")
    parser.add_argument(
        "--image_size", type=int, choices=IMAGE_SIZES, default=64, help="side in pixels at which the photo is matched"
    )
    parser.add_argument("--num_steps", type=positive_int, default=SearchSettings.num_steps, help="steps of the search")
    parser.add_argument("--tune", action="store_true", help="also fit the generator's weights to the photo, preserving the shape")
    parser.add_argument("--tune_steps", type=positive_int, help="steps of the tuning (default: 100; tri-planes: 300)")
    parser.add_argument("--view_size", type=image_side, default=128, help="side in pixels of the views in sheet and video")
    parser.add_argument("--evaluate", metavar="DIR", help="a folder of tools/synthetic_heads.py, instead of photos")
    parser.add_argument("--split", choices=PARTS, default="all", help="part of each source's photos to use")
    parser.add_argument("--num_holdout", type=positive_int, help="number of held-out photos (default: the curriculum's)")
    parser.add_argument("--num_images", type=positive_int, help="maximum number of photos of each source (default: all)")
    parser.add_argument("--seed", type=seed_number, default=0, help="seed of the initial latents and the tuning's random points")
    add_device_argument(parser)
    args = parser.parse_args(argv)
    if bool(args.photos) == bool(args.evaluate):
        parser.error("specify either photos or --evaluate DIR")
    if args.tune_steps and not args.tune:
        parser.error("--tune_steps needs --tune")
    for_photos = ("dataset", "num_holdout", "split", "view_size")
    unused = [f"--{name}" for name in for_photos if args.evaluate and getattr(args, name) != parser.get_default(name)]
    if unused:
        parser.error(f"{' and '.join(unused)} cannot be combined with --evaluate")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(argv)
    device = resolve_device(args.device)
    loaded = load_with_notes(args.generator, args.curriculum, device)
    features, what = open_features(args.generator, loaded, device)
    print(f"comparing images by an image pyramid and {what}")
    search = SearchSettings(num_steps=args.num_steps, image_size=args.image_size)
    tune = tune_settings_of(loaded.curriculum.model, args.tune_steps) if args.tune else None
    name = GeneratorName.of(loaded.generator, args.generator)
    if args.evaluate:
        protocol = {"generator": name.name, "generator_sha256": name.digest, "features": what}
        protocol |= {"image_size": args.image_size, "seed": args.seed, "num_steps": args.num_steps}
        protocol |= {"tune_steps": tune.num_steps if tune else 0, "device": str(device), "threads": torch.get_num_threads()}
        files = find_truth(args.evaluate, args.num_images or sys.maxsize)
        evaluate_folder(args, files, open_scene(loaded, search, args.seed, features), search, tune, protocol)
        return
    photos = read_photos(args, loaded)
    output_dir = make_output_dir(args.output_dir)
    claim_for_generator(output_dir, loaded, args.generator)
    scene = open_scene(loaded, search, args.seed, features)
    parts = []
    for stem, photo in photos.items():
        inversion = invert(scene, photo, search, tune, args.seed, stem)
        paths, rows = write_all(inversion, scene, photo, name, output_dir / stem, args.view_size)
        report(stem, inversion, paths, loaded.curriculum)
        parts.append(overview_part(rows))
        if len(photos) > 1:
            save_image(output_dir / "overview.png", image_grid(parts))
        if inversion.was_interrupted:
            raise KeyboardInterrupt


def evaluate_folder(
    args: argparse.Namespace,
    files: TruthFiles,
    scene: Scene,
    search: SearchSettings,
    tune: TuneSettings | None,
    protocol: dict[str, Any],
) -> None:
    """Score the photos of --evaluate. Writes evaluation.json after each photo, so an interrupt loses only the current one."""
    folder = Path(args.evaluate)
    record = read_json(folder / "meta.json")  # of tools/synthetic_heads.py
    data = {"folder": folder.name, **{key: record.get(key) for key in ("seed", "curriculum", "num_images", "image_size")}}
    path = make_output_dir(args.output_dir) / "evaluation.json"
    photos: list[dict[str, Any]] = []
    for scores in evaluate(scene, files, search, tune, args.seed):
        photos.append(scores)
        results = {
            "summary": summarize(photos),
            "photos": photos,
            "protocol": {**protocol, "data": data, "num_requested": len(files.images)},
        }
        write_json(path, results)
    print(f"{summary_table(summarize(photos))}\nwrote {path}")


def read_photos(args: argparse.Namespace, loaded: LoadedGenerator) -> dict[str, Tensor]:
    """Read the photos, cropped as in training: (3, S, S) in [0, 1], by the stem of their output files.

    Photos that cannot be read are reported on stderr and skipped. Raises UserError if none can be read, or if one lies in the
    output folder, where its sheet would replace it.
    """
    spec = spec_over(args.dataset or loaded.curriculum.dataset, loaded.curriculum)
    num_holdout = args.num_holdout or loaded.curriculum.num_holdout
    photos: dict[str, Tensor] = {}
    for text in args.photos:
        source = part_of(find_images(text), Split(args.split, num_holdout))
        source = replace(source, names=source.names[: args.num_images], stamps=source.stamps[: args.num_images])
        folders = set() if source.zip_path else {Path(name).resolve().parent for name in source.names}
        if Path(args.output_dir).resolve() in folders:
            raise UserError(f"{args.output_dir} holds the photos themselves; choose another --output_dir")
        decoded = decode_block(range(len(source.names)), source, spec, args.image_size)
        for name, (pixels, remark) in zip(source.names, decoded, strict=True):
            if pixels is None:
                print(f"note: {name} is skipped: it is {remark}", file=sys.stderr)
                continue
            stem = _free_name(Path(name).stem, photos)
            photos[stem] = torch.tensor(pixels).permute(2, 0, 1).float() / 255
    if not photos:
        raise UserError("none of the photos can be read; choose other files")
    return photos


def _free_name(stem: str, taken: dict[str, Tensor]) -> str:
    """Return ``stem``, with the lowest free number appended if it is taken by another photo or by overview.png."""
    name, number = stem, 2
    while name in taken or name == "overview":
        name, number = f"{stem}_{number}", number + 1
    return name


def report(stem: str, inversion: Inversion, paths: Sequence[Path], curriculum: Curriculum) -> None:
    """Print the result for a photo, and notes on its quality to stderr."""
    pitch, yaw = inversion.found.angles[0].tolist()
    quality = f"{inversion.before.psnr_db:.1f} dB"
    if inversion.after is not None:
        quality += f", after tuning {inversion.after.psnr_db:.1f} dB"
    print(f"{stem}: {quality}; {pose_text(yaw, pitch, curriculum)}; wrote {', '.join(map(str, paths))}")
    if inversion.before.psnr_db < POOR_PSNR_DB:
        print(
            f"note: {stem}: the generator reaches only {inversion.before.psnr_db:.1f} dB; the photo shows something that it was "
            "not trained on, or is cropped differently, so the shape is unreliable",
            file=sys.stderr,
        )
    if not any(path.suffix == ".glb" for path in paths):
        print(f"note: {stem}: the reconstruction has no surface, so no mesh was written", file=sys.stderr)


if __name__ == "__main__":
    run_script(main)
