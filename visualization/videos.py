"""Write videos as H.264 .mp4 in yuv420p, which every player and browser supports, with the frames as PNG files."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType

import numpy as np
from torch import Tensor

from common.errors import UserError
from visualization.images import save_image, to_uint8

# One thread, and no version strings or dates in the file: equal frames give equal bytes.
BITEXACT = ("-fflags", "+bitexact", "-flags:v", "+bitexact", "-map_metadata", "-1", "-threads", "1")
QUALITY = ("-crf", "16", "-preset", "medium", "-movflags", "+faststart")
COLOR = ("-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709", "-color_range", "tv")
TO_BT709 = ("-vf", "scale=out_color_matrix=bt709:out_range=tv")
NO_ENCODER = "reinstall imageio-ffmpeg, or set IMAGEIO_FFMPEG_EXE to a working ffmpeg"


class VideoWriter:
    """Encode images one by one, so that memory does not grow with the length of the video.

    ``with VideoWriter("vids/0.mp4", fps=24) as video: video.add(image)`` also writes frames to ``vids/0_frames/000.png``, ...
    The video and frames replace existing ones only after the block ends without an error, the encoder succeeds, and every
    frame of its file can be decoded. Raises UserError if any of these steps fails.
    """

    def __init__(self, path: str | Path, fps: float = 24) -> None:
        self.path = Path(path)
        self.frames_dir = self.path.with_name(f"{self.path.stem}_frames")
        self._new_path = self.path.with_name(f".{self.path.stem}.{os.getpid()}.mp4")
        self._new_frames_dir = self.path.with_name(f".{self.path.stem}_frames.{os.getpid()}")
        self._fps = fps
        self._num_frames = 0
        self._encoder: subprocess.Popen[bytes] | None = None
        self._messages = tempfile.TemporaryFile()  # noqa: SIM115 (closed on exit)

    def __enter__(self) -> VideoWriter:
        try:
            self._new_frames_dir.mkdir(parents=True)
        except OSError as error:
            raise UserError(f"cannot write to {self.path.parent}: {error.strerror}; choose another --output_dir") from None
        return self

    def add(self, image: Tensor) -> None:
        """Append an image (3, H, W) in [-1, 1]. All have the same size; odd sides are padded by one pixel in the .mp4."""
        save_image(self._new_frames_dir / f"{self._num_frames:03d}.png", image)
        frame = _even(to_uint8(image))
        if self._encoder is None:
            self._encoder = self._start_encoder(width=frame.shape[1], height=frame.shape[0])
        try:
            self._encoder.stdin.write(frame.tobytes())
        except OSError:  # the encoder exited early; its last message gives the reason
            self._encoder.wait()
            raise UserError(f"the video encoder failed while writing {self.path}: {self._last_message()}") from None
        self._num_frames += 1

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if kind is None and self._num_frames:
                self._finish_encoding()
                self._replace()
        finally:
            if self._encoder is not None and self._encoder.poll() is None:
                self._encoder.kill()
                self._encoder.wait()
            self._messages.close()
            self._new_path.unlink(missing_ok=True)
            shutil.rmtree(self._new_frames_dir, ignore_errors=True)

    def _start_encoder(self, width: int, height: int) -> subprocess.Popen[bytes]:
        pixels = ("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", f"{self._fps:g}", "-i", "-")
        codec = ("-an", "-c:v", "libx264", "-pix_fmt", "yuv420p")
        output = [*codec, *TO_BT709, *COLOR, *QUALITY, *BITEXACT, str(self._new_path)]
        try:
            command = [_ffmpeg(), "-y", "-v", "error", *pixels, *output]
            return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=self._messages)
        except OSError as error:
            raise UserError(f"cannot start the video encoder ({error.strerror}); {NO_ENCODER}") from None

    def _finish_encoding(self) -> None:
        """Wait for the encoder, and verify its file by decoding it. Raises UserError."""
        with contextlib.suppress(OSError):  # a failed flush shows in the exit status
            self._encoder.stdin.close()
        if self._encoder.wait() != 0:
            raise UserError(
                f"the video encoder failed while writing {self.path} ({self._last_message()}); an existing video is unchanged"
            )
        num_decoded = _count_frames(self._new_path)
        if num_decoded != self._num_frames:
            raise UserError(
                f"the video encoder wrote {num_decoded} of {self._num_frames} frames of {self.path}; {NO_ENCODER};"
                " an existing video is unchanged"
            )

    def _replace(self) -> None:
        try:
            os.replace(self._new_path, self.path)  # first, since it fails on Windows while a player shows the old video
            if self.frames_dir.exists():
                shutil.rmtree(self.frames_dir)
            os.replace(self._new_frames_dir, self.frames_dir)
        except OSError as error:
            raise UserError(f"cannot write {self.path}: {error.strerror or error}") from None

    def _last_message(self) -> str:
        self._messages.seek(0)
        lines = self._messages.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"exit status {self._encoder.returncode}"


def _ffmpeg() -> str:
    """Return the path of ffmpeg: $IMAGEIO_FFMPEG_EXE, or the one from imageio-ffmpeg. Raises UserError if there is none."""
    import imageio_ffmpeg

    try:
        return imageio_ffmpeg.get_ffmpeg_exe()
    except RuntimeError as error:
        raise UserError(f"no video encoder: {error}; {NO_ENCODER}") from None


def _count_frames(path: Path) -> int:
    """Count the decodable frames of a video; 0 if the file is not a video."""
    command = [_ffmpeg(), "-v", "error", "-i", str(path), "-f", "framehash", "-"]
    try:
        decoded = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace")
    except OSError:
        return 0
    if decoded.returncode != 0 or decoded.stderr.strip():
        return 0
    return sum(not line.startswith("#") for line in decoded.stdout.splitlines())


def _even(frame: np.ndarray) -> np.ndarray:
    """Pad a frame to even sides, which yuv420p requires because it halves the color resolution."""
    height, width = frame.shape[:2]
    return np.ascontiguousarray(np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge"))
