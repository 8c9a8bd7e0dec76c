"""Images with ground truth in the layout of tools/synthetic_heads.py: images/NAME.png and ground_truth/NAME.npz.

Each .npz holds ``depth`` (H, W), distance along the unit ray; ``normals`` (3, H, W), unit, world axes; ``mask`` (H, W),
True on the object; ``yaw`` and ``pitch``, radians. An optional meta.json holds the camera's fov (``camera.fov``, degrees).
"""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from checkpoints.safe_pickle import printable
from common.errors import UserError
from common.files import read_json, require_file
from generators.cameras import CameraPoses
from loading.files import FORMATS, to_rgb
from metrics.shapes import Geometry, normals_to_camera

NPY_HEADER_BYTES = 4096


class TruthFiles(NamedTuple):
    """Paths of the pairs of image and ground truth, sorted by name, and a digest of the set."""

    images: list[Path]
    truths: list[Path]
    fingerprint: str


class TruthSet(NamedTuple):
    """``images`` (N, 3, H, W) uint8 over black, their ``geometry`` with normals in camera axes, and their ``poses`` (N,)."""

    images: Tensor
    geometry: Geometry
    poses: CameraPoses


def find_truth(folder: str | Path, limit: int) -> TruthFiles:
    """Find the first ``limit`` pairs of ``folder``. Raises UserError if there are none."""
    folder = Path(folder)
    images = {path.stem: path for path in sorted((folder / "images").glob("*.png")) if path.is_file()}
    truths = {path.stem: path for path in sorted((folder / "ground_truth").glob("*.npz")) if path.is_file()}
    names = [name for name in images if name in truths][:limit]
    if not names:
        raise UserError(
            f"{folder} holds no images with ground truth (images/NAME.png beside ground_truth/NAME.npz); "
            "create some with: python -m tools.synthetic_heads --output_dir DIR"
        )
    digest = hashlib.sha256()
    for name in names:  # sizes stand in for content, since reading all files would take a minute
        digest.update(f"{name} {images[name].stat().st_size} {truths[name].stat().st_size}\n".encode())
    return TruthFiles([images[name] for name in names], [truths[name] for name in names], digest.hexdigest())


def read_truth(files: TruthFiles) -> TruthSet:
    """Read all pairs of ``files``. Raises UserError with the file's name if one is damaged or differs in size."""
    images, depths, normals, masks, pitches, yaws = [], [], [], [], [], []
    for image_path, truth_path in zip(files.images, files.truths, strict=True):
        try:
            with Image.open(require_file(image_path), formats=FORMATS) as image:
                pixels = torch.from_numpy(np.array(to_rgb(image))).permute(2, 0, 1)
            _check_sizes(require_file(truth_path), pixels.shape[1] * pixels.shape[2])
            with np.load(truth_path, allow_pickle=False) as truth:
                depth, mask = torch.from_numpy(truth["depth"]).float(), torch.from_numpy(truth["mask"]).bool()
                normal, pitch, yaw = torch.from_numpy(truth["normals"]).float(), float(truth["pitch"]), float(truth["yaw"])
        except Exception as error:  # damaged images and archives fail in many ways
            raise UserError(f"cannot read {truth_path} or its image ({type(error).__name__}: {printable(error)})") from None
        shape = images[0].shape if images else pixels.shape
        if shape[1] != shape[2] or not (pixels.shape == normal.shape == shape and depth.shape == mask.shape == shape[1:]):
            raise UserError(f"{truth_path}: images and ground truth must be square and have the same size throughout the set")
        for column, value in zip((images, depths, normals, masks), (pixels, depth, normal, mask), strict=True):
            column.append(value)
        pitches.append(pitch)
        yaws.append(yaw)
    poses = CameraPoses(torch.tensor(pitches), torch.tensor(yaws))
    geometry = Geometry(torch.stack(depths), normals_to_camera(torch.stack(normals), poses), torch.stack(masks))
    return TruthSet(torch.stack(images), geometry, poses)


def _check_sizes(path: Path, num_pixels: int) -> None:
    """Raise ValueError if an .npz holds, or may decompress to, more data than the geometry of ``num_pixels`` needs."""
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ValueError("it uses a compression that numpy does not write")
            if member.file_size > NPY_HEADER_BYTES + 3 * 8 * num_pixels:
                raise ValueError(f"{printable(member.filename)} is larger than its image")


def camera_fov(folder: str | Path) -> float | None:
    """Return the set's field of view in degrees, or None if it is not recorded."""
    try:
        return float(read_json(Path(folder) / "meta.json")["camera"]["fov"])
    except (UserError, ValueError, KeyError, TypeError, OverflowError):
        return None
