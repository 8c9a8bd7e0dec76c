"""The page: viser's scene and panel for each browser, and their event handlers.

Each browser has its own panel and session. It sends only numbers and choices, which are validated, and never file names. Files
for download are created in memory.
"""

from __future__ import annotations

import math
import sys
import threading
import time

import torch
import viser

from checkpoints.loading import LoadedGenerator
from common.arguments import MAX_SEED
from viewing.address import MAX_PSI, MAX_SHOWN_SEED, MIN_PSI, LocalServer
from viewing.camera import VIEW_MARGIN, BrowserCamera, camera_at, fitting_distance, window_half_side
from viewing.frames import QUANTITIES, Frame, FrameJob, FrameSettings
from viewing.looks import Look, field_of
from viewing.shapes import prior_cameras, prior_reach
from viewing.worker import Session, Worker
from visualization.images import png_bytes
from visualization.meshes import colored_mesh

SIZES = (64, 128, 256, 512)
MESH_RESOLUTION = 128  # voxels along a side
VOLUME, SURFACE = "volume", "surface"
SEED = "seed"  # the choice of the object that is not a latent file
FAN_DISTANCE, FAN_TURN = 5.0, 0.9  # camera that shows the prior: distance, and yaw from the mean in radians
NARROW_ASPECT = 0.8  # width over height of a phone's window
STATUS_SECONDS = 0.5  # between status lines while something moves


class Viewer:
    """Shows a worker's frames in all browsers that are or will be connected to a server."""

    def __init__(self, server: LocalServer, worker: Worker, name: str, look: Look, settings: FrameSettings) -> None:
        self._server, self._worker, self._name, self._look, self._settings = server, worker, name, look, settings
        self._pages: dict[int, Page] = {}
        server.gui.reset()
        server.on_client_disconnect(self._disconnect)
        server.on_client_connect(self._connect)

    def show_generator(self, loaded: LoadedGenerator) -> None:
        """Show a newer generator in all browsers."""
        self._worker.replace_generator(loaded)

    def _connect(self, client: viser.ClientHandle) -> None:
        page = Page(client, self._worker, self._name, self._look, self._settings)
        self._pages[client.client_id] = page
        if client.client_id not in self._server.get_clients():  # it left while its panel was built
            self._disconnect(client)

    def _disconnect(self, client: viser.ClientHandle) -> None:
        page = self._pages.pop(client.client_id, None)
        if page is not None:
            page.close()


