"""Tri-planes: the compiled lookup against PyTorch, the field's geometry, and files, psi and training."""

from __future__ import annotations

import json
import math
import platform
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import extract_shapes
import render_video_interpolation
from checkpoints.files import load_training_checkpoint, save_inference
from checkpoints.loading import load_generator
from common import native
from common.errors import UserError
from fields.interface import Field
from generators.cameras import camera_rays
from generators.generator import ImplicitGenerator3d
from generators.pose_prior import mean_poses
from generators.renderer import RenderSettings, render
from settings.curriculum import Curriculum
from settings.registry import CURRICULUMS
from train import main as train
from training.mirror import mirror_field
from triplane import lookup, modulation, native_lookup, plain_lookup
from triplane.decoder import DecoderWeights
from triplane.growth import grow_planes
from triplane.modulation import modulate, plain_modulate
from triplane.plain_lookup import Frame, Planes

RADIUS = 0.08
FLIP_Z = torch.tensor([1.0, 1.0, -1.0])
SMALL = [
    *("model=TRIPLANE", "view_dependent=False", "latent_dim=8", "w_dim=8", "backbone_channels=(12,8,8)", "decoder_dim=8"),
    *("disc_channels=(4,4,4,4,4,4,8,8,8)", "num_steps_coarse=6", "num_steps_surface=3", "num_steps_fine=2"),
    *("batch_size=4", "img_size=8"),
]


def small_curriculum(*more: str) -> Curriculum:
    return CURRICULUMS["SYNTH_TINY"].with_overrides([*SMALL, *more])


def make_generator(*more: str) -> ImplicitGenerator3d:
    """A generator whose logits are not only those of the ball."""
    torch.manual_seed(0)
    generator = ImplicitGenerator3d(small_curriculum(*more))
    with torch.no_grad():
        generator.triplane.decoder.output_weight[0].normal_()
    return generator


def draw_points(batch: int, num: int, extent: float = 0.12) -> torch.Tensor:
    return (torch.rand(batch, num, 3, generator=torch.Generator().manual_seed(1)) * 2 - 1) * extent


def draw_case(num_channels: int, hidden_dim: int, num: int = 203, is_product: bool = False) -> tuple[Planes, torch.Tensor]:
    """Planes of three latents, whose matrix is not orthogonal, and points, some beyond the planes; all float64."""
    random = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random, dtype=torch.float64)

    decoder = DecoderWeights(
        normal(hidden_dim, num_channels) / num_channels**0.5,
        normal(hidden_dim),
        normal(4, hidden_dim) / hidden_dim**0.5,
        normal(4),
    )
    matrix = torch.eye(3, dtype=torch.float64) / 0.2 + 0.1 * normal(3, 3)
    axes = torch.tensor([0.4, 0.7, 0.5], dtype=torch.float64)
    frame = Frame.of(matrix, axes, torch.tensor(7.5, dtype=torch.float64), 6.0)
    points = (torch.rand(3, num, 3, generator=random, dtype=torch.float64) - 0.5) * 0.5
    return Planes(normal(3, 16, 16, 3, num_channels), decoder, frame, is_product), points


def to_float32(planes: Planes) -> Planes:
    """The same planes in float32. Their tensors need gradients and have none before them."""
    leaves = [tensor.detach().float().requires_grad_(True) for tensor in planes.leaves]
    return Planes.of(leaves, Frame(planes.frame.values.float()), planes.is_product)


def skip_without_compiled_code() -> None:
    if native_lookup.library() is None or modulation._native() is None:
        pytest.skip("no C compiler here")


@pytest.mark.parametrize("with_colors", [True, False])
@pytest.mark.parametrize("is_product", [False, True])
@pytest.mark.parametrize(("num_channels", "hidden_dim"), [(16, 32), (16, 12), (32, 32)])
def test_compiled_lookup_and_its_gradients_are_those_of_pytorch(num_channels, hidden_dim, is_product, with_colors):
    skip_without_compiled_code()
    exact_planes, points = draw_case(num_channels, hidden_dim, is_product=is_product)
    exact_leaves = [tensor.requires_grad_(True) for tensor in exact_planes.leaves]
    planes = to_float32(exact_planes)
    assert lookup.implementation_for(planes, points.float()) is native_lookup
    exact = plain_lookup.query(exact_planes, points, with_colors)
    outputs = lookup.query(planes, points.float(), with_colors)
    assert (exact[1] is None) == (outputs[1] is None) == (not with_colors)
    losses = []
    for logits, colors in (exact, outputs):
        pattern = torch.arange(logits.numel(), dtype=logits.dtype).view_as(logits).sin()
        losses.append((logits * pattern).sum() + (0 if colors is None else (colors * pattern.unsqueeze(-1)).sum()))
    for a, b in zip(exact, outputs, strict=True):
        assert a is None or float((a - b).abs().max().detach()) < 1e-4
    gradients = [torch.autograd.grad(loss, leaves) for loss, leaves in zip(losses, (exact_leaves, planes.leaves), strict=True)]
    for a, b in zip(*gradients, strict=True):
        assert float((a - b).abs().max() / a.abs().max()) < 2e-5


