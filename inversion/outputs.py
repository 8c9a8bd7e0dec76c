"""Output files of an inversion: the latent file, a sheet, a video and a mesh."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from checkpoints.latents import GeneratorName, save_latent
from fields.interface import Field
from generators.styles import with_weights
from generators.views import View, ViewSettings, make_pose, render_view
from inversion.reconstruction import Inversion, latent_of
from inversion.search import Scene
from visualization.images import from_uint8, image_grid, save_image, view_image
from visualization.mesh_rendering import open_renderer, pose_matrix
from visualization.meshes import colored_mesh, save_mesh
from visualization.trajectories import TrajectoryPose, ellipse, multiview
from visualization.videos import VideoWriter

if TYPE_CHECKING:
    from trimesh import Trimesh

NUM_FRAMES, FPS = 36, 24
MESH_RESOLUTION = 128
WHITE = 1.0


def write_all(
    inversion: Inversion, scene: Scene, photo: Tensor, name: GeneratorName, stem: Path, view_size: int
) -> tuple[list[Path], list[list[Tensor]]]:
    """Write ``{stem}_latent.safetensors``, ``.png``, ``.mp4`` with its frames and, if there is a surface, ``.glb``.

    Return their paths and the rows of the sheet.

    photo: (3, S, S) in [0, 1]. ``view_size``: side of a view in pixels.
    """
    latent_path = stem.with_name(f"{stem.name}_latent.safetensors")
    save_latent(latent_path, latent_of(inversion, scene, name))
    generator = scene.generator if inversion.weights is None else with_weights(scene.generator, inversion.weights)
    with torch.no_grad():
        field = generator.field(scene.distribution.styles(inversion.found.coordinates, inversion.found.offsets))
    mesh = colored_mesh(field, scene.curriculum, MESH_RESOLUTION, scene.device)
    sheet_path, video_path = stem.with_name(f"{stem.name}.png"), stem.with_name(f"{stem.name}.mp4")
    rows = sheet_rows(inversion, field, mesh, scene, photo, view_size)
    save_image(sheet_path, image_grid(rows))
    write_video(video_path, field, scene, view_size)
    meshes = [] if mesh is None else save_mesh(mesh, stem, (".glb",))
    return [latent_path, sheet_path, video_path, *meshes], rows


def sheet_rows(
    inversion: Inversion, field: Field, mesh: Trimesh | None, scene: Scene, photo: Tensor, view_size: int
) -> list[list[Tensor]]:
    """Render three rows of seven images (3, view_size, view_size) in [-1, 1]; two rows if there is no mesh.

    First row: photo, reconstruction, five views. Second: the reconstruction before tuning (if tuned), its normals, and the
    normals of the five views. Third: the mesh from the photo's pose and from the five views.
    """
    poses = multiview(scene.curriculum)
    pitch, yaw = inversion.found.angles[0].tolist()
    own = TrajectoryPose(yaw, pitch, scene.curriculum.fov)
    views = [_view(field, pose, scene, view_size) for pose in poses]
    best = inversion.best_view
    blank = torch.full((3, view_size, view_size), WHITE)
    normals = torch.where(best.mask, best.normals, WHITE)
    before = _enlarged(inversion.before.image * 2 - 1, view_size) if inversion.after else blank
    depth_range = scene.curriculum.ray_start, scene.curriculum.ray_end
    rows = [
        [_enlarged(photo * 2 - 1, view_size), _enlarged(best.image * 2 - 1, view_size), *(view.image for view in views)],
        [before, _enlarged(normals, view_size), *(view_image(view, "normals", *depth_range) for view in views)],
    ]
    if mesh is not None:
        renderer = open_renderer()
        images = [renderer.render(mesh, pose_matrix(pose.yaw, pose.pitch), pose.fov_degrees, view_size) for pose in (own, *poses)]
        rows.append([blank, *map(from_uint8, images)])
    return rows


def overview_part(rows: list[list[Tensor]]) -> list[Tensor]:
    """Select from :func:`sheet_rows`: photo, reconstruction, views from the left, front and right, and their normals."""
    (photo, reconstruction, left, _, front, _, right), normals = rows[0], rows[1]
    return [photo, reconstruction, left, front, right, normals[2], normals[4], normals[6]]


def _enlarged(image: Tensor, size: int) -> Tensor:
    """Resize (3, S, S) to ``size`` pixels; when enlarged, pixels become squares."""
    return F.interpolate(image.unsqueeze(0).cpu(), (size, size), mode="nearest-exact")[0]


def _view(field: Field, pose: TrajectoryPose, scene: Scene, view_size: int) -> View:
    settings = ViewSettings(image_size=view_size, fov_degrees=pose.fov_degrees, last_back=scene.curriculum.last_back)
    return render_view(field, make_pose(pose.yaw, pose.pitch, scene.device), scene.curriculum, settings)


def write_video(path: Path, field: Field, scene: Scene, view_size: int) -> None:
    """Render one turn of the ellipse of render_video.py, with the samples per ray and background of training."""
    settings = ViewSettings(image_size=view_size, ray_step_multiplier=1, last_back=scene.curriculum.last_back)
    with VideoWriter(path, FPS) as video:
        for pose in ellipse(NUM_FRAMES, scene.curriculum):
            shot = replace(settings, fov_degrees=pose.fov_degrees)
            view = render_view(field, make_pose(pose.yaw, pose.pitch, scene.device), scene.curriculum, shot)
            video.add(view.image)
