"""One thread that schedules the frames of all browsers: at low resolution during changes, at full quality at rest.

Changing views are served first, in turn. Views at rest are refined in pieces in between; a new change cancels the refinement.
The number of pixels depends on the measured time per ray: :class:`TimeBudget`.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Mapping
from typing import Protocol

import torch

from checkpoints.loading import LoadedGenerator
from common.errors import one_line
from fields.interface import Field
from viewing.camera import BrowserCamera, camera_at
from viewing.frames import Frame, FrameJob, FrameSettings
from viewing.looks import Look, field_of
from viewing.pool import RenderPool
from visualization.generator_scripts import Subject

FRAME_SECONDS = 0.08  # of rendering during changes; with transfer and drawing, 10 frames per second
REST_SECONDS = 0.15  # without a change, before a view is refined
MIN_MOVING_SIZE, SIZE_STEP = 24, 8  # pixels
PIECE_RAYS = 512  # smallest piece of a refinement


class Screen(Protocol):
    """Receiver of frames."""

    def show(self, frame: Frame, is_refined: bool, seconds: float) -> None:
        """Display a frame that took ``seconds`` to render."""

    def report(self, problem: str) -> None:
        """Tell the user that the current view cannot be rendered."""


class Session:
    """One browser's look, camera and rendering state, guarded by the worker's lock."""

    def __init__(self, screen: Screen, camera: BrowserCamera, look: Look, settings: FrameSettings) -> None:
        self.screen, self.camera, self.look, self.settings = screen, camera, look, settings
        self.is_stale = True  # something changed since the last coarse frame
        self.is_coarse = True  # the displayed frame is not refined
        self.changed_at = 0.0
        self.served_at = 0.0
        self.job: FrameJob | None = None
        self.job_seconds = 0.0
        self.field_key: tuple[int, Look] | None = None
        self.field: Field | None = None


class TimeBudget:
    """Image size that can be rendered in a given time, from the measured time per ray of each kind of frame."""

    def __init__(self) -> None:
        self._seconds_per_ray: dict[tuple[str, bool], float] = {}

    def record(self, settings: FrameSettings, num_rays: int, seconds: float) -> None:
        if num_rays:
            key, cost = (settings.quantity, settings.surface), seconds / num_rays
            self._seconds_per_ray[key] = 0.7 * self._seconds_per_ray.get(key, cost) + 0.3 * cost

    def num_rays(self, settings: FrameSettings, seconds: float) -> int:
        """Number of rays that fit into ``seconds``; for a kind not measured yet, those of the smallest frame."""
        cost = self._seconds_per_ray.get((settings.quantity, settings.surface))
        return MIN_MOVING_SIZE**2 if cost is None else max(1, int(seconds / cost))

    def moving_size(self, settings: FrameSettings, seconds: float) -> int:
        """Image size during changes: a multiple of SIZE_STEP, from MIN_MOVING_SIZE to the size at rest."""
        side = int(math.sqrt(self.num_rays(settings, seconds))) // SIZE_STEP * SIZE_STEP
        return min(max(side, MIN_MOVING_SIZE), settings.image_size)


class Worker:
    """Renders for any number of sessions until :meth:`stop`."""

    def __init__(self, loaded: LoadedGenerator, device: torch.device, latents: Mapping[str, Subject] | None = None) -> None:
        """``latents``: latent files by label, which a look may name."""
        self._loaded, self._device = loaded, device
        self.latents = latents or {}
        self._generation = 0  # counts replacements of the generator
        self._sessions: list[Session] = []
        self._wake = threading.Condition()
        self._stopped = False
        self._budget = TimeBudget()
        self.pool = RenderPool(torch.get_num_threads() if device.type == "cpu" else 1)
        self._thread = threading.Thread(target=self._run, daemon=True)

    @property
    def loaded(self) -> LoadedGenerator:
        return self._loaded

    def start(self, look: Look, settings: FrameSettings) -> None:
        """Measure the cost of small frames, then start the thread."""
        curriculum = self._loaded.curriculum
        camera = camera_at(curriculum.h_mean, curriculum.v_mean, 1.0, math.radians(curriculum.fov))
        field = field_of(self._loaded, look, self.latents)
        for size in (MIN_MOVING_SIZE, 2 * MIN_MOVING_SIZE):  # the first also loads libraries
            began = time.perf_counter()
            job = FrameJob(field, curriculum, camera, FrameSettings(settings.quantity, settings.surface, size))
            job.advance(job.num_rays, self._device, self.pool)
            if size > MIN_MOVING_SIZE:
                self._budget.record(settings, job.num_rays, time.perf_counter() - began)
        self._thread.start()

    def stop(self) -> None:
        with self._wake:
            self._stopped = True
            self._wake.notify()
        self._thread.join()
        self.pool.close()

    def add(self, session: Session) -> None:
        with self._wake:
            self._sessions.append(session)
            self._mark(session)

    def remove(self, session: Session) -> None:
        with self._wake:
            if session in self._sessions:
                self._sessions.remove(session)

    def change(
        self,
        session: Session,
        camera: BrowserCamera | None = None,
        look: Look | None = None,
        settings: FrameSettings | None = None,
    ) -> None:
        """Change a session's look, settings or camera. None keeps the current value."""
        with self._wake:
            session.camera = camera or session.camera
            session.look = look or session.look
            session.settings = settings or session.settings
            self._mark(session)

    def replace_generator(self, loaded: LoadedGenerator) -> None:
        """Show another generator in all sessions, with their current cameras."""
        with self._wake:
            self._loaded = loaded
            self._generation += 1
            for session in self._sessions:
                self._mark(session)

    def _mark(self, session: Session) -> None:
        session.is_stale = session.is_coarse = True
        session.job = None
        session.changed_at = time.perf_counter()
        self._wake.notify()

    # -- the thread ------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._wake:
                session = self._next_session()
                while session is None and not self._stopped:
                    self._wake.wait(self._seconds_to_rest())
                    session = self._next_session()
                if self._stopped or session is None:
                    return
                session.served_at = time.perf_counter()
            try:
                if session.is_stale:
                    self._render_coarse(session)
                else:
                    self._refine(session)
            except RuntimeError as error:  # such as too little memory of the GPU; other views and browsers go on
                with self._wake:
                    session.is_stale = session.is_coarse = False
                    session.job = None
                session.screen.report(one_line(str(error)))

    def _next_session(self) -> Session | None:
        """Select the next session: the longest-waiting one with changes, else one at rest."""
        now = time.perf_counter()
        moving = [session for session in self._sessions if session.is_stale]
        resting = [s for s in self._sessions if s.is_coarse and not s.is_stale and now - s.changed_at >= REST_SECONDS]
        return min(moving or resting, key=lambda session: session.served_at, default=None)

    def _seconds_to_rest(self) -> float | None:
        waiting = [session.changed_at for session in self._sessions if session.is_coarse]
        return max(0.001, min(waiting) + REST_SECONDS - time.perf_counter()) if waiting else None

    def _render_coarse(self, session: Session) -> None:
        began = time.perf_counter()
        with self._wake:
            session.is_stale = False
            num_moving = sum(s.is_coarse for s in self._sessions)
            size = self._budget.moving_size(session.settings, FRAME_SECONDS / max(1, num_moving))
            job, settings = self._new_job(session, size), session.settings
        rendering_began = time.perf_counter()
        frame = job.advance(job.num_rays, self._device, self.pool)
        assert frame is not None
        self._budget.record(settings, job.num_rays, time.perf_counter() - rendering_began)
        is_refined = size >= settings.image_size
        with self._wake:
            session.is_coarse = session.is_stale or not is_refined
        session.screen.show(frame, is_refined, time.perf_counter() - began)

    def _refine(self, session: Session) -> None:
        """Render the next piece at full size."""
        began = time.perf_counter()
        with self._wake:
            if session.job is None:
                session.job, session.job_seconds = self._new_job(session, session.settings.image_size), 0.0
            job, settings = session.job, session.settings
        num_rays = max(PIECE_RAYS, self._budget.num_rays(settings, FRAME_SECONDS))
        frame = job.advance(num_rays, self._device, self.pool)
        seconds = time.perf_counter() - began
        with self._wake:
            session.job_seconds += seconds
            if frame is None or session.job is not job:  # the session changed in the meantime
                return
            session.job, session.is_coarse = None, False
        session.screen.show(frame, True, session.job_seconds)

    def _new_job(self, session: Session, size: int) -> FrameJob:
        key = (self._generation, session.look)
        if session.field is None or session.field_key != key:
            session.field, session.field_key = field_of(self._loaded, session.look, self.latents), key
        settings = session.settings
        sized = FrameSettings(settings.quantity, settings.surface, size, settings.with_depth)
        return FrameJob(session.field, self._loaded.curriculum, session.camera, sized)
