"""The trainer's step against an independent implementation (tests/oracle.py): losses, gradients, Adam, scored images.

Every setting differs from its default, so that none can be ignored, and every term is a visible share of its gradient.
:func:`trainer_step` is the one place that knows how the trainer is put together.
"""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

import oracle
from checkpoints.loading import LoadedGenerator
from curriculums import COMMON as COMMON_SETTINGS
from distributed.processes import Processes
from generators.generator import draw_latents
from generators.pose_prior import draw_poses
from metrics.sampling import generated_images
from settings.curriculum import Curriculum
from settings.registry import CURRICULUMS
from training.inputs import draw_inputs
from training.run.run_state import RunState
from training.steps import GeneratorInputs, StepSettings
from training.trainer import RunOptions, Trainer

ALONE = Processes(0, 1, torch.device("cpu"))
STEP, SIZE, BATCH = 1400, 8, 4
STAGES = (
    "stages=("
    "{'start_step':0,'batch_size':4,'img_size':4,'gen_lr':1e-4,'disc_lr':1e-4},"
    "{'start_step':1000,'batch_size':4,'img_size':8,'gen_lr':3e-4,'disc_lr':7e-4})"
)
COMMON = [
    STAGES,
    *("hidden_dim=16", "num_layers=3", "latent_dim=8", "disc_channels=(4,4,4,4,4,4,8,8,8)", "fade_steps=1000"),
    *("fov=14.0", "h_mean=1.3", "h_stddev=0.4", "v_stddev=0.2", "sample_dist=gaussian", "hollow_check_interval=0"),
    *("z_lambda=3.0", "pos_lambda=2.5", "topk_interval=40", "topk_v=0.6", "grad_clip=0.37", "betas=(0.3,0.8)"),
    *("r1_lambda=30.0", "share_images=False", "init_ball_radius=0", "ray_start=0.85", "ray_end=1.14"),
]
OCCUPANCY = [
    *("v_mean=1.45", "tau=0.3", "num_steps_coarse=8", "num_steps_surface=4", "num_steps_fine=3", "n_secant_steps=3"),
    *("interval_max=0.11", "interval_min=0.01", "decay_beta=6e-4", "h_sample=0.03", "normal_lambda=0.5"),
    *("opacprior_lambda_init=0.2", "opacprior_growth_rate=7e-4"),
]
RADIANCE = [
    *("pred_occ=False", "surface_sample=False", "with_opacprior=False", "with_normal_loss=False", "num_steps_surface=0"),
    *("num_steps_coarse=7", "num_steps_fine=5", "v_mean=1.5", "eval_last_back=False"),
]
REDUCED = "mapping_lr_factor=0.05" if "mapping_lr_factor" in COMMON_SETTINGS else "unique_lr=False"
CASES = {
    "occupancy": OCCUPANCY,
    "occupancy, last_back": [*OCCUPANCY, "last_back=True"],
    "occupancy, relativistic with R2": [*OCCUPANCY, "gan_loss=relativistic", "r2_lambda=20.0", "share_images=True"],
    "occupancy, held to a ball": [*OCCUPANCY, "init_ball_radius=0.06", "ball_hold_steps=2000", "ball_hold_lambda=0.8"],
    "occupancy, held to an ellipsoid": [
        *OCCUPANCY,
        *("init_ball_radius=0.06", "init_ball_stretch=(1,1.5,0.8)", "ball_hold_steps=2000", "ball_hold_lambda=0.8"),
    ],
    "occupancy, lazy R1": [*OCCUPANCY, "r1_interval=3", "share_images=True"],  # (STEP + 1) is divisible by 3
    "radiance": [*RADIANCE, "white_back=True"],
    "radiance, softplus": [*RADIANCE, "clamp_mode=softplus"],
}


class Measured(NamedTuple):
    """Results of one step of the trainer: scalars, and the gradients (N,) of D and G before clipping."""

    scalars: dict[str, Tensor]
    of_D: Tensor
    of_G: Tensor
    inputs_D: GeneratorInputs
    inputs_G: GeneratorInputs


def curriculum_of(changes: list[str]) -> Curriculum:
    return CURRICULUMS["SYNTH_TINY"].with_overrides([*COMMON, *changes])


