"""Training steps as CUDA graphs: what can be tested without a GPU. tests/test_cuda.py compares the graphs themselves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from dataset import training_spec
from distributed.processes import Processes
from settings.curriculum import Curriculum
from settings.registry import CURRICULUMS
from training.cuda_graphs import can_use_graphs, step_kind
from training.options import RunOptions
from training.run.run_state import RunState
from training.steps import StepSettings
from training.trainer import Trainer

CPU = torch.device("cpu")
FIRST_STEP = 22
# The learning rates, the interval and the weights change with every step, and top-k after some.
SMALL = (
    "batch_size=4",
    "img_size=32",
    "lr_warmup_steps=40",
    "topk_interval=1",
    "topk_v=0.5",
    "decay_beta=0.05",
    "opacprior_growth_rate=0.1",
)
SIREN = (*SMALL, "fade_steps=1", "hidden_dim=16", "num_layers=2", "normal_lambda=0.05")
RADIANCE = (
    *(change for change in SMALL if not change.startswith(("decay_beta", "opacprior"))),
    "hidden_dim=16",
    "num_layers=2",
    "disc_channels=(4,8,16,24,32,48,64,64,64)",
)


class TensorsForNumbers:
    """Takes steps like StepGraphs, but eagerly: with tensors for numbers, and the first ``update`` of each kind."""

    def __init__(self) -> None:
        self.kinds: list[object] = []
        self.updates: dict[object, object] = {}

    def run(self, kind, update, inputs):
        self.kinds.append(kind)
        leaves, structure = pytree.tree_flatten(inputs)
        leaves = [torch.tensor(float(leaf)) if isinstance(leaf, (int, float)) else leaf for leaf in leaves]
        return self.updates.setdefault(kind, update)(pytree.tree_unflatten(leaves, structure))


def run_steps(curriculum: Curriculum, graphs: TensorsForNumbers | None) -> tuple[Tensor, Tensor, Tensor, float]:
    """Take 12 steps. Returns the weights of G, of D and of the average of G, and the probability of augmentation."""
    state = RunState(curriculum, 0, CPU, None)
    state.step, state.is_held = FIRST_STEP, True
    trainer = Trainer(state, RunOptions(Path(), ""), Processes(0, 1, CPU))
    trainer._graphs = graphs
    stage = curriculum.stage_at(FIRST_STEP)
    num_channels = training_spec(curriculum).num_channels
    real = torch.rand(4, num_channels, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    for _ in range(12):
        state.set_learning_rates(state.step)
        trainer._step(real, stage)
        state.step += 1
        assert all(isinstance(group["lr"], float) for group in state.optimizer_G.param_groups)
    networks = (state.generator, state.discriminator, state.averages["ema"].generator)
    return *(torch.nn.utils.parameters_to_vector(network.parameters()).detach() for network in networks), float(state.augment_p)


@pytest.mark.parametrize(
    ("name", "changes", "num_kinds"),  # top-k of 4 or 3 images, with or without penalties
    [
        ("SYNTH_TINY", (*SIREN, "r1_interval=2", "mapping_lr_factor=0.5"), 4),
        ("SYNTH_TINY", (*SIREN, "share_images=False", "augment_target=0.6"), 2),
        ("SYNTH_TINY", (*SIREN, "batch_split=2"), 2),
        ("SYNTH_TINY", (*SIREN, "fade_steps=30"), 3),  # the fade ends after top-k has changed
        ("PIGAN_CelebA", (*RADIANCE, "fade_steps=1"), 2),
        ("SYNTH_TRIPLANE", (*SMALL, "backbone_channels=(16,16,16)", "disc_widths=(8,8,8,8)"), 4),
    ],
)
def test_steps_as_in_a_graph_are_the_same(name: str, changes: tuple[str, ...], num_kinds: int) -> None:
    curriculum = CURRICULUMS[name].with_overrides([*changes])
    graphs = TensorsForNumbers()
    with_tensors, with_numbers = run_steps(curriculum, graphs), run_steps(curriculum, None)
    assert len(graphs.kinds) == 12, "a step could not be a graph"
    assert len(set(graphs.kinds)) == num_kinds
    for value, expected in zip(with_tensors[:3], with_numbers[:3], strict=True):
        assert torch.allclose(value, expected, rtol=1e-6, atol=2e-5)  # scheduled values are rounded to float32
    assert with_tensors[3] == with_numbers[3]


def test_the_kind_of_a_step() -> None:
    curriculum = CURRICULUMS["CATS_TRIPLANE"]
    stage = curriculum.stage_at(4000)
    settings = StepSettings.at(curriculum, 4000)
    kind = step_kind(settings, stage)
    schedule = replace(settings, render=replace(settings.render, interval=0.05), lambda_opacity_prior=0.3, lambda_ball_hold=0.01)
    assert step_kind(schedule, stage) == kind and hash(step_kind(schedule, stage)) == hash(kind)
    other = [
        replace(settings, image_size=32),
        replace(settings, lambda_r1=2.0),
        replace(settings, topk_fraction=0.7),
        replace(settings, lambda_ball_hold=0.0),  # without points at which the field is held
        replace(settings, render=replace(settings.render, num_coarse=9)),
    ]
    kinds = {step_kind(changed, stage) for changed in other}
    kinds |= {step_kind(settings, replace(stage, **change)) for change in ({"batch_size": 8}, {"batch_split": 2})}
    assert len(kinds) == len(other) + 2 and kind not in kinds
    assert step_kind(replace(settings, topk_fraction=0.93), stage) == step_kind(
        replace(settings, topk_fraction=0.92), stage
    )  # 15 of 16 images


def test_a_fade_and_a_noise_that_are_over_have_kinds_of_their_own() -> None:
    progressive, radiance = CURRICULUMS["SYNTH"], CURRICULUMS["PIGAN_CelebA"]
    steps = [(progressive, 8_100), (progressive, 18_000), (radiance, 100), (radiance, 6_000), (radiance, 15_000)]
    kinds = [step_kind(replace(StepSettings.at(c, step), topk_fraction=1.0), c.stage_at(step)) for c, step in steps]
    assert len(set(kinds)) == len(kinds)
    for curriculum, step in steps:
        later = step_kind(replace(StepSettings.at(curriculum, step + 1), topk_fraction=1.0), curriculum.stage_at(step))
        assert later in kinds


@pytest.mark.parametrize(
    ("device", "world_size", "amp", "is_possible"),
    [
        ("cuda", 1, torch.bfloat16, True),
        ("cuda", 1, torch.float16, False),
        ("cuda", 2, torch.bfloat16, False),
        ("cpu", 1, None, False),
    ],
)
def test_where_steps_can_be_graphs(device: str, world_size: int, amp: torch.dtype | None, is_possible: bool) -> None:
    state = RunState(CURRICULUMS["SYNTH_TINY"].with_overrides(["hidden_dim=16"]), 0, CPU, None)
    state.scaler_G = torch.amp.GradScaler("cpu", enabled=amp == torch.float16)
    assert can_use_graphs(state, Processes(0, world_size, torch.device(device))) == is_possible


def test_compiled_fields_and_deterministic_runs_are_no_graphs() -> None:
    state = RunState(CURRICULUMS["SYNTH_TINY"].with_overrides(["hidden_dim=16"]), 0, CPU, None)
    alone = Processes(0, 1, torch.device("cuda"))
    state.generator.siren.is_compiled = True
    assert not can_use_graphs(state, alone)
    state.generator.siren.is_compiled = False
    torch.use_deterministic_algorithms(True)
    try:
        assert not can_use_graphs(state, alone)
    finally:
        torch.use_deterministic_algorithms(False)
    assert can_use_graphs(state, alone)
