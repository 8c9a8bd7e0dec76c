"""Interpolating the weights of two checkpoints (tools/interpolate_weights.py)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from checkpoints.files import save_inference
from checkpoints.loading import load_generator
from common.errors import UserError
from generators.generator import ImplicitGenerator3d, draw_latents
from settings.curriculum import Curriculum
from settings.registry import get_curriculum
from small_models import tiny_curriculum
from tools.interpolate_weights import main

SMALL = ["backbone_channels=(8,8,8)", "plane_channels=16", "latent_dim=8", "w_dim=8", "decoder_dim=8"]


def save_random(
    path: Path, curriculum: Curriculum, seed: int, step: int, ball_slope: float | None = None, is_mirrored: bool = False
) -> Path:
    """Write a generator with random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        generator = ImplicitGenerator3d(curriculum)
        with torch.no_grad():
            for parameter in generator.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    if ball_slope is not None:
        generator.triplane.ball_slope.fill_(ball_slope)
    if is_mirrored:
        generator.triplane.mirror(torch.diag(torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64)), double_level=None)
    save_inference(path, generator, step)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("generators")
    curriculum = get_curriculum("CATS_TRIPLANE").with_overrides(SMALL)
    save_random(folder / "first.safetensors", curriculum, 0, 10)
    save_random(folder / "second.safetensors", curriculum, 1, 20, ball_slope=50)
    save_random(folder / "finer.safetensors", curriculum.with_overrides(["backbone_channels=(8,8,8,8)"]), 1, 20)
    save_random(folder / "wide.safetensors", curriculum.with_overrides(["decoder_dim=16"]), 0, 10)
    save_random(folder / "mirrored.safetensors", curriculum, 0, 10, is_mirrored=True)
    save_random(folder / "siren.safetensors", tiny_curriculum(), 0, 10)
    return folder


def run(folder: Path, output: Path, *options: str, first: str = "first", second: str = "second") -> ImplicitGenerator3d:
    main([str(folder / f"{first}.safetensors"), str(folder / f"{second}.safetensors"), "--output", str(output), *options])
    return load_generator(output).generator


def amounts(folder: Path, mixed: ImplicitGenerator3d) -> dict[str, float]:
    """Return the amount that each parameter of ``mixed`` was interpolated with, by least squares."""
    first = dict(load_generator(folder / "first.safetensors").generator.named_parameters())
    second = dict(load_generator(folder / "second.safetensors").generator.named_parameters())
    found = {}
    for name, value in mixed.named_parameters():
        change = (second[name] - first[name]).flatten()
        moved = (value - first[name]).flatten()
        found[name] = float(moved @ change / (change @ change))
        assert torch.allclose(moved, found[name] * change, atol=1e-5), name
    return found


@torch.no_grad()
def test_all_layers_move_by_the_amount(folder: Path, tmp_path: Path) -> None:
    mixed = run(folder, tmp_path / "mixed.safetensors", "--amount", "1.4")
    assert all(amount == pytest.approx(1.4, abs=1e-4) for amount in amounts(folder, mixed).values())
    assert float(mixed.triplane.ball_slope) == 50, "buffers are those of the second generator"
    assert load_generator(tmp_path / "mixed.safetensors").step == 20


@torch.no_grad()
def test_coarse_layers_move_by_their_own_amount(folder: Path, tmp_path: Path) -> None:
    mixed = run(folder, tmp_path / "mixed.safetensors", "--coarse_amount", "0", "--coarse_resolutions", "1")
    found = amounts(folder, mixed)
    for name, amount in found.items():
        is_coarse = "mapping_network" in name or "backbone.start" in name or "blocks.0." in name
        assert amount == pytest.approx(0 if is_coarse else 1, abs=1e-4), name
    assert {"triplane.backbone.start", "triplane.backbone.blocks.0.0.weight"} <= found.keys()


@torch.no_grad()
def test_coarse_layers_may_come_from_a_generator_with_fewer_texels(folder: Path, tmp_path: Path) -> None:
    mixed = run(folder, tmp_path / "mixed.safetensors", "--coarse_amount", "0", second="finer")
    first = dict(load_generator(folder / "first.safetensors").generator.named_parameters())
    finer = dict(load_generator(folder / "finer.safetensors").generator.named_parameters())
    for name, value in mixed.named_parameters():
        is_coarse = "mapping" in name or "start" in name or "blocks.0." in name or "blocks.1." in name
        assert torch.equal(value, (first if is_coarse else finer)[name]), name


@torch.no_grad()
def test_sirens_are_interpolated_in_all_layers(folder: Path, tmp_path: Path) -> None:
    save_random(tmp_path / "later.safetensors", tiny_curriculum(), 1, 20)
    main(
        [
            str(folder / "siren.safetensors"),
            str(tmp_path / "later.safetensors"),
            "--amount",
            "0.25",
            "--output",
            str(tmp_path / "m"),
        ]
    )
    first, later, mixed = (
        load_generator(p).generator.siren for p in (folder / "siren.safetensors", tmp_path / "later.safetensors", tmp_path / "m")
    )
    for a, b, c in zip(first.parameters(), later.parameters(), mixed.parameters(), strict=True):
        assert torch.allclose(c, 0.75 * a + 0.25 * b, atol=1e-6)


@torch.no_grad()
def test_truncation_means_are_those_of_the_result(folder: Path, tmp_path: Path) -> None:
    mixed = run(folder, tmp_path / "mixed.safetensors", "--amount", "0.5")
    z = draw_latents(2, mixed.curriculum, torch.Generator().manual_seed(0))
    stored = mixed.styles(z, psi=0)
    mixed.truncation_mean = None
    for part, expected in zip(stored, mixed.styles(z, psi=0), strict=True):
        assert torch.allclose(part, expected, atol=1e-6)


@pytest.mark.parametrize(
    "first, second, options, message",
    [
        ("first", "second", [], "second.safetensors unchanged; use --coarse_amount 0"),
        (
            "first",
            "wide",
            ["--amount", "0.5"],
            r"different networks \(triplane.decoder.hidden_weight\); use two checkpoints of one run",
        ),
        ("first", "siren", ["--amount", "0.5"], "have different networks"),
        ("first", "second", ["--coarse_amount", "1"], "second.safetensors unchanged"),
        ("first", "mirrored", ["--amount", "0.5"], "was mirrored, but not the other"),
        ("mirrored", "second", ["--amount", "0.5"], "was mirrored, but not the other; use checkpoints after that step"),
        ("siren", "siren", ["--coarse_amount", "0"], "needs tri-plane generators, but the model is SPATIALSIRENBASELINE"),
        ("first", "second", ["--coarse_amount", "0", "--coarse_resolutions", "4"], "the backbone has 3"),
    ],
)
def test_generators_that_do_not_fit_are_refused(
    folder: Path, tmp_path: Path, first: str, second: str, options: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        run(folder, tmp_path / "mixed.safetensors", *options, first=first, second=second)
    assert not (tmp_path / "mixed.safetensors").exists()


def test_an_existing_file_is_kept(folder: Path) -> None:
    before = (folder / "second.safetensors").read_bytes()
    with pytest.raises(UserError, match="already exists; choose another --output"):
        run(folder, folder / "second.safetensors", "--amount", "0.5")
    assert (folder / "second.safetensors").read_bytes() == before
