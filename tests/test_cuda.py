"""Tests that need a GPU; skipped if there is none. tests/test_no_waiting.py and
tests/test_triton.py test what is possible on a CPU."""

from __future__ import annotations

import contextlib
import copy
import importlib
from dataclasses import replace

import pytest
import torch

from common.errors import UserError
from dataset import training_spec
from distributed.processes import Processes
from generators.cameras import CameraPoses, camera_rays
from generators.extraction import LatticeSpec, surface_slabs
from generators.generator import ImplicitGenerator3d
from generators.renderer import RenderSettings, render
from generators.samplers import importance_samples
from generators.volume_rendering import composite_colors, compute_weights
from settings.registry import CURRICULUMS
from siren.backends import fused
from training import cuda_graphs
from training.inputs import draw_inputs
from training.run.run_state import RunState
from training.steps import StepSettings
from training.trainer import RunOptions, Trainer
from triplane import gpu_lookup, plain_lookup

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA GPU")
CUDA = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def precision():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision(before)


@contextlib.contextmanager
def no_waiting():
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def make_field(width, device, batch=2, num_layers=4):
    torch.manual_seed(0)
    overrides = [f"hidden_dim={width}", f"num_layers={num_layers}", "latent_dim=16"]
    generator = ImplicitGenerator3d(CURRICULUMS["SYNTH_TINY"].with_overrides(overrides))
    with torch.no_grad():
        generator.siren.final_layer.weight.mul_(40)
        z = torch.randn(batch, 16)
        generator.to(device)
        return generator, generator.field_of_latents(z.to(device))


def relative_error(value, expected):
    return float((value - expected).norm() / expected.norm())


@torch.no_grad()
@pytest.mark.parametrize("width", fused.WIDTHS)
@pytest.mark.parametrize(("name", "tolerance"), [("high", 4e-3), ("medium", 2e-2)])
def test_the_kernel_agrees_with_float32_on_the_cpu(width, name, tolerance):
    points = (torch.rand(2, 5000, 3) - 0.5) * 0.3
    expected = make_field(width, "cpu")[1].occupancy_logits(points)
    torch.set_float32_matmul_precision(name)
    field = make_field(width, CUDA)[1]
    for num in (5000, 1, 127, 128, 129):
        logits = field.occupancy_logits(points[:, :num].to(CUDA)).cpu()
        assert field._packed, "the kernel was not used"
        assert relative_error(logits, expected[:, :num]) < tolerance * (1 if num > 1 else 10)


@torch.no_grad()
def test_highest_precision_gives_the_plain_path():
    torch.set_float32_matmul_precision("highest")
    points = (torch.rand(2, 500, 3) - 0.5) * 0.3
    field = make_field(256, CUDA)[1]
    assert (
        relative_error(field.occupancy_logits(points.to(CUDA)).cpu(), make_field(256, "cpu")[1].occupancy_logits(points)) < 1e-4
    )
    assert not field._packed


@torch.no_grad()
def test_the_kernel_writes_every_logit_and_repeats_itself():
    field = make_field(256, CUDA)[1]
    points = (torch.rand(2, 100_003, 3, device=CUDA) - 0.5) * 0.3
    first = field.occupancy_logits(points)
    torch.empty(2, 100_003, device=CUDA).fill_(torch.nan)  # what freed memory is handed out again
    assert torch.equal(first, field.occupancy_logits(points)) and torch.isfinite(first).all()


@torch.no_grad()
def test_rendering_does_not_wait():
    generator, field = make_field(64, CUDA)
    poses = CameraPoses(torch.full((2,), 1.5, device=CUDA), torch.full((2,), 1.6, device=CUDA))
    settings = RenderSettings.from_curriculum(generator.curriculum)
    for _ in range(2):
        render(field, camera_rays(poses, 16, 12), settings)
    with no_waiting():
        render(field, camera_rays(poses, 16, 12), settings)


