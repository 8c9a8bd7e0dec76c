"""FID, KID and IS computed by torch-fidelity from image tensors and verified weights.

torch-fidelity unpickles any weights file it is given. A user's or downloaded file is therefore read as data first
(checkpoints/torch_files.py), and torch-fidelity gets a copy written here that holds only tensors.
"""

from __future__ import annotations

import socket
import tempfile
import urllib.error
from collections.abc import Set
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from checkpoints.safe_pickle import printable
from checkpoints.torch_files import read_torch_file
from common.errors import UserError
from common.files import require_file

DOWNLOAD_TIMEOUT_SECONDS = 20.0
MIN_IMAGES = 4


@dataclass(frozen=True)
class WeightsSource:
    """The source of an extractor's weights: the URL of a plain state dict whose SHA-256 starts with ``hash_prefix``."""

    url: str
    hash_prefix: str

    @property
    def file_name(self) -> str:
        return self.url.rsplit("/", 1)[1]


# Only extractors whose weights are plain tensors. torch-fidelity's clip-* are TorchScript programs; its dinov2-* download
# and run code from a repository.
EXTRACTORS = {
    "inception-v3-compat": WeightsSource(
        "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth", "6726825d"
    ),
    "vgg16": WeightsSource("https://download.pytorch.org/models/vgg16-397923af.pth", "397923af"),
}


@dataclass(frozen=True)
class FidelitySettings:
    """Settings that the results depend on besides the images. They are recorded with the results."""

    feature_extractor: str
    rng_seed: int
    batch_size: int
    kid_subsets: int
    kid_subset_size: int
    isc_splits: int

    @classmethod
    def for_counts(cls, num_real: int, num_fake: int, extractor: str, seed: int, batch_size: int) -> FidelitySettings:
        """Return the usual 100 subsets of 1000 images and 10 splits, reduced for small sets.

        A subset is at most half of a set. Subsets of the full size would be identical, with deviation 0.
        """
        fewest = min(num_real, num_fake)
        return cls(extractor, seed, batch_size, 100, max(2, min(1000, fewest // 2)), max(1, min(10, num_fake // 10)))


class _Images(torch.utils.data.Dataset):
    def __init__(self, images: Tensor) -> None:
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Tensor:
        return self._images[index]


def find_weights(extractor: str, weights_file: str | Path | None) -> Path:
    """Return the weights file: the user's, a previously downloaded one, or a new download (its hash is checked).

    Raises UserError for an unknown extractor, a missing file or a failed download.
    """
    if extractor not in EXTRACTORS:
        raise UserError(
            f"--feature_extractor {extractor!r} is not supported; use one of {', '.join(EXTRACTORS)} (torch-fidelity's other "
            "extractors require running downloaded code)"
        )
    if weights_file is not None:
        if not Path(weights_file).is_file():
            raise UserError(f"--feature_extractor_weights {weights_file}: no such file; name a local weights file")
        return Path(weights_file)
    source = EXTRACTORS[extractor]
    path = Path(torch.hub.get_dir()) / "checkpoints" / source.file_name
    if not path.is_file():
        _download(extractor, source, path)
    return path


def local_weights(extractor: str, weights_file: Path | None) -> Path | None:
    """Return the weights file as :func:`find_weights` does, but without downloading; None if there is no local file."""
    if weights_file is not None:
        return weights_file
    path = Path(torch.hub.get_dir()) / "checkpoints" / EXTRACTORS[extractor].file_name
    return path if path.is_file() else None


def _download(extractor: str, source: WeightsSource, path: Path) -> None:
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT_SECONDS)  # without a timeout, a dead network hangs for minutes
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(source.url, str(path), hash_prefix=source.hash_prefix)
    except (OSError, RuntimeError, ValueError) as error:  # URLError and timeouts are OSErrors; a wrong hash a RuntimeError
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        raise UserError(
            f"cannot download the weights of {extractor} ({reason}); download {source.url} on another machine and pass the file "
            "with --feature_extractor_weights, or use --metrics swd, which needs no weights"
        ) from None
    finally:
        socket.setdefaulttimeout(timeout)


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read named tensors from a torch.save or safetensors file without running code from it. Raises UserError otherwise."""
    require_file(path)
    if path.suffix == ".safetensors":
        import safetensors.torch

        try:
            return safetensors.torch.load_file(path)
        except Exception as error:
            raise UserError(f"{path} is damaged or not a safetensors file ({printable(error)})") from None
    state = read_torch_file(path)
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path} does not hold a dictionary of named tensors; name a weights file of a feature extractor")
    return {str(name): value for name, value in state.items()}


@contextmanager
def trusted_copy(path: Path):
    """Provide the path of a copy of a weights file with only its tensors. Raises UserError if the file holds anything else."""
    state = read_state_dict(path)
    with tempfile.TemporaryDirectory(prefix="gof_weights_", ignore_cleanup_errors=True) as folder:
        torch.save(state, Path(folder) / "weights.pth")
        yield Path(folder) / "weights.pth"


def calculate(
    fake: Tensor, real: Tensor, names: Set[str], settings: FidelitySettings, weights_file: Path | None, device: torch.device
) -> dict[str, float]:
    """Return torch-fidelity's results for ``names``, a subset of fid, kid and is. fake, real: (N, 3, H, W) uint8.

    Raises UserError for too few images, or for weights that are missing, unsafe or of another network.
    """
    if min(len(fake), len(real)) < MIN_IMAGES:
        raise UserError(f"{len(fake)} generated and {len(real)} real images are too few; use at least {MIN_IMAGES} of each")
    import torch_fidelity

    flags: dict[str, Any] = {"fid": "fid" in names, "kid": "kid" in names, "isc": "is" in names}
    with trusted_copy(find_weights(settings.feature_extractor, weights_file)) as weights:
        try:
            return torch_fidelity.calculate_metrics(
                input1=_Images(fake),
                input2=_Images(real),
                **flags,
                **vars(settings),
                feature_extractor_weights_path=str(weights),
                cuda=device.type == "cuda",
                cache=False,
                save_cpu_ram=True,  # no worker processes: the images are already in memory
                verbose=False,
            )
        except RuntimeError as error:
            if "state_dict" not in str(error):
                raise
            raise UserError(f"{weights_file} is not a weights file of {settings.feature_extractor}") from None
