"""Evaluation of inversion on photos with ground-truth surface and camera (from tools/synthetic_heads.py)."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from common.errors import UserError
from generators.cameras import CameraPoses, camera_positions
from inversion.reconstruction import Inversion, PhotoView, invert
from inversion.search import Scene, SearchSettings
from inversion.tuning import TuneSettings
from metrics.shapes import Geometry, compare
from metrics.truth import TruthFiles, read_truth


class Scores(NamedTuple):
    """Scores of one view of one photo; see :func:`metrics.shapes.compare`."""

    psnr_db: float
    depth_correlation: float
    normal_mean_degrees: float
    normal_median_degrees: float
    mask_iou: float


def view_scores(view: PhotoView, truth: Geometry) -> Scores:
    """Compare one view with the ground truth of its photo, (1, ...)."""
    found = Geometry(view.depth.unsqueeze(0), view.normals.unsqueeze(0), view.mask.unsqueeze(0))
    results = compare(truth, found)
    return Scores(view.psnr_db, *(results[name] for name in Scores._fields[1:]))


def pose_error_degrees(found: Tensor, true: CameraPoses) -> dict[str, float]:
    """Return signed pose errors and the angle between the cameras. ``found``: (1, 2) as (pitch, yaw); ``true``: (1,) each."""
    found_poses = CameraPoses(*(angle.cpu() for angle in found.unbind(dim=1)))
    cosine = (camera_positions(found_poses).double() * camera_positions(true).double()).sum()
    return {
        "yaw_error_degrees": math.degrees(float(found_poses.yaw - true.yaw)),
        "pitch_error_degrees": math.degrees(float(found_poses.pitch - true.pitch)),
        "pose_error_degrees": math.degrees(math.acos(min(1.0, float(cosine)))),
    }


def evaluate(
    scene: Scene, files: TruthFiles, search: SearchSettings, tune: TuneSettings | None, seed: int
) -> Iterator[dict[str, Any]]:
    """Invert every photo and yield its scores. Raises KeyboardInterrupt, without the current photo, if it is interrupted."""
    data = read_truth(files)
    if data.images.shape[-1] != search.image_size:
        raise UserError(f"the photos have {data.images.shape[-1]} px; pass --image_size {data.images.shape[-1]}")
    for i, path in enumerate(files.images):
        started = time.monotonic()
        inversion = invert(scene, data.images[i].float() / 255, search, tune, seed, f"{path.stem} ({i + 1}/{len(files.images)})")
        if inversion.was_interrupted:
            raise KeyboardInterrupt
        truth = Geometry(*(part[i : i + 1] for part in data.geometry))
        true_pose = data.poses.part(slice(i, i + 1))
        yield _photo_report(path.stem, inversion, truth, true_pose, time.monotonic() - started)


def _photo_report(stem: str, inversion: Inversion, truth: Geometry, pose: CameraPoses, seconds: float) -> dict[str, Any]:
    report: dict[str, Any] = {"photo": stem, "seconds": seconds, **pose_error_degrees(inversion.found.angles, pose)}
    report["before"] = view_scores(inversion.before, truth)._asdict()
    if inversion.after is not None:
        report["after"] = view_scores(inversion.after, truth)._asdict()
    return report


def summarize(photos: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Medians over photos, and the number of hollow ones: depth correlates negatively with the truth, or has no overlap."""
    summary: dict[str, Any] = {"num_photos": len(photos), "median_seconds": float(np.median([p["seconds"] for p in photos]))}
    for name in ("yaw_error_degrees", "pitch_error_degrees", "pose_error_degrees"):
        values = np.array([photo[name] for photo in photos])
        summary[f"median_{name}"] = float(np.median(np.abs(values)))
        summary[f"mean_signed_{name}"] = float(values.mean())
    for stage in ("before", "after"):
        scores = [photo[stage] for photo in photos if stage in photo]
        if not scores:
            continue
        medians = {f"median_{name}": float(np.nanmedian([s[name] for s in scores])) for name in Scores._fields}
        hollow = sum(not s["depth_correlation"] > 0 for s in scores)
        summary[stage] = {**medians, "num_hollow": hollow}
    return summary


def summary_table(summary: dict[str, Any]) -> str:
    """Format the summary as a Markdown table."""
    stages = [stage for stage in ("before", "after") if stage in summary]
    rows = [
        ("PSNR, dB", "median_psnr_db", ".1f"),
        ("depth correlation", "median_depth_correlation", ".3f"),
        ("normal error, mean over a photo", "median_normal_mean_degrees", ".1f"),
        ("normal error, median over a photo", "median_normal_median_degrees", ".1f"),
        ("silhouette IoU", "median_mask_iou", ".3f"),
        ("hollow", "num_hollow", "d"),
    ]
    lines = [f"| median of {summary['num_photos']} photos | " + " | ".join(f"{stage} tuning" for stage in stages) + " |"]
    lines.append("|---|" + "---|" * len(stages))
    for title, key, spec in rows:
        lines.append(f"| {title} | " + " | ".join(format(summary[stage][key], spec) for stage in stages) + " |")
    errors = [summary[f"median_{name}_error_degrees"] for name in ("pose", "yaw", "pitch")]
    lines.append(
        f"| pose error (yaw, pitch), degrees | {errors[0]:.1f} ({errors[1]:.1f}, {errors[2]:.1f}) |" + " |" * (len(stages) - 1)
    )
    return "\n".join(lines)