def make_state(changes: list[str]) -> RunState:
    """Networks with steeper initial weights, so that fields have some surfaces and scores differ."""
    state = RunState(curriculum_of(changes), seed=3, device=torch.device("cpu"), amp_dtype=None)
    siren = state.generator.siren
    with torch.no_grad():
        siren.final_layer.weight.mul_(30 if state.curriculum.pred_occ else 150)
        siren.final_layer.bias.fill_(-1.3 if state.curriculum.pred_occ else 0.0)
        siren.color_layer_linear[0].weight.mul_(20)
        state.discriminator.final_layer.weight.mul_(3)  # losses are not linear there
    state.step, state.is_held = STEP, True
    return state


def real_images() -> Tensor:
    return torch.rand(BATCH, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)) * 2 - 1


def flat_gradient(network: torch.nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])


def trainer_step(state: RunState, monkeypatch: pytest.MonkeyPatch) -> Measured:
    """One step of the trainer in which the optimizers do nothing."""
    trainer, kept = Trainer(state, RunOptions(Path(), ""), ALONE), {}

    def keep(optimizer, scaler, network, results):
        kept[id(network)] = flat_gradient(network)
        return {**results[0], "grad_norm": kept[id(network)].norm()}

    monkeypatch.setattr(trainer, "_finish", keep)
    c = state.curriculum
    settings, batch = StepSettings.at(c, STEP), c.stage_at(STEP).batch_size
    drawn = {p: draw_inputs(c, settings, batch, ALONE, seed=state.draw_seed, step=STEP, purpose=p) for p in "DG"}
    scalars = trainer._step(real_images(), c.stage_at(STEP))
    inputs_D = drawn["G"] if c.share_images else drawn["D"]
    return Measured(scalars, kept[id(state.discriminator)], kept[id(state.generator)], inputs_D, drawn["G"])


def render_inputs(state: RunState, inputs: GeneratorInputs) -> tuple[oracle.Rendered, oracle.OracleField]:
    at = oracle.weights_at(state.curriculum, STEP)
    field = oracle.OracleField(state.generator, inputs.z)
    renderer = oracle.OracleRenderer(field, state.curriculum, at.delta, inputs.noise, at.density_noise)
    return renderer.render(inputs.poses.pitch, inputs.poses.yaw, SIZE), field


def relative_error(value: Tensor, expected: Tensor) -> float:
    return float((value - expected).norm() / expected.norm())


def assert_terms(scalars: dict[str, Tensor], prefix: str, terms: dict[str, Tensor], c: Curriculum) -> None:
    """The log's unweighted losses against the oracle's weighted ones: no term is missing, and none is extra."""
    at = oracle.weights_at(c, STEP)
    weights = {"gan": 1.0, "r1": 0.5 * c.r1_lambda * c.r1_interval, "r2": 0.5 * c.r2_lambda * c.r1_interval}
    weights |= {"pose": c.pos_lambda, "latent": c.z_lambda, "opacity_prior": at.opacity_prior}
    weights |= {"normal": c.normal_lambda, "ball_hold": at.ball_hold}
    logged = {name.removeprefix(prefix): value for name, value in scalars.items() if name.startswith(prefix)}
    assert {name for name in logged if name in weights} == set(terms) - {"total"}
    for name, term in terms.items():
        if name != "total":
            assert float(logged[name]) * weights[name] == pytest.approx(float(term.detach()), rel=2e-4, abs=1e-6), name