SIREN = ("hidden_dim=64", "normal_lambda=0.05")


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("SYNTH_TINY", SIREN),
        ("SYNTH_TINY", (*SIREN, "fade_steps=1")),  # as a graph after the fade-in and three warm-up steps
        ("SYNTH_TINY", (*SIREN, "share_images=False", "augment_target=0.6")),
        ("SYNTH_TINY", (*SIREN, "gan_loss=relativistic", "r2_lambda=0.02")),
        ("SYNTH_TRIPLANE", ("r1_interval=1",)),
    ],
)
@pytest.mark.parametrize("amp_dtype", [torch.bfloat16, torch.float16])
def test_a_training_step_does_not_wait(tmp_path, amp_dtype, name, changes):
    curriculum = CURRICULUMS[name].with_overrides([*changes])
    state = RunState(curriculum, 0, CUDA, amp_dtype)
    trainer = Trainer(state, RunOptions(tmp_path, ""), Processes(0, 1, CUDA))
    stage = curriculum.stage_at(0)
    real = real_images(curriculum, stage)
    for _ in range(cuda_graphs.NUM_WARM_UP + 2):
        state.set_learning_rates(state.step)
        trainer._step(real, stage)
        state.step += 1
    with no_waiting():
        scalars = trainer._step(real, stage)
    assert all(torch.isfinite(scalars[name]) for name in ("D/gan", "G/gan"))  # fp16 leaves out its first steps


# Batches of 8 images. The learning rates, the interval and the weights change with every step, and the top-k count once.
CHANGING = ("batch_size=8", "r1_interval=2", "lr_warmup_steps=60", "topk_interval=2", "topk_v=0.5", "decay_beta=0.05")
CHANGING_SIREN = (*CHANGING, "fade_steps=1", "normal_lambda=0.05")


@pytest.mark.parametrize(
    ("name", "changes", "num_kinds", "tolerance"),
    [
        ("SYNTH_TINY", CHANGING_SIREN, 4, 1e-4),
        ("SYNTH_TINY", (*CHANGING_SIREN, "share_images=False", "augment_target=0.6"), 4, 1e-4),
        ("SYNTH_TINY", (*CHANGING_SIREN, "batch_split=2"), 4, 1e-4),
        ("SYNTH_TINY", (*CHANGING, "normal_lambda=0.05", "fade_steps=40"), 6, 1e-3),
        ("CATS_TRIPLANE", CHANGING, 4, 0.03),  # kernels add gradients in any order, and D rounds images to bf16
        ("SYNTH_TRIPLANE", CHANGING, 4, 0.03),
    ],
)
def test_graphs_take_the_same_steps(tmp_path, name, changes, num_kinds, tolerance):
    curriculum = CURRICULUMS[name].with_overrides([*changes])
    with_graphs, one_by_one = (trainer_at(curriculum, 16, use_graphs, tmp_path) for use_graphs in (True, False))
    stage = curriculum.stage_at(16)
    real = real_images(curriculum, stage)
    kinds = set()
    for _ in range(32):
        copy_state(with_graphs.state, one_by_one.state)
        kinds.add(cuda_graphs.step_kind(with_graphs._settings(), stage))
        ends = [changes_by_a_step(trainer, real, stage) for trainer in (with_graphs, one_by_one)]
        assert all(relative_error(value, expected) < tolerance for value, expected in zip(*ends, strict=True))
        assert all(isinstance(group["lr"], float) for group in with_graphs.state.optimizer_G.param_groups)
    assert len(kinds) == num_kinds and set(with_graphs._graphs._recorded) == kinds, "a kind of step was not recorded"


def trainer_at(curriculum, step, use_graphs, output_dir):
    """Return a trainer at ``step`` whose field has a surface on most rays."""
    state = RunState(curriculum, 0, CUDA, torch.bfloat16)
    state.step, state.is_held = step, True
    if curriculum.is_siren:
        with torch.no_grad():
            state.generator.siren.final_layer.weight.mul_(40)
    return Trainer(state, RunOptions(output_dir, "", use_graphs=use_graphs), Processes(0, 1, CUDA))


def copy_state(source, target):
    """Copy all that a step changes."""
    for name in ("generator", "discriminator", "optimizer_G", "optimizer_D"):
        getattr(target, name).load_state_dict(copy.deepcopy(getattr(source, name).state_dict()))
    for name, average in target.averages.items():
        average.generator.load_state_dict(source.averages[name].generator.state_dict())
        average.num_updates = source.averages[name].num_updates
    target.step, target.augment_p = source.step, source.augment_p.clone()


def changes_by_a_step(trainer, real, stage):
    """Take a step. Return by how much it changes the weights of G, of D and of the average of G."""
    state = trainer.state
    networks = (state.generator, state.discriminator, state.averages["ema"].generator)
    before = [torch.nn.utils.parameters_to_vector(network.parameters()).detach() for network in networks]
    state.set_learning_rates(state.step)
    trainer._step(real, stage)
    state.step += 1
    after = [torch.nn.utils.parameters_to_vector(network.parameters()).detach() for network in networks]
    return [new - old for new, old in zip(after, before, strict=True)]


