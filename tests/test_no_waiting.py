"""Nothing in a training step or in rendering of a SIREN waits for the GPU: the path of a GPU, run here on the meta device.

A meta tensor has a shape and no values. Whatever needs a value on the host (``.item()``, ``nonzero``, a boolean mask as an
index) fails on it by itself; what copies from the host (``torch.tensor(..., device=...)``, lists as indices) is caught by
:class:`NoWaiting`, where this version of PyTorch lets it be seen. Some of PyTorch's own gradients look at values, but not of
meta tensors: those are found by the profiler, on CPU tensors. tests/test_cuda.py repeats this where there is a GPU, with
PyTorch's own detector, and for tri-planes too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from discriminators.progressive import ProgressiveEncoderDiscriminator
from generators.cameras import CameraPoses, camera_rays
from generators.generator import ImplicitGenerator3d
from generators.renderer import RenderSettings, render
from generators.samplers import RenderNoise
from settings.registry import CURRICULUMS
from siren import field
from siren.backends import folded
from training import losses
from training.augmentation import NUM_UNIFORMS, adapted
from training.ema import MovingAverage
from training.losses import topk_image_weights
from training.run.nonfinite import BadSteps, Guard, are_finite, nan_unless_finite
from training.steps import GeneratorInputs, Schedule, StepSettings, discriminator_losses, generate, generator_losses

BATCH, SIZE = 4, 16
META = torch.device("meta")


def shows_constants() -> bool:
    """Return whether a dispatch mode sees how constants reach the meta device, which depends on PyTorch's version."""
    seen = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    with Watch():
        torch.as_tensor(0.5, device=META)
    return "lift_fresh" in seen or "_to_copy" in seen


