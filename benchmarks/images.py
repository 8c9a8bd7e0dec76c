"""Measure views and videos: seconds, points queried, and how much the faster paths change the image."""

from __future__ import annotations

import statistics
from typing import Any

import torch
from torch import Tensor

from benchmarks.measure import Gemm
from benchmarks.networks import CountingField, Network, StraightforwardField
from common import psnr
from fields.interface import Field
from generators.cameras import CameraPoses, Rays, camera_rays
from generators.view_cache import CachedField, build_cache, view_rays
from generators.views import ViewSettings, make_pose, view_columns
from visualization.trajectories import TrajectoryPose, ellipse, multiview

NUM_FRAMES = 36
DEPTH_TOLERANCE = 1e-4


class Image:
    """One view, or every ``row_step``-th row of it, rendered as in the scripts."""

    def __init__(self, field: Field, network: Network, pose: TrajectoryPose, settings: ViewSettings, row_step: int) -> None:
        rays = camera_rays(make_pose(pose.yaw, pose.pitch), settings.image_size, pose.fov_degrees)
        rows = torch.arange(settings.image_size**2).view(settings.image_size, -1)[row_step // 2 :: row_step].flatten()
        part = Rays(rays.origins[:, rows], rays.directions[:, rows])
        columns = view_columns(field, part, settings.render_settings(network.curriculum))
        self.rgb, self.depth, _, self.surface_depth, self.hit_mask, self.normals, self.surface_rgb = columns


def psnr_db(rgb: Tensor, truth: Tensor) -> float:
    """Return the PSNR of images in [0, 1], at most 120."""
    return psnr.psnr_db(float((rgb - truth).square().mean()), peak=1)


# -- one view ------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def measure_view(network: Network, path: str, size: int) -> dict[str, Any]:
    """Measure a frontal view of ``size`` px with doubled samples. ``path``: field, surface_only or straightforward."""
    pose = multiview(network.curriculum)[2]
    settings = ViewSettings(image_size=size, surface_only=path == "surface_only")
    field = CountingField(StraightforwardField.of_seed(network) if path == "straightforward" else network.field())
    gemm = Gemm()
    timed = gemm.around(lambda: Image(field, network, pose, settings, 1))
    num_points = field.num_points
    result = {"seconds": timed.seconds, "work_gflop": timed.work, "num_points": num_points, "size": size}
    if path == "surface_only":
        volume = Image(network.field(), network, pose, ViewSettings(image_size=size), 1)
        result["psnr_db"] = psnr_db(timed.value.rgb, volume.rgb)
    return result


# -- a video -------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def measure_video(network: Network, size: int, row_step: int, plain_every: int, cached_every: int) -> dict[str, Any]:
    """Measure a loop of 36 frames with the view cache, of which every ``plain_every``-th is also rendered without it.

    ``cached_every``: render only every ``cached_every``-th frame. ``row_step``: render only every ``row_step``-th row of a
    frame. ``frame_over_plain``: median ratio of a frame's work (measure.Timed) with and without the cache, plus 1/36 of the
    work of building the cache.
    """
    gemm = Gemm()
    poses = ellipse(NUM_FRAMES, network.curriculum)
    settings = ViewSettings(image_size=size)
    counting = CountingField(network.field())
    build = gemm.around(lambda: _build(counting, network, poses, settings))
    cache: CachedField = build.value
    num_build_points, num_frame_points, num_plain_points, num_cached = counting.num_points, 0, 0, 0
    ratios, plains, frame_seconds, plain_seconds, pairs = [], [], [], [], []
    for index in range(0, NUM_FRAMES, cached_every):
        before = counting.num_points
        frame = gemm.around(lambda index=index: Image(cache, network, poses[index], settings, row_step))
        num_frame_points += counting.num_points - before
        num_cached += 1
        frame_seconds.append(frame.seconds)
        if index % plain_every == 0:
            field = CountingField(network.field())
            plain = gemm.around(lambda index=index, field=field: Image(field, network, poses[index], settings, row_step))
            num_plain_points += field.num_points
            ratios.append(frame.work / plain.work)
            plains.append(plain)
            plain_seconds.append(plain.seconds)
            pairs.append((frame.value, plain.value))
    plain_work = statistics.median(plain.work for plain in plains)
    return {
        "size": size,
        "row_step": row_step,
        "frames_rendered": num_cached,
        "frames_compared": len(pairs),
        "num_colors": cache.num_colors,
        "build_seconds": build.seconds,
        "frame_seconds": statistics.median(frame_seconds) * row_step,
        "plain_frame_seconds": statistics.median(plain_seconds) * row_step,
        "build_points": num_build_points,
        "frame_points": num_frame_points // num_cached * row_step,
        "plain_frame_points": num_plain_points // len(pairs) * row_step,
        "frame_over_plain": statistics.median(ratios) + build.work / (NUM_FRAMES * row_step * plain_work),
        **_compare(pairs),
    }


def _build(field: Field, network: Network, poses: list[TrajectoryPose], settings: ViewSettings) -> CachedField:
    pitches, yaws = (torch.tensor([getattr(pose, name) for pose in poses]) for name in ("pitch", "yaw"))
    rays = view_rays(CameraPoses(pitches, yaws), [pose.fov_degrees for pose in poses])
    return build_cache(field, rays, settings.render_settings(network.curriculum))


def _compare(pairs: list[tuple[Image, Image]]) -> dict[str, Any]:
    """Compare frames with and without the cache: errors over all frames, and of depths on rays that hit in both."""
    result: dict[str, Any] = {
        "psnr_db": psnr_db(torch.cat([a.rgb for a, _ in pairs]), torch.cat([b.rgb for _, b in pairs])),
        "worst_frame_psnr_db": min(psnr_db(a.rgb, b.rgb) for a, b in pairs),
        "hit_masks_differ": sum(int((a.hit_mask != b.hit_mask).sum()) for a, b in pairs),
    }
    hits = [a.hit_mask & b.hit_mask for a, b in pairs]
    for name in ("depth", "surface_depth"):
        error = torch.cat([(getattr(a, name) - getattr(b, name))[hit].abs() for (a, b), hit in zip(pairs, hits, strict=True)])
        result[f"{name}_error"] = {
            "max": float(error.max()) if len(error) else 0.0,
            "rms": float(error.square().mean().sqrt()) if len(error) else 0.0,
            "share_within_1e-4": float((error <= DEPTH_TOLERANCE).float().mean()) if len(error) else 1.0,
            "num_beyond_1e-4": int((error > DEPTH_TOLERANCE).sum()),
            "num_pixels": len(error),
        }
    return result