@pytest.mark.parametrize("is_plain", [True, False])
def test_moving_along_an_axis_changes_the_values_of_two_planes(is_plain):
    """Also, the planes' axes are correct: XY, XZ, YZ."""
    if not is_plain:
        skip_without_compiled_code()
    decoder = to_float32(draw_case(16, 8)[0]).decoder
    frame = Frame.of(torch.eye(3), torch.ones(3), torch.tensor(0.0), 6.0)
    query = plain_lookup.query if is_plain else lookup.query
    start = torch.tensor([-0.5, 0.1, 0.7])
    points = torch.cat([start[None], start + 0.01 * torch.eye(3)])[None]
    changed = []
    for plane, (x_axis, y_axis) in enumerate(((0, 1), (0, 2), (1, 2))):
        texels = torch.zeros(1, 9, 9, 3, 16)
        y, x = (round(float(start[axis]) * 4 + 4) for axis in (y_axis, x_axis))
        texels[:, y - 1 : y + 2, x - 1 : x + 2, plane] = torch.randn(3, 3, 16)  # nothing elsewhere on this plane
        logits = query(Planes(texels, decoder, frame, False), points, False)[0][0].detach()
        empty = query(Planes(torch.zeros_like(texels), decoder, frame, False), points, False)[0][0].detach()
        assert abs(float(logits[0] - empty[0])) > 1e-3
        changed.append([float(step) != 0 for step in logits[1:] - logits[0]])
    assert changed == [[True, True, False], [True, False, True], [False, True, True]]