def real_images(curriculum, stage):
    """Return images (B, C, H, W) in [-1, 1] of random colors, with opacity if the background is random."""
    num_channels = training_spec(curriculum).num_channels
    return torch.rand(stage.batch_size, num_channels, stage.img_size, stage.img_size, device=CUDA) * 2 - 1


def test_a_gpu_gives_the_gradients_of_a_cpu():
    torch.set_float32_matmul_precision("highest")
    curriculum = CURRICULUMS["SYNTH_TINY"].with_overrides(["hidden_dim=64"])
    settings = StepSettings.at(curriculum, 10)
    gradients = []
    inputs = draw_inputs(curriculum, settings, 2, Processes(0, 1, torch.device("cpu")), seed=0, step=0, purpose="D")
    for device in ("cpu", CUDA):
        torch.manual_seed(0)
        generator = ImplicitGenerator3d(curriculum).to(device)
        poses = CameraPoses(*(angle.to(device) for angle in inputs.poses))
        rays = camera_rays(poses, settings.image_size, curriculum.fov)
        field = generator.field_of_latents(inputs.z.to(device))
        render(field, rays, replace(settings.render, num_fine=0)).rgb.square().mean().backward()
        gradients.append(torch.cat([p.grad.flatten().cpu() for p in generator.parameters() if p.grad is not None]))
    assert relative_error(gradients[1], gradients[0]) < 1e-2  # a ray at the silhouette may flip


def test_compositing_on_a_gpu_agrees_with_a_cpu():
    random = torch.Generator().manual_seed(0)
    alphas, t = torch.rand(2, 50, 8, generator=random), torch.rand(2, 50, 8, generator=random).sort(dim=-1).values
    colors, uniform = torch.rand(2, 50, 8, 3, generator=random), torch.rand(2, 50, 4, generator=random)
    results = []
    for device in ("cpu", CUDA):
        given = alphas.clone().to(device).requires_grad_(True)
        weights = compute_weights(given)
        color = composite_colors(weights, colors.to(device))
        samples = importance_samples(t.to(device), weights.detach(), 4, uniform.to(device))
        color.square().sum().backward()
        results.append([value.detach().cpu() for value in (weights, color, samples, given.grad)])
    assert all(relative_error(value, expected) < 1e-5 for value, expected in zip(results[1], results[0], strict=True))


@pytest.mark.parametrize("plane_reduce", ["sum", "product"])
@pytest.mark.parametrize("is_plain", [False, True])
def test_planes_on_a_gpu_agree_with_the_compiled_lookup(plane_reduce, is_plain, monkeypatch):
    if not is_plain and not gpu_lookup.ENABLED:
        pytest.skip("Triton is not installed or turned off")
    monkeypatch.setattr(gpu_lookup, "ENABLED", not is_plain)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    torch.set_float32_matmul_precision("highest")
    torch.manual_seed(0)
    generator = ImplicitGenerator3d(CURRICULUMS["SYNTH_TRIPLANE"].with_overrides([f"plane_reduce={plane_reduce}"]))
    with torch.no_grad():
        generator.triplane.decoder.output_weight[0].normal_()  # zero at initialization: the logits would be those of a ball
    z, points = torch.randn(2, 128), (torch.rand(2, 1000, 3) - 0.5) * 0.3
    results = []
    for device in ("cpu", CUDA):
        generator.to(device).zero_grad()
        field = generator.field_of_latents(z.to(device))
        logits, colors = field.logits_and_colors(points.to(device), points.to(device))
        (logits.square().mean() + colors.square().mean() + field.normals(points.to(device))[..., 0].square().mean()).backward()
        gradients = torch.cat([p.grad.flatten().cpu() for p in generator.parameters() if p.grad is not None])
        results.append((logits.detach().cpu(), colors.detach().cpu(), gradients))
    assert field.implementation(points.to(CUDA)) is (plain_lookup if is_plain else gpu_lookup.kernels())
    assert all(relative_error(value, expected) < 1e-4 for value, expected in zip(results[1], results[0], strict=True))


def test_compiled_passes_agree():
    torch.set_float32_matmul_precision("highest")
    generator, _ = make_field(64, CUDA)
    points = (torch.rand(2, 300, 3, device=CUDA) - 0.5) * 0.2
    results = []
    for on in (False, True):
        generator.siren.is_compiled = on
        generator.zero_grad()
        field = generator.field_of_latents(torch.ones(2, 16, device=CUDA))
        logits, colors = field.logits_and_colors(points, torch.nn.functional.normalize(points, dim=-1))
        (logits.square().mean() + colors.square().mean() + field.normals(points)[..., 0].mean()).backward()
        results.append(torch.cat([parameter.grad.flatten() for parameter in generator.parameters()]))
    assert relative_error(results[1], results[0]) < 1e-3