class Page:
    """One browser's panel and scene."""

    def __init__(self, client: viser.ClientHandle, worker: Worker, name: str, look: Look, settings: FrameSettings) -> None:
        self._client, self._worker, self._name = client, worker, name
        self._mesh_lock = threading.Lock()
        self._status_at = 0.0
        self._last_frame_at = 0.0
        self._frame_seconds = 0.0
        window = _camera_of(client)
        self._build_panel(look, settings, is_open=window.aspect > NARROW_ASPECT)
        self._session = Session(self, self._first_camera(window), look, settings)
        self._listen()
        worker.add(self._session)

    def close(self) -> None:
        self._worker.remove(self._session)

    def show(self, frame: Frame, is_refined: bool, seconds: float) -> None:
        """Display a frame, and from time to time its size and render time."""
        self._client.scene.set_background_image(frame.pixels, format="jpeg", jpeg_quality=95, depth=frame.depth)
        self._client.flush()
        now = time.perf_counter()
        between, self._last_frame_at = now - self._last_frame_at, now
        if is_refined or now - self._status_at > STATUS_SECONDS:
            self._status_at = now
            rate = f"{seconds:.2f} s" if is_refined else f"{seconds * 1000:.0f} ms, {1 / between:.0f} frames/s"
            step = self._worker.loaded.step
            trained = f" · step {step}" if step else ""
            self._status.content = f"**{self._name}**{trained} · {frame.image_size} px in {rate}"

    def report(self, problem: str) -> None:
        """Display that the current view cannot be rendered, also on stderr."""
        print(f"note: cannot render this view: {problem}", file=sys.stderr, flush=True)
        self._status.content = f"**{self._name}** · cannot render this view: {problem}"

    # -- the panel -------------------------------------------------------------------------------------------------

    def _build_panel(self, look: Look, settings: FrameSettings, is_open: bool) -> None:
        """Add the controls, the rarer ones in a folder, so that the panel of a narrow window leaves the image visible."""
        gui = self._client.gui
        has_surface = self._worker.loaded.curriculum.pred_occ
        modes = (VOLUME, SURFACE) if has_surface else (VOLUME,)
        quantities = QUANTITIES if has_surface else tuple(name for name in QUANTITIES if name != "normals")
        self._status = gui.add_markdown(f"**{self._name}**")
        labels = (SEED, *self._worker.latents)
        self._object = gui.add_dropdown("Object", labels, initial_value=look.latent or SEED, visible=len(labels) > 1)
        self._seed = gui.add_number("Seed", look.seed, min=0, max=MAX_SHOWN_SEED, step=1, disabled=look.latent is not None)
        self._next = gui.add_button("Next seed")
        self._psi = gui.add_slider(
            "psi", min=MIN_PSI, max=MAX_PSI, step=0.05, initial_value=look.psi, hint="1: full variety; 0: the mean"
        )
        self._quantity = gui.add_dropdown("Show", quantities, initial_value=settings.quantity)
        with gui.add_folder("More", expand_by_default=is_open):
            self._mix = gui.add_checkbox("Mix", False, hint="the geometry of the seed in the appearance of another")
            self._appearance = gui.add_number(
                "Appearance", min(look.seed + 1, MAX_SHOWN_SEED), min=0, max=MAX_SHOWN_SEED, step=1, disabled=True
            )
            self._mode = gui.add_dropdown("Render", modes, initial_value=SURFACE if settings.surface else VOLUME)
            sizes = sorted({*SIZES, settings.image_size})
            self._size = gui.add_dropdown("Pixels", [str(size) for size in sizes], initial_value=str(settings.image_size))
            self._prior = gui.add_checkbox("Camera prior", False, hint="cameras as training draws them")
            self._mesh = gui.add_checkbox("Mesh", False)
            self._reset = gui.add_button("Reset view")
            self._snapshot = gui.add_button("Save image")
            self._download = gui.add_button("Save mesh")

    def _listen(self) -> None:
        for control in (self._object, self._seed, self._psi, self._mix, self._appearance, self._quantity, self._mode, self._size):
            control.on_update(self._change)
        self._prior.on_update(self._toggle_prior)
        self._mesh.on_update(self._toggle_mesh)
        self._next.on_click(self._next_seed)
        self._reset.on_click(self._reset_view)
        self._snapshot.on_click(self._save_image)
        self._download.on_click(self._save_mesh)
        self._client.camera.on_update(self._move)

    def _next_seed(self, event: object) -> None:
        self._object.value = SEED
        self._seed.value = (self._look().seed + 1) % (MAX_SHOWN_SEED + 1)
        self._change(event)

    def _move(self, event: object) -> None:
        camera = _camera_of(self._client)
        if camera.is_possible() and camera != self._session.camera:
            self._worker.change(self._session, camera=camera)

    def _change(self, event: object) -> None:
        self._appearance.disabled = not self._mix.value
        self._seed.disabled = self._object.value in self._worker.latents
        before, look = self._session.look, self._look()
        self._worker.change(self._session, look=look, settings=self._frame_settings())
        if self._mesh.value and look != before:
            self._toggle_mesh(event)

    def _look(self) -> Look:
        """Return the panel's values, or the previous ones for invalid values from the browser."""
        last = self._session.look
        psi = _number(self._psi.value, last.psi, -2.0, 2.0)
        seed = int(_number(self._seed.value, last.seed, 0, MAX_SEED))
        appearance = int(_number(self._appearance.value, 0, 0, MAX_SEED)) if self._mix.value else None
        latent = self._object.value if self._object.value in self._worker.latents else None
        return Look(seed, psi, appearance, latent)

    def _frame_settings(self) -> FrameSettings:
        last = self._session.settings
        quantity = self._quantity.value if self._quantity.value in QUANTITIES else last.quantity
        size = int(self._size.value) if self._size.value in self._size.options else last.image_size
        with_depth = bool(self._prior.value or self._mesh.value)
        return FrameSettings(quantity, self._mode.value == SURFACE, size, with_depth)

    # -- the scene -------------------------------------------------------------------------------------------------

    def _first_camera(self, window: BrowserCamera) -> BrowserCamera:
        """Stand at distance 1, or farther away if the window is too narrow for the whole frame; return that camera."""
        curriculum = self._worker.loaded.curriculum
        fov = math.radians(curriculum.fov) * VIEW_MARGIN
        distance = fitting_distance(window_half_side(curriculum), fov, window.aspect)
        self._client.camera.fov = fov
        self._stand(0.0, distance, fov)
        return camera_at(curriculum.h_mean, curriculum.v_mean, distance, fov, window.aspect, window.height)

    def _stand(self, turn: float, distance: float, fov: float) -> None:
        """Look at the origin from ``turn`` radians of yaw off the mean pose."""
        curriculum = self._worker.loaded.curriculum
        target = camera_at(curriculum.h_mean + turn, curriculum.v_mean, distance, fov)
        self._client.camera.position = target.position
        self._client.camera.look_at = (0.0, 0.0, 0.0)

    def _reset_view(self, event: object) -> None:
        camera = _camera_of(self._client)
        half_side = window_half_side(self._worker.loaded.curriculum)
        self._stand(0.0, fitting_distance(half_side, camera.fov, camera.aspect), camera.fov)

    def _toggle_prior(self, event: object) -> None:
        """Draw the cameras and move back until all are in view, or remove them."""
        scene, camera = self._client.scene, _camera_of(self._client)
        cameras = prior_cameras(self._worker.loaded)
        if self._prior.value:
            for i, drawn in enumerate(cameras):
                scene.add_camera_frustum(
                    f"/prior/{i}", drawn.fov, 1.0, scale=0.12, color=(40, 110, 200), wxyz=drawn.wxyz, position=drawn.position
                )
            reach = 1.2 + prior_reach(cameras)
            self._stand(FAN_TURN, max(FAN_DISTANCE, fitting_distance(reach / 2, camera.fov, camera.aspect)), camera.fov)
        else:
            scene.remove_by_name("/prior")
            self._reset_view(event)
        self._change(event)

    def _toggle_mesh(self, event: object) -> None:
        """Draw the mesh to the right of the head, or remove it."""
        scene = self._client.scene
        with self._mesh_lock:
            scene.remove_by_name("/mesh")
            mesh = self._make_mesh() if self._mesh.value else None
            if mesh is not None:
                scene.add_mesh_trimesh("/mesh", mesh, position=(2.2 * window_half_side(self._worker.loaded.curriculum), 0.0, 0.0))
        if self._mesh.value:
            camera = _camera_of(self._client)
            half_side = window_half_side(self._worker.loaded.curriculum)
            needed = fitting_distance(3.2 * half_side, camera.fov, camera.aspect) if camera.aspect < 2.5 else 1.0
            distance = math.hypot(*camera.position)
            if distance < needed / max(1.0, camera.aspect):
                self._client.camera.position = tuple(x * needed / max(1.0, camera.aspect) / distance for x in camera.position)
                self._client.camera.look_at = (0.0, 0.0, 0.0)
        self._worker.change(self._session, settings=self._frame_settings())

    def _make_mesh(self):
        torch.set_num_threads(self._worker.pool.num_threads)  # the pool leaves other threads one
        note = self._client.gui.add_notification("Mesh", "computing", loading=True, with_close_button=False)
        loaded = self._worker.loaded
        device = loaded.generator.device
        mesh = colored_mesh(field_of(loaded, self._look(), self._worker.latents), loaded.curriculum, MESH_RESOLUTION, device)
        note.loading, note.with_close_button, note.auto_close_seconds = False, True, 4.0
        note.body = "this head has no surface" if mesh is None else f"{len(mesh.faces)} triangles"
        return mesh

    def _save_image(self, event: object) -> None:
        """Render the view at full quality and send the frame, without background, as PNG."""
        session, loaded = self._session, self._worker.loaded
        device = loaded.generator.device
        job = FrameJob(field_of(loaded, session.look, self._worker.latents), loaded.curriculum, session.camera, session.settings)
        frame = job.advance(job.num_rays, device, self._worker.pool)
        if frame is not None and job.num_rays:
            self._client.send_file_download(f"{self._file_stem()}.png", png_bytes(frame.cropped()), save_immediately=True)

    def _save_mesh(self, event: object) -> None:
        with self._mesh_lock:
            mesh = self._make_mesh()
        if mesh is not None:
            self._client.send_file_download(
                f"{self._file_stem()}.glb", bytes(mesh.export(file_type="glb")), save_immediately=True
            )

    def _file_stem(self) -> str:
        look = self._session.look
        return (look.latent or f"seed_{look.seed}") + ("" if look.appearance_seed is None else f"_in_{look.appearance_seed}")


def _number(value: object, otherwise: float, least: float, most: float) -> float:
    """Return ``value`` if it is a number in the range, else ``otherwise``."""
    is_number = type(value) in (int, float) and math.isfinite(value) and least <= value <= most
    return value if is_number else otherwise


def _camera_of(client: viser.ClientHandle) -> BrowserCamera:
    camera = client.camera
    height = max(1, int(camera.image_height))
    aspect = max(1, int(camera.image_width)) / height
    x, y, z = (float(number) for number in camera.position)
    w, i, j, k = (float(number) for number in camera.wxyz)
    return BrowserCamera((x, y, z), (w, i, j, k), float(camera.fov), aspect, height)
