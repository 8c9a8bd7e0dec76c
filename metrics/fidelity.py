"""FID, KID and IS through torch-fidelity, which gets tensors, and weights that were checked to be nothing but tensors.

torch-fidelity unpickles whatever file of weights it is given. So a file, the user's or a downloaded one, is first read as
data (checkpoints/torch_files.py), and torch-fidelity gets a copy that was written here.
"""

from __future__ import annotations

import shutil
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
    """Where an extractor's weights come from: a plain state dict, whose SHA-256 begins with ``hash_prefix``."""

    url: str
    hash_prefix: str

    @property
    def file_name(self) -> str:
        return self.url.rsplit("/", 1)[1]


# Only extractors whose weights are plain tensors: torch-fidelity's clip-* are TorchScript programs, and its dinov2-* fetch
# and run a repository's code.
EXTRACTORS = {
    "inception-v3-compat": WeightsSource(
        "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth", "6726825d"
    ),
    "vgg16": WeightsSource("https://download.pytorch.org/models/vgg16-397923af.pth", "397923af"),
}


@dataclass(frozen=True)
class FidelitySettings:
    """What the results depend on besides the images; recorded with them."""

    feature_extractor: str
    rng_seed: int
    batch_size: int
    kid_subsets: int
    kid_subset_size: int
    isc_splits: int

    @classmethod
    def for_counts(cls, num_real: int, num_fake: int, extractor: str, seed: int, batch_size: int) -> FidelitySettings:
        """The usual 100 subsets of 1000 and 10 splits; fewer where there are few images.

        A subset is at most half of a set: the subsets of a whole set are all the same, and their deviation 0.
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
    """The file of weights: the user's, the one downloaded before, or a fresh download (its hash is checked).

    Raises UserError for an unknown extractor, a missing file, or where the weights cannot be fetched.
    """
    if extractor not in EXTRACTORS:
        raise UserError(
            f"--feature_extractor {extractor!r} is not supported (known: {', '.join(EXTRACTORS)}); others of torch-fidelity "
            "come as programs to be run, not as weights"
        )
    if weights_file is not None:
        if not Path(weights_file).is_file():
            raise UserError(f"there is no weights file {weights_file}; see --feature_extractor_weights")
        return Path(weights_file)
    source = EXTRACTORS[extractor]
    path = Path(torch.hub.get_dir()) / "checkpoints" / source.file_name
    if not path.is_file():
        _download(extractor, source, path)
    return path


def weights_at_hand(extractor: str, weights_file: Path | None) -> Path | None:
    """As :func:`find_weights`, but nothing is fetched: None where there are none."""
    if weights_file is not None:
        return weights_file
    path = Path(torch.hub.get_dir()) / "checkpoints" / EXTRACTORS[extractor].file_name
    return path if path.is_file() else None


def _download(extractor: str, source: WeightsSource, path: Path) -> None:
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT_SECONDS)  # without one a dead network hangs for minutes
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(source.url, str(path), hash_prefix=source.hash_prefix)
    except (OSError, RuntimeError, ValueError) as error:  # URLError and timeouts are OSErrors; a wrong hash a RuntimeError
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        raise UserError(
            f"cannot fetch the weights of {extractor} ({reason}); download {source.url} elsewhere and name the file with "
            "--feature_extractor_weights, or use --metrics swd, which needs none"
        ) from None
    finally:
        socket.setdefaulttimeout(timeout)


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Named tensors of a file by torch.save or safetensors; nothing in it is run. Raises UserError for anything else."""
    require_file(path)
    if path.suffix == ".safetensors":
        import safetensors.torch

        try:
            return safetensors.torch.load_file(path)
        except Exception as error:
            raise UserError(f"{path} is damaged or no safetensors file ({printable(error)})") from None
    state = read_torch_file(path)
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path} is not a dictionary of named tensors, as the weights of a feature extractor are")
    return {str(name): value for name, value in state.items()}


@contextmanager
def trusted_copy(path: Path):
    """The path of a copy of a weights file that holds tensors alone. Raises UserError where the file holds anything else."""
    state = read_state_dict(path)
    folder = tempfile.mkdtemp(prefix="gof_weights_")
    try:
        torch.save(state, Path(folder) / "weights.pth")
        yield Path(folder) / "weights.pth"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def calculate(
    fake: Tensor, real: Tensor, names: Set[str], settings: FidelitySettings, weights_file: Path | None, device: torch.device
) -> dict[str, float]:
    """torch-fidelity's results for ``names`` among fid, kid and is. fake, real: (N, 3, H, W) uint8.

    Raises UserError for too few images, or weights that are missing, unsafe, or another network's.
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
                save_cpu_ram=True,  # no worker processes: the images are in memory already
                verbose=False,
            )
        except RuntimeError as error:
            if "state_dict" not in str(error):
                raise
            raise UserError(f"{weights_file} holds the weights of another network than {settings.feature_extractor}") from None
