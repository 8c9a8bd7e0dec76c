"""Videos: H.264 in .mp4, yuv420p, which every player and browser shows, with their frames as PNG beside them."""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path
from types import TracebackType

import numpy as np
from torch import Tensor

from common.errors import UserError
from visualization.images import save_picture, to_uint8

# One thread and no version strings or dates in the file: the same frames give the same bytes.
_BITEXACT = ["-fflags", "+bitexact", "-flags:v", "+bitexact", "-map_metadata", "-1", "-threads", "1"]
_QUALITY = ["-crf", "16", "-preset", "medium", "-movflags", "+faststart"]
_COLOR = ["-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709", "-color_range", "tv"]
_TO_BT709 = ["-vf", "scale=out_color_matrix=bt709:out_range=tv"]


class VideoWriter:
    """Takes pictures one by one, so memory does not grow with the video's length.

    ``with VideoWriter("vids/0.mp4", fps=24) as video: video.add(picture)``: the frames go to ``vids/0_frames/000.png``, ...
    The .mp4 appears when the block ends without an error; what was there before stays until then.
    """

    def __init__(self, path: str | Path, fps: float = 24) -> None:
        self.path = Path(path)
        self.frames_dir = self.path.with_name(f"{self.path.stem}_frames")
        self._partial = self.path.with_name(f".{self.path.stem}.{os.getpid()}.mp4")
        self._fps = fps
        self._num_frames = 0
        self._encoder: Generator[None, bytes | np.ndarray | None, None] | None = None

    def __enter__(self) -> VideoWriter:
        try:
            self.frames_dir.mkdir(parents=True, exist_ok=True)
            for stale in self.frames_dir.glob("[0-9]*.png"):  # a longer video of the same name left them
                stale.unlink()
        except OSError as error:
            raise UserError(f"cannot write to {self.frames_dir}: {error.strerror}; choose another --output_dir") from None
        return self

    def add(self, picture: Tensor) -> None:
        """Append a picture (3, H, W) in [-1, 1]; all of one size. Odd sizes gain a repeated row or column in the .mp4."""
        save_picture(self.frames_dir / f"{self._num_frames:03d}.png", picture)
        frame = _even(to_uint8(picture))
        if self._encoder is None:
            self._encoder = self._start_encoder((frame.shape[1], frame.shape[0]))
        try:
            self._encoder.send(frame)
        except OSError as error:
            raise UserError(f"the video encoder stopped while writing {self.path}: {error}") from None
        self._num_frames += 1

    def _start_encoder(self, size: tuple[int, int]) -> Generator[None, bytes | np.ndarray | None, None]:
        import imageio_ffmpeg

        try:
            encoder = imageio_ffmpeg.write_frames(
                str(self._partial),
                size,
                fps=self._fps,
                codec="libx264",
                pix_fmt_in="rgb24",
                pix_fmt_out="yuv420p",
                macro_block_size=1,
                quality=None,
                ffmpeg_log_level="error",
                output_params=[*_TO_BT709, *_COLOR, *_QUALITY, *_BITEXACT],
            )
            encoder.send(None)
        except (RuntimeError, OSError) as error:
            raise UserError(f"no video encoder: {error}; reinstall imageio-ffmpeg or set IMAGEIO_FFMPEG_EXE") from None
        return encoder

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._encoder is not None:
            self._encoder.close()
        if kind is None and self._partial.exists():
            os.replace(self._partial, self.path)
        self._partial.unlink(missing_ok=True)


def _even(frame: np.ndarray) -> np.ndarray:
    """yuv420p halves the colour's resolution, so sides must be even."""
    height, width = frame.shape[:2]
    return np.ascontiguousarray(np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge"))