@pytest.mark.parametrize("case", CASES)
def test_a_step_of_both_networks(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    state = make_state(CASES[case])
    c, D = state.curriculum, state.discriminator
    measured = trainer_step(state, monkeypatch)
    at = oracle.weights_at(c, STEP)
    assert 0 < at.fade < 1 and math.ceil(at.topk * BATCH) == 3
    assert not c.pred_occ or c.interval_min < at.delta < c.interval_max
    assert c.share_images or not torch.equal(measured.inputs_D.z, measured.inputs_G.z)

    with torch.no_grad():
        images = render_inputs(state, measured.inputs_D)[0].images
    state.discriminator.zero_grad(set_to_none=True)
    terms_D = oracle.discriminator_terms(images, D, c, STEP, measured.inputs_D, real_images())
    assert_terms(measured.scalars, "D/", terms_D, c)
    terms_D["total"].backward()
    assert relative_error(measured.of_D, flat_gradient(D)) < 1e-3

    rendered, field = render_inputs(state, measured.inputs_G)
    if c.pred_occ:
        hits = ~rendered.roots.isnan()
        assert 0.2 < float(hits.double().mean()) < 0.9 and hits.any(dim=1).all()
        assert float(measured.scalars["G/hit_rate"]) == pytest.approx(float(hits.double().mean()), abs=1e-6)
    state.generator.zero_grad(set_to_none=True)
    terms_G = oracle.generator_terms(rendered, field, D, c, STEP, measured.inputs_G, real_images())
    assert_terms(measured.scalars, "G/", terms_G, c)
    terms_G["total"].backward()
    assert relative_error(measured.of_G, flat_gradient(state.generator)) < 1e-3


@pytest.mark.parametrize("case", ["occupancy", "occupancy, relativistic with R2", "occupancy, held to a ball", "radiance"])
def test_every_term_shows_in_the_gradient(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a missing term could pass the test above."""
    state = make_state(CASES[case])
    measured = trainer_step(state, monkeypatch)
    rendered, field = render_inputs(state, measured.inputs_G)
    terms_G = oracle.generator_terms(
        rendered, field, state.discriminator, state.curriculum, STEP, measured.inputs_G, real_images()
    )
    images = rendered.images.detach()
    terms_D = oracle.discriminator_terms(images, state.discriminator, state.curriculum, STEP, measured.inputs_G, real_images())
    for network, terms in ((state.generator, terms_G), (state.discriminator, terms_D)):
        norms = {}
        for name, term in terms.items():
            network.zero_grad(set_to_none=True)
            term.backward(retain_graph=True)
            norms[name] = float(flat_gradient(network).norm())
        assert min(norms.values()) > 0.01 * norms["total"], norms


def test_poses_and_noise_are_those_of_the_settings() -> None:
    """Over many steps: poses spread about their own means, uniform numbers in [0, 1), normal densities."""
    c = CURRICULUMS["SYNTH_TINY"].with_overrides([*COMMON, *OCCUPANCY])
    settings = StepSettings.at(c, STEP)
    drawn = [draw_inputs(c, settings, 16, ALONE, seed=0, step=step, purpose="G") for step in range(40)]
    for name, mean, stddev in (("pitch", c.v_mean, c.v_stddev), ("yaw", c.h_mean, c.h_stddev)):
        angles = torch.cat([getattr(inputs.poses, name) for inputs in drawn])
        assert float(angles.mean()) == pytest.approx(mean, abs=4 * stddev / len(angles) ** 0.5)
        assert float(angles.std()) == pytest.approx(stddev, rel=0.15)
    z = torch.cat([inputs.z for inputs in drawn])
    assert float(z.mean()) == pytest.approx(0, abs=0.05) and float(z.std()) == pytest.approx(1, abs=0.05)
    for name, num in (("surface_jitter", c.num_steps_surface), ("importance", c.num_steps_fine)):
        values = getattr(drawn[0].noise, name)
        assert values.shape == (16, SIZE**2, num) and values.min() >= 0 and values.max() < 1
        assert float(values.std()) == pytest.approx(1 / 12**0.5, rel=0.05)
    lengths = drawn[0].neighbors.norm(dim=-1)
    assert torch.allclose(lengths, torch.ones_like(lengths), atol=1e-5)
    assert drawn[0].neighbors.flatten(0, 1).mean(dim=0).norm() < 0.1  # in all directions alike
    radiance = CURRICULUMS["SYNTH_TINY"].with_overrides([*COMMON, *RADIANCE])
    noise = draw_inputs(radiance, StepSettings.at(radiance, STEP), 16, ALONE, seed=0, step=0, purpose="D").noise
    assert float(noise.density.std()) == pytest.approx(1, rel=0.05) and noise.density.shape[-1] == 12
    assert float(noise.coarse_density.std()) == pytest.approx(1, rel=0.05)
    assert float(noise.coarse_jitter.std()) == pytest.approx(1 / 12**0.5, rel=0.05)


# -- what the optimizers make of the gradients -----------------------------------------------------------------------------


def adam(parameters: list[Tensor], gradients: list[list[Tensor]], lr: float, betas: tuple[float, float]) -> list[Tensor]:
    """Kingma and Ba, algorithm 1, epsilon 1e-8, over several steps."""
    results = []
    for i, start in enumerate(parameters):
        x, m, v = start.clone(), torch.zeros_like(start), torch.zeros_like(start)
        for step, of_step in enumerate(gradients, start=1):
            g = of_step[i]
            m, v = betas[0] * m + (1 - betas[0]) * g, betas[1] * v + (1 - betas[1]) * g * g
            x = x - lr * (m / (1 - betas[0] ** step)) / ((v / (1 - betas[1] ** step)).sqrt() + 1e-8)
        results.append(x)
    return results


@pytest.mark.parametrize("mapping_factor", [1.0, 0.05])
def test_gradients_are_clipped_and_adam_steps_as_the_settings_say(mapping_factor: float) -> None:
    state = make_state([*OCCUPANCY, *([REDUCED] if mapping_factor < 1 else [])])
    c, trainer = state.curriculum, Trainer(state, RunOptions(Path(), ""), ALONE)
    networks = {"G": state.generator, "D": state.discriminator}
    before = {name: copy.deepcopy(list(network.parameters())) for name, network in networks.items()}
    seen: dict[str, list[list[Tensor]]] = {"G": [], "D": []}
    for step in (STEP, STEP + 1):
        state.step = step
        state.set_learning_rates(step)
        scalars = trainer._step(real_images(), c.stage_at(step))
        for name, network in networks.items():
            gradients = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in network.parameters()]
            norm = float(torch.cat([g.flatten() for g in gradients]).norm())
            assert float(scalars[f"{name}/grad_norm"]) > c.grad_clip  # before clipping
            assert norm == pytest.approx(c.grad_clip, rel=1e-4)
            seen[name].append(gradients)
    stage = c.stage_at(STEP)
    for name, rate in (("G", stage.gen_lr), ("D", stage.disc_lr)):
        for i, (part, value) in enumerate(networks[name].named_parameters()):
            lr = rate * mapping_factor if "mapping_network" in part else rate
            (expected,) = adam([before[name][i]], [[of_step[i]] for of_step in seen[name]], lr, c.betas)
            assert torch.allclose(value, expected, rtol=0, atol=0.01 * lr), part
            assert not seen[name][0][i].any() or not torch.equal(value, before[name][i]), part


def test_averages_follow_with_their_warm_up() -> None:
    state = make_state(OCCUPANCY)
    trainer = Trainer(state, RunOptions(Path(), ""), ALONE)
    with torch.no_grad():
        for moving in state.averages.values():
            for parameter in moving.generator.parameters():
                parameter.add_(1)  # far from the weights, so that a share of 1e-4 shows
    was = {name: [p.clone() for p in moving.generator.parameters()] for name, moving in state.averages.items()}
    state.set_learning_rates(STEP)
    for num_updates, decays in ((40, {"ema": 42 / 51, "ema2": 42 / 51}), (200_000, {"ema": 0.999, "ema2": 0.9999})):
        for name, moving in state.averages.items():
            moving.num_updates = num_updates
            moving.generator.load_state_dict(dict(zip(moving.generator.state_dict(), was[name], strict=True)))
        trainer._step(real_images(), state.curriculum.stage_at(STEP))
        for name, decay in decays.items():
            own = state.averages[name].generator.parameters()
            for now, old, new in zip(own, was[name], state.generator.parameters(), strict=True):
                assert torch.allclose(now, decay * old + (1 - decay) * new, atol=1e-5)


# -- what scores see -------------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("last_back", [False, True])
def test_scored_images_are_the_generators_images(last_back: bool) -> None:
    """As the oracle renders them: narrowest interval, no jitter, ``last_back`` as in training; upright."""
    state = make_state([*OCCUPANCY, f"last_back={last_back}"])
    c = state.curriculum
    images = generated_images(LoadedGenerator(state.generator, c), 3, SIZE, psi=1.0, seed=5, batch_size=2)
    z = draw_latents(3, c, torch.Generator().manual_seed(5))
    poses = draw_poses(3, c, torch.Generator().manual_seed(6))
    renderer = oracle.OracleRenderer(oracle.OracleField(state.generator, z), c, c.interval_min, None)
    expected = ((renderer.render(poses.pitch, poses.yaw, SIZE).images + 1) * 127.5).round().clamp(0, 255)
    difference = (images.double() - expected).abs()
    assert difference.max() <= 1 and float(images.double().std()) > 20
    assert (images.double().transpose(2, 3) - expected).abs().max() > 20  # rows and columns must differ visibly