WAITING = ("_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "unique", "equal", "lift_fresh")


UNSEEN = pytest.mark.xfail(
    not shows_constants(),
    reason="this PyTorch makes constants on the meta device unseen; tests/test_cuda.py sees them",
    strict=True,
)


class NoWaiting(TorchDispatchMode):
    """Raises if an operation copies a value to the host, or from it."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in WAITING:
            raise AssertionError(f"aten::{name} waits for a GPU")
        result = func(*args, **(kwargs or {}))
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        devices = {leaf.device.type for leaf in inputs if leaf.dim() > 0} | {leaf.device.type for leaf in outputs}
        if len(devices) > 1:
            raise AssertionError(f"aten::{name} copies between {sorted(devices)}")
        return result


def meta_noise(settings: StepSettings) -> RenderNoise:
    rays = SIZE * SIZE
    sizes = (settings.render.num_surface, 0, settings.render.num_fine)
    return RenderNoise(*(torch.empty(BATCH, rays, num, device=META) if num else None for num in sizes))


def number() -> Tensor:
    return torch.empty((), device=META)


@pytest.fixture(autouse=True)
def no_autocast(monkeypatch):
    """The meta device has none; it would change dtypes alone."""
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: contextlib.nullcontext())


@pytest.fixture(params=[("SPATIALSIRENBASELINE", "non_saturating", 0), ("EmbeddingPiGAN256", "relativistic", 1)])
def curriculum(request):
    model, gan_loss, r2_lambda = request.param
    return CURRICULUMS["SYNTH_TINY"].with_overrides(
        [f"model={model}", f"gan_loss={gan_loss}", f"r2_lambda={r2_lambda}", "hidden_dim=32", "latent_dim=16", "normal_lambda=1"]
    )


@pytest.fixture
def parts(curriculum):
    """A complete step on the meta device."""
    with META:
        generator, discriminator = ImplicitGenerator3d(curriculum), ProgressiveEncoderDiscriminator(curriculum)
    settings = replace(StepSettings.at(curriculum, 3), image_size=SIZE, fade_alpha=0.5, topk_fraction=0.7)
    poses = CameraPoses(torch.empty(BATCH, device=META), torch.empty(BATCH, device=META))
    neighbors = torch.empty(BATCH, SIZE * SIZE, 3, device=META)
    ball_points = torch.empty(BATCH, 5, 3, device=META)
    schedule = Schedule(*(number() for _ in range(6)), [], [], [])  # as in a CUDA graph: the host cannot read them
    settings = settings.with_values_of(schedule)
    changes = torch.empty(BATCH, 2, NUM_UNIFORMS, device=META)
    inputs = GeneratorInputs(torch.empty(BATCH, 16, device=META), poses, meta_noise(settings), neighbors, ball_points, changes)
    return generator, discriminator, settings, inputs


def finish(network: nn.Module) -> Tensor:
    return nn.utils.clip_grad_norm_(network.parameters(), 1.0)


def test_a_generator_step(parts):
    generator, discriminator, settings, inputs = parts
    discriminator.requires_grad_(False)
    average = MovingAverage(generator, 0.999)
    guard = Guard(META, BadSteps())
    with NoWaiting():
        real = torch.empty(BATCH, 3, SIZE, SIZE, device=META)
        generated = generate(generator, inputs, settings)
        result = generator_losses(generated, discriminator, generator.curriculum, real, inputs, settings)
        nan_unless_finite(result.total).backward()
        norm = finish(generator)
        average.update(generator, are_finite(generator.parameters()), number())
        guard.watch(0, {"D/grad_norm": norm, **result.terms, "G/grad_norm": norm})
    assert {"gan", "pose", "opacity_prior", "normal", "ball_hold"} <= set(result.terms)
    assert all(parameter.grad is not None for parameter in generator.parameters())


def test_a_discriminator_step(parts):
    generator, discriminator, settings, inputs = parts
    real = torch.empty(BATCH, 3, SIZE, SIZE, device=META)
    with NoWaiting():
        with torch.no_grad():
            fake = generate(generator, inputs, settings).images
        result = discriminator_losses(discriminator, generator.curriculum, real, fake, inputs, settings)
        nan_unless_finite(result.total).backward()
        finish(discriminator)
        topk_image_weights(torch.empty(BATCH, device=META), 0.6)
        adapted(settings.augment_p, result.terms["real_sign"], 0.6, BATCH)
    assert "r1" in result.terms and ("r2" in result.terms) == bool(generator.curriculum.r2_lambda)


def test_rendering(curriculum, parts):
    generator, _, _, inputs = parts
    with NoWaiting(), torch.no_grad():
        bound = generator.field_of_latents(inputs.z)
        for changes in ({}, {"surface_sample": False, "pred_occ": False}, {"root_method": "bisection", "last_back": True}):
            settings = replace(RenderSettings.from_curriculum(curriculum), **changes)
            output = render(bound, camera_rays(inputs.poses, SIZE, 12.0), settings)
            bound.normals(output.t[..., :3])
    assert output.rgb.shape == (BATCH, SIZE * SIZE, 3)


def values_read(call: Callable[[], object]) -> list[list[str]]:
    """The callers, innermost first, of each operation of ``call`` that copies a value to the host."""
    with torch.autograd.profiler.profile() as profile:
        call()
    found = []
    for event in profile.function_events:
        if event.name.removeprefix("aten::") in WAITING:
            found.append([])
            while (event := event.cpu_parent) is not None:
                found[-1].append(event.name)
    return found


@pytest.mark.parametrize("changes", [{}, {"surface_sample": False, "pred_occ": False, "clamp_mode": "softplus"}])
def test_gradients_read_no_values_on_the_host(curriculum, changes, monkeypatch):
    monkeypatch.setattr(field, "_in_blocks", lambda *inputs: False)  # a GPU's arithmetic
    monkeypatch.setattr(folded, "sine", torch.sin)
    torch.manual_seed(0)
    generator, D = ImplicitGenerator3d(curriculum), ProgressiveEncoderDiscriminator(curriculum)
    settings = replace(RenderSettings.from_curriculum(curriculum), **changes)
    poses = CameraPoses(torch.full((2,), 1.5), torch.full((2,), 1.6))
    real = torch.rand(2, 3, SIZE, SIZE).requires_grad_(True)

    def steps() -> None:
        bound = generator.field_of_latents(torch.ones(2, 16))
        output = render(bound, camera_rays(poses, SIZE, 12.0), settings)
        images = output.rgb.transpose(1, 2).unflatten(2, (SIZE, SIZE))
        normals = bound.normals(torch.rand(2, 50, 3) / 10)
        hit = torch.ones(2, 50, dtype=torch.bool)
        loss = D(images, 0.5).score.sum() + losses.opacity_prior_loss(output.alphas) + output.depth.mean()
        (loss + losses.normal_smoothness_loss(normals, -normals.detach(), hit)).backward()
        losses.zero_centered_penalty_loss(D(real, 0.5).score, real).backward()

    assert not values_read(steps)


def test_the_profiler_detects_gradients_that_read_values():
    x = torch.rand(3, 4).requires_grad_(True)
    assert any("aten::cumprod_backward" in callers for callers in values_read(lambda: x.cumprod(dim=1).sum().backward()))


@pytest.mark.parametrize(
    "waits",
    [
        lambda x: x.sum().item(),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        pytest.param(lambda x: torch.as_tensor(0.5, device=x.device), marks=UNSEEN),
        pytest.param(lambda x: x[[0, 1]], marks=UNSEEN),
        lambda x: x.cpu(),
        lambda x: x + torch.ones(3).to(x.device),
        lambda x: x if x.any() else -x,
    ],
)
def test_the_detector_detects_operations_that_wait(waits):
    with pytest.raises((AssertionError, RuntimeError, NotImplementedError)), NoWaiting():
        waits(torch.empty(4, 3, device=META))
