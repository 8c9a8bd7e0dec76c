"""Camera trajectories: pure functions that return lists of poses.

Source: docs/method.md, "Trajectories and shapes".

Angles are in radians. A loop of n frames ends one frame before its start, so a repeated video does not stutter (the
published code shows the first frame twice). ``curriculum`` defines the mean pose and the field of view.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from settings.curriculum import Curriculum

MULTIVIEW_YAWS = (-0.5, -0.25, 0.0, 0.25, 0.5)


class TrajectoryPose(NamedTuple):
    """Camera pose of one frame. ``yaw``, ``pitch``: radians, as in generators/cameras.py; ``fov_degrees``: full angle."""

    yaw: float
    pitch: float
    fov_degrees: float


def multiview(curriculum: Curriculum, yaw_offsets: Sequence[float] = MULTIVIEW_YAWS) -> list[TrajectoryPose]:
    """Return the mean pose, rotated by each of ``yaw_offsets``."""
    return [TrajectoryPose(curriculum.h_mean + offset, curriculum.v_mean, curriculum.fov) for offset in yaw_offsets]


def ellipse(num_frames: int, curriculum: Curriculum) -> list[TrajectoryPose]:
    """Return a loop around the mean pose: yaw + 0.5 cos, pitch + 0.25 sin."""
    return [
        TrajectoryPose(curriculum.h_mean + 0.5 * math.cos(a), curriculum.v_mean + 0.25 * math.sin(a), curriculum.fov)
        for a in _loop(num_frames)
    ]


def front(num_frames: int, curriculum: Curriculum) -> list[TrajectoryPose]:
    """Return a frontal loop that zooms out and in: yaw + 0.4 sin, pitch + 0.2 cos, fov + 5 + 5 sin (degrees)."""
    return [
        TrajectoryPose(
            curriculum.h_mean + 0.4 * math.sin(a), curriculum.v_mean + 0.2 * math.cos(a), curriculum.fov + 5 + 5 * math.sin(a)
        )
        for a in _loop(num_frames)
    ]


def orbit(num_frames: int, curriculum: Curriculum) -> list[TrajectoryPose]:
    """Return a full circle from above: yaw 0 to 2 pi, pitch pi/4 + 0.2 cos. Training never sees the back."""
    return [TrajectoryPose(a, math.pi / 4 + 0.2 * math.cos(a), curriculum.fov) for a in _loop(num_frames)]


TRAJECTORIES: dict[str, Callable[[int, Curriculum], list[TrajectoryPose]]] = {"front": front, "orbit": orbit, "ellipse": ellipse}


def _loop(num_frames: int) -> list[float]:
    """Return evenly spaced angles 0 <= a < 2 pi."""
    return [2 * math.pi * i / num_frames for i in range(num_frames)]