@torch.no_grad()
def test_extraction_through_the_kernel_has_the_signs_of_the_dense_lattice():
    field = make_field(64, CUDA, batch=1)[1]
    spec = LatticeSpec.of_cube(0.2, 64)
    slabs = surface_slabs(lambda points: field.occupancy_logits(points.unsqueeze(0))[0], spec, 0.0, CUDA)
    sparse = torch.cat([values.clone() for _, values, _ in slabs])
    axis = spec.axis(1, CUDA)
    dense = field.occupancy_logits(torch.cartesian_prod(axis, axis, axis).unsqueeze(0))[0].view(64, 64, 64)
    assert ((sparse >= 0) != (dense >= 0)).sum() <= 64**3 * 1e-4


SMALL_VIEWS = ("--image_size", "16", "--ray_step_multiplier", "1", "--output_dir", "OUT")
SCRIPTS = {  # by module: arguments, and a file that it leaves
    "cal_weighted_var": (("GENERATOR", "--seeds_end", "2", "--image_size", "16", "--output_json", "OUT/x.json"), "x.json"),
    "eval_metrics": (
        ("GENERATOR", "--dataset_path", "PHOTOS", "--metrics", "swd", "--image_size", "16", "--output_json", "OUT/x.json"),
        "x.json",
    ),
    "extract_shapes": (("GENERATOR", "--seeds", "0", "--voxel_resolution", "32", "--output_dir", "OUT"), "0_32.glb"),
    "invert": (
        (
            "PHOTOS",
            "--generator",
            "GENERATOR",
            "--num_images",
            "1",
            "--num_steps",
            "2",
            "--view_size",
            "16",
            "--output_dir",
            "OUT",
        ),
        "*",
    ),
    "render_multiview_images": (("GENERATOR", "--seeds_end", "1", *SMALL_VIEWS), "grid_0.png"),
    "render_video": (("GENERATOR", *SMALL_VIEWS), "0.mp4"),
    "render_video_interpolation": (("GENERATOR", *SMALL_VIEWS), "*.mp4"),
    "style_mixing": (("GENERATOR", "--rows", "0", "--columns", "1", "--image_size", "16", "--output_dir", "OUT"), "*.png"),
    "tools.directions": (
        ("GENERATOR", "--num_directions", "1", "--image_size", "16", "--output_dir", "OUT"),
        "*_directions.safetensors",
    ),
    "tools.eval_geometry": (
        ("GENERATOR", "--dataset_path", "TRUTH", "--num_images", "8", "--predictor_steps", "80", "--output_json", "OUT/x.json"),
        "x.json",
    ),
    "tools.mesh_score": (
        ("GENERATOR", "--seeds", "0", "--image_size", "16", "--voxel_resolution", "32", "--texture", "64", "--output_dir", "OUT"),
        "*.glb",
    ),
    "tools.pose_spread": (
        ("PHOTOS", "--num_heads", "64", "--readout_steps", "4", "--readout_cache", "OUT", "--json", "OUT/x.json"),
        "x.json",
    ),
    "tools.sheet": (("GENERATOR", "--output", "OUT/sheet.png", "--num", "4"), "sheet.png"),
    "train": (
        (
            *("--curriculum", "SYNTH_TINY", "--dataset_path", "PHOTOS", "--output_dir", "OUT", "--max_steps", "2", "--no-cache"),
            *("--set", "init_ball_radius=0"),
        ),
        "generator.safetensors",
    ),
}


@pytest.fixture(scope="module")
def heads(tmp_path_factory):
    from tools.synthetic_heads import main

    folder = tmp_path_factory.mktemp("heads")
    main(["--output_dir", str(folder), "--num_images", "64", "--image_size", "32"])
    return folder


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_script_on_a_gpu(name, heads, tiny_generator_path, tmp_path):
    arguments, leaves = SCRIPTS[name]
    words = {"PHOTOS": heads / "images", "TRUTH": heads, "GENERATOR": tiny_generator_path, "OUT": tmp_path}
    for word, value in words.items():
        arguments = tuple(argument.replace(word, str(value)) for argument in arguments)
    try:
        importlib.import_module(name).main(["--device", "cuda", *arguments])
    except UserError as refusal:  # too few images for an estimate
        assert name == "tools.pose_spread" and "can be estimated" in str(refusal)
    assert list(tmp_path.glob(leaves))