@pytest.mark.parametrize(("flag", "num_lanes"), [("-mno-avx", 4), ("-mno-avx512f", 8), ("-D__AVX512F__=1", 16)])
def test_compiled_lookup_with_vectors_of_other_processors(monkeypatch, tmp_path, flag, num_lanes):
    """Where the processor has no such vectors, the compiler replaces them."""
    skip_without_compiled_code()
    if platform.machine() != "x86_64" or (num_lanes == 8 and " avx " not in Path("/proc/cpuinfo").read_text()):
        pytest.skip("compiles for x86-64")
    count = tmp_path / "count.c"
    count.write_text(native_lookup.SOURCE.read_text() + "\nint num_lanes(void) { return BLOCK; }\n")
    monkeypatch.setattr(native, "FLAGS", (*native.FLAGS, flag))
    monkeypatch.setattr(native, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(native_lookup, "SOURCE", count)
    found = native_lookup.library.__wrapped__()
    assert found.num_lanes() == num_lanes
    cases = [(draw_case(num_channels, 12, 45), with_colors) for num_channels in (16, 32) for with_colors in (False, True)]
    for (exact_planes, points), with_colors in cases:
        planes, points = to_float32(exact_planes), points.float()
        grad_logits, grad_colors = points.sin().sum(dim=-1), points.cos() if with_colors else None
        results = []
        for library in (native_lookup.library(), found):
            with monkeypatch.context() as patch:
                patch.setattr(native_lookup, "library", lambda library=library: library)
                logits, colors = native_lookup.forward(planes, points, with_colors)
                texels, decoder = native_lookup.backward(planes, points, colors, grad_logits, grad_colors)
            results.append([logits, *([colors] if with_colors else []), texels, *decoder])
        for a, b in zip(*results, strict=True):
            assert torch.allclose(a, b, rtol=1e-5, atol=1e-5 * float(a.abs().max()))


def test_negligible_gradients_are_left_out_and_no_others():
    """Latent by latent; NaN and infinity are kept."""
    skip_without_compiled_code()
    planes, points = draw_case(16, 8)
    planes, points = to_float32(planes), points.float()
    colors = native_lookup.forward(planes, points, True)[1]
    random = torch.Generator().manual_seed(2)
    grad_logits = torch.randn(points.shape[:2], generator=random) * torch.tensor([1.0, 1e-6, 1e-12]).unsqueeze(1)
    grad_colors = torch.randn(points.shape, generator=random) * grad_logits.abs().unsqueeze(-1)
    grad_logits[:, ::3] *= 1e-12
    grad_colors[:, ::3] *= 1e-12
    grad_logits[:, 50:80] = 0
    grad_colors[:, 50:80] = 0
    small = grad_logits.abs() + grad_colors.abs().sum(dim=-1) < 1e-11 * torch.tensor([1.0, 1e-6, 1e-12]).unsqueeze(1)
    kept_logits, kept_colors = grad_logits.masked_fill(small, 0), grad_colors.masked_fill(small.unsqueeze(-1), 0)
    assert 0.4 < float(small.float().mean()) < 0.5
    found = native_lookup.backward(planes, points, colors, grad_logits, grad_colors)
    expected = native_lookup.backward(planes, points, colors, kept_logits, kept_colors)
    assert torch.equal(found[0], expected[0]) and all(torch.equal(a, b) for a, b in zip(found[1], expected[1], strict=True))
    exact_planes = Planes.of([leaf.detach().double().requires_grad_(True) for leaf in planes.leaves], planes.frame, False)
    exact_planes = exact_planes._replace(frame=Frame(planes.frame.values.double()))
    logits, exact_colors = plain_lookup.query(exact_planes, points.double(), True)
    exact = torch.autograd.grad((logits, exact_colors), exact_planes.texels, (grad_logits.double(), grad_colors.double()))[0]
    for a, b in zip(found[0], exact, strict=True):
        assert float((a - b).norm() / b.norm()) < 1e-5
    for wrong in (torch.nan, torch.inf):
        kept_logits[1, 3] = wrong
        texels = native_lookup.backward(planes, points, colors, kept_logits, kept_colors)[0]
        assert not texels[1].isfinite().all() and texels[0].isfinite().all() and torch.equal(texels[2], found[0][2])


def test_gradients_do_not_depend_on_the_number_of_threads():
    skip_without_compiled_code()
    exact_planes, points = draw_case(16, 8, num=500)
    gradients = []
    threads = torch.get_num_threads()
    for num_threads in (1, 2):
        torch.set_num_threads(num_threads)
        planes = to_float32(exact_planes)
        logits, colors = lookup.query(planes, points.float(), True)
        gradients.append(torch.autograd.grad(logits.sum() + colors.square().sum(), planes.leaves))
    torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("num_channels", [5, 16, 44])
def test_compiled_modulation_and_its_gradients_are_those_of_pytorch(num_channels):
    skip_without_compiled_code()
    random = torch.Generator().manual_seed(0)
    shapes = ((3, num_channels, 5, 4), (3, num_channels), (num_channels,), (3, num_channels))
    exact_leaves = [torch.randn(shape, generator=random, dtype=torch.float64).requires_grad_(True) for shape in shapes]
    leaves = [tensor.detach().float().requires_grad_(True) for tensor in exact_leaves]
    exact, output = plain_modulate(*exact_leaves), modulate(*leaves)
    assert torch.allclose(exact, output.double(), atol=1e-5)
    pattern = torch.arange(exact.numel(), dtype=torch.float64).view_as(exact).sin()
    expected = torch.autograd.grad((exact * pattern).sum(), exact_leaves)
    for a, b in zip(expected, torch.autograd.grad((output * pattern.float()).sum(), leaves), strict=True):
        assert a.shape == b.shape and float((a - b).abs().max() / a.abs().max()) < 1e-5


@torch.no_grad()
def test_the_start_is_a_ball_for_every_latent():
    torch.manual_seed(0)
    generator = ImplicitGenerator3d(small_curriculum("init_ball_radius=0.08"))
    points = draw_points(5, 400)
    logits = generator.field_of_latents(torch.randn(5, 8)).occupancy_logits(points)
    assert torch.equal(logits > 0, points.norm(dim=-1) < RADIUS)


@torch.no_grad()
@pytest.mark.parametrize("is_plain", [True, False])
@pytest.mark.parametrize("double_level", [None, 0.0])
def test_the_start_is_an_ellipsoid_if_the_ball_is_stretched(is_plain, double_level):
    """Also after a reflection that exchanges two of its axes, with and without inversion."""
    if not is_plain:
        skip_without_compiled_code()
    generator = ImplicitGenerator3d(small_curriculum("init_ball_radius=0.06", "init_ball_stretch=(0.9,1.5,1.2)"))
    points, sign = draw_points(2, 2000), 1
    for matrix in ([[1, 0, 0], [0, 1, 0], [0, 0, 1]], [[0, -1, 0], [-1, 0, 0], [0, 0, 1]]):
        generator.triplane.mirror(torch.tensor(matrix, dtype=torch.float64), double_level)
        sign *= 1 if double_level is None else -1
        planes = generator.field_of_latents(torch.randn(2, 8))._planes
        assert is_plain or lookup.implementation_for(planes, points) is native_lookup
        logits = (plain_lookup.query if is_plain else lookup.query)(planes, points, False)[0]
        oriented = points @ torch.tensor(matrix, dtype=torch.float32).t()
        distance = (oriented / torch.tensor([0.9, 1.5, 1.2])).norm(dim=-1)
        assert torch.allclose(logits, sign * (75 * (0.06 - distance)).clamp(-6, 6), atol=1e-5)


def test_only_a_stretched_ball_changes_what_a_file_holds(tmp_path):
    """Files and digests of other generators are those from before the setting."""
    assert "triplane.ball_stretch" not in make_generator("init_ball_radius=0.08").state_dict()
    stretched = make_generator("init_ball_radius=0.06", "init_ball_stretch=(1,1.5,1)")
    path = tmp_path / "generator.safetensors"
    save_inference(path, stretched.eval(), step=3)
    assert torch.equal(load_generator(path).generator.triplane.ball_stretch, torch.tensor([1, 1.5, 1]))
    with pytest.raises(UserError, match=r"trained with init_ball_stretch \(1.0, 1.5, 1.0\), but curriculum"):
        load_generator(path, small_curriculum("init_ball_radius=0.06"))


def test_normals_follow_the_gradient_of_a_smooth_field():
    """Against autograd through a lookup of planes eight times as fine, whose bilinear values are nearly smooth."""
    generator = make_generator("backbone_channels=(12,8,8,8)")
    field = generator.field_of_latents(torch.randn(2, 8))
    coarse = torch.nn.functional.interpolate(
        field._planes.texels.flatten(3).permute(0, 3, 1, 2)[:, :, ::4, ::4], size=32, mode="bicubic", align_corners=True
    )
    fine = torch.nn.functional.interpolate(coarse, size=256, mode="bicubic", align_corners=True)
    coarse, fine = (x.permute(0, 2, 3, 1).unflatten(3, (3, 16)).contiguous().detach() for x in (coarse, fine))
    field._planes, fine_planes = (field._planes._replace(texels=texels) for texels in (coarse, fine))
    directions = torch.nn.functional.normalize(torch.randn(2, 200, 3), dim=-1)
    points = (directions * RADIUS).requires_grad_(True)
    normals = field.normals(points.detach())
    logits = plain_lookup.query(fine_planes, points, False)[0]
    expected = -torch.nn.functional.normalize(torch.autograd.grad(logits.sum(), points)[0], dim=-1)
    degrees = torch.rad2deg(torch.acos((normals * expected).sum(dim=-1).clamp(-1, 1))).detach()
    assert float(degrees.median()) < 3 and float(degrees.quantile(0.95)) < 12
    assert 0.3 < float((normals * directions).sum(dim=-1).detach().mean()) < 0.999  # outward, and not the ball's alone


def test_normals_have_a_gradient_with_respect_to_all_weights_of_the_logit():
    generator = make_generator()
    field = generator.field_of_latents(torch.randn(2, 8))
    field.normals(draw_points(2, 50)).square()[..., 0].sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in generator.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_an_inference_file_holds_the_whole_generator(tmp_path, dtype):
    generator = make_generator().eval()
    save_inference(tmp_path / "g.safetensors", generator, step=7, dtype=dtype)
    loaded = load_generator(tmp_path / "g.safetensors").generator
    points, z = draw_points(3, 100), torch.randn(3, 8)
    tolerance = 0 if dtype == torch.float32 else 0.05
    for psi in (1.0, 0.5):
        with torch.no_grad():
            before, after = (g.field_of_latents(z, psi).occupancy_logits(points) for g in (generator, loaded))
        assert float((before - after).abs().max()) <= tolerance
    with pytest.raises(UserError, match="backbone_channels"):
        load_generator(tmp_path / "g.safetensors", small_curriculum("backbone_channels=(12,8)"))


@torch.no_grad()
def test_psi_lerp_and_mixing_by_layer():
    generator = make_generator()
    z = torch.randn(2, 8)
    styles, mean = generator.styles(z), generator.compute_truncation_mean(200)
    assert mean.styles.shape == (1, 5, 8)
    assert torch.allclose(generator.styles(z, 0.0).styles, mean.styles.expand(2, -1, -1))
    assert torch.allclose(generator.styles(z, 0.7).styles, mean.styles + 0.7 * (styles.styles - mean.styles))
    points = draw_points(1, 100)
    rows = [type(styles)(styles.styles[i : i + 1]) for i in (0, 1)]

    def logits(styles):
        return generator.field(styles).occupancy_logits(points)

    assert torch.equal(logits(rows[0].mix(rows[1], 5)), logits(rows[0]))
    assert torch.equal(logits(rows[0].mix(rows[1], 0)), logits(rows[1]))
    mixed = logits(rows[0].mix(rows[1], 3))
    assert not torch.allclose(mixed, logits(rows[0])) and not torch.allclose(mixed, logits(rows[1]))


@torch.no_grad()
@pytest.mark.parametrize("invert", [False, True])
def test_mirroring_is_exact_for_every_latent(invert):
    generator, z, points = make_generator("tau=0.3"), torch.randn(3, 8), draw_points(3, 100)
    logits, colors = generator.field_of_latents(z).logits_and_colors(points * FLIP_Z, points)
    before = generator.field_of_latents(z).occupancy_logits(points)
    mirror_field(generator, invert)
    mirrored_logits, mirrored_colors = generator.field_of_latents(z).logits_and_colors(points, points)
    expected = 2 * math.log(0.3 / 0.7) - logits if invert else logits
    assert not torch.allclose(before, mirrored_logits, atol=1e-4)
    assert torch.allclose(expected, mirrored_logits, atol=1e-5) and torch.allclose(colors, mirrored_colors, atol=1e-5)


@torch.no_grad()
def test_chunks_give_the_same_as_the_whole(monkeypatch):
    generator, points = make_generator(), draw_points(3, 100)
    field = generator.field_of_latents(torch.randn(3, 8))
    whole = field.logits_and_colors(points, points)
    monkeypatch.setattr("fields.interface.CHUNK", 3 * 7)
    assert all(torch.equal(a, b) for a, b in zip(whole, field.logits_and_colors(points, points), strict=True))
    with pytest.raises(ValueError, match="points must have shape"):
        field.occupancy_logits(points[:2])


@torch.no_grad()
def test_the_renderer_finds_the_surface_of_the_ball():
    torch.manual_seed(0)
    curriculum = small_curriculum("init_ball_radius=0.08", "num_steps_coarse=12")
    generator = ImplicitGenerator3d(curriculum)
    field: Field = generator.field_of_latents(torch.randn(2, 8))
    rays = camera_rays(mean_poses(curriculum, 2, torch.device("cpu")), 17, curriculum.fov)
    surface = render(field, rays, RenderSettings.from_curriculum(curriculum)).surface
    middle = 17 * 17 // 2
    assert torch.allclose(surface.t[:, middle], torch.tensor(1 - RADIUS), atol=1e-4)
    assert surface.hit_mask[:, middle].all() and not surface.hit_mask[:, 0].any()


# -- through the commands ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for i in range(6):
        Image.fromarray(random.integers(0, 255, (12, 12, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return folder


def run(photos: Path, output: Path, *more: str, changes: tuple[str, ...] = ()) -> None:
    settings = [*SMALL, *changes, "init_ball_radius=0.08", "ball_hold_steps=50", "r2_lambda=0.1", "gan_loss=relativistic"]
    train(
        [
            *("--curriculum", "SYNTH_TINY", "--dataset_path", str(photos), "--output_dir", str(output), "--device", "cpu"),
            *("--no-cache", "--no-use_logger", "--log_interval", "1", "--sample_interval", "0", *more, "--set", *settings),
        ]
    )


def test_a_resumed_run_equals_an_undisturbed_one(photos, tmp_path):
    run(photos, tmp_path / "whole", "--max_steps", "4")
    run(photos, tmp_path / "parts", "--max_steps", "2")
    run(photos, tmp_path / "parts", "--max_steps", "4")
    whole, parts = (load_training_checkpoint(tmp_path / name / "checkpoint_0000004.pt") for name in ("whole", "parts"))
    for key in ("generator", "discriminator", "ema", "ema2"):
        assert all(torch.equal(value, parts[key][name]) for name, value in whole[key].items())
    torch.manual_seed(0)
    start = ImplicitGenerator3d(small_curriculum()).state_dict()
    assert not torch.equal(whole["generator"]["triplane.backbone.start"], start["triplane.backbone.start"])
    lines = [json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    assert all(math.isfinite(value) for line in lines for value in line.values() if isinstance(value, float))


def test_planes_of_twice_the_resolution_start_with_the_same_values():
    small = make_generator()
    channels = small.curriculum.backbone_channels
    torch.manual_seed(1)
    large = ImplicitGenerator3d(replace(small.curriculum, backbone_channels=(*channels, 4)))
    weights = dict(small.state_dict())
    assert grow_planes(weights, large.state_dict())
    large.load_state_dict(weights)
    assert not grow_planes(weights, large.state_dict())
    z = torch.randn(2, small.curriculum.latent_dim)
    with torch.no_grad():
        before, after = (
            generator.triplane.backbone(generator.styles(z).styles[:, :1].expand(-1, 7, -1)) for generator in (small, large)
        )
    size = before.shape[1]
    assert after.shape[1] == 2 * size
    # The new texels lie at a quarter and three quarters between the old ones.
    between = 0.75 * before[:, :-1] + 0.25 * before[:, 1:]
    between = 0.75 * between[:, :, :-1] + 0.25 * between[:, :, 1:]
    torch.testing.assert_close(after[:, 1:-1:2, 1:-1:2], between, rtol=1e-4, atol=1e-5)
    texels = torch.arange(size) + 0.25
    old_place = small.triplane.extent * (2 * texels / (size - 1) - 1)
    new_place = large.triplane.extent * (2 * (2 * texels + 0.5) / (2 * size - 1) - 1)
    torch.testing.assert_close(new_place, old_place)


def test_a_run_starts_from_one_with_smaller_planes(photos, tmp_path):
    run(photos, tmp_path / "small", "--max_steps", "2")
    command = ["--load_dir", str(tmp_path / "small"), "--set_step", "2", "--max_steps", "4"]
    run(photos, tmp_path / "large", *command, changes=("backbone_channels=(12,8,8,4)",))
    loaded = load_generator(tmp_path / "large" / "generator.safetensors")
    assert loaded.curriculum.backbone_channels == (12, 8, 8, 4)
    assert loaded.generator.triplane.backbone.to_planes[-1].weight.abs().max() > 0


def test_meshes_and_videos_come_from_a_tri_plane_file(tmp_path):
    path = tmp_path / "g.safetensors"
    torch.manual_seed(0)
    save_inference(path, ImplicitGenerator3d(small_curriculum("init_ball_radius=0.08")).eval(), step=0)
    extract_shapes.main([str(path), "--seeds", "0", "--voxel_resolution", "40", "--output_dir", str(tmp_path / "shapes")])
    voxels = np.load(tmp_path / "shapes" / "0_40_voxel.npy")
    axis = np.linspace(-0.15, 0.15, 40)
    distance = np.linalg.norm(np.stack(np.meshgrid(axis, axis, axis, indexing="ij")), axis=0)
    assert np.array_equal(voxels > 0.5, distance < RADIUS)
    more = ["--num_frames", "2", "--image_size", "16", "--output_dir", str(tmp_path / "videos")]
    render_video_interpolation.main([str(path), "--seeds", "0", "1", *more])
    assert list((tmp_path / "videos").glob("interpolation_0_1_front*"))


def test_invalid_settings_are_rejected_by_name(photos, tmp_path):
    with pytest.raises(UserError, match="--compile"):
        run(photos, tmp_path, "--compile")
    for setting, message in (
        ("view_dependent=True", "view_dependent"),
        ("backbone_channels=()", "backbone_channels"),
        ("plane_channels=20", "plane_channels"),
        ("plane_reduce=mean", "plane_reduce"),
    ):
        with pytest.raises(UserError, match=message):
            small_curriculum(setting)
