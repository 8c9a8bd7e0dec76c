"""Settings that training must use: the horizontal flip, and the mapping network's learning rate."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dataset import epoch_order
from distributed.processes import Processes
from settings.curriculum import Curriculum
from settings.registry import CURRICULUMS
from training.batches import StageBatches
from training.options import RunOptions
from training.run.run_state import RunState

NUM_IMAGES = 12
SMALL = ["hidden_dim=16", "num_layers=2", "latent_dim=8", "disc_channels=(4,4,4,4,4,4,8,8,8)", "init_ball_radius=0"]


def small_curriculum(*more: str) -> Curriculum:
    return CURRICULUMS["SYNTH_TINY"].with_overrides([*SMALL, f"batch_size={NUM_IMAGES}", "img_size=8", *more])


def fresh_state(curriculum: Curriculum) -> RunState:
    return RunState(curriculum, seed=0, device=torch.device("cpu"), amp_dtype=None)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for i in range(NUM_IMAGES):
        Image.fromarray(random.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return folder


@pytest.mark.parametrize("flips", [True, False])
def test_horizontal_flip(photos, flips):
    curriculum = small_curriculum(f"horizontal_flip={flips}")
    processes = Processes(0, 1, torch.device("cpu"))
    options = RunOptions(Path(), str(photos), use_cache=False)
    batches = StageBatches(options, curriculum.stages[0], fresh_state(curriculum), processes)
    try:
        batches.restart()
        seen = batches.next()
    finally:
        batches.close()
    plain = batches.dataset.gather(epoch_order(NUM_IMAGES, 0, 0)).float() / 127.5 - 1
    as_it_is = [bool((image == other).all()) for image, other in zip(seen, plain, strict=True)]
    mirrored = [bool((image == other.flip(-1)).all()) for image, other in zip(seen, plain, strict=True)]
    assert all(one != other for one, other in zip(as_it_is, mirrored, strict=True))
    assert (0 < sum(mirrored) < NUM_IMAGES) == flips and (sum(mirrored) == 0) != flips


@pytest.mark.parametrize("factor", [1.0, 0.05])
def test_learning_rate_of_the_mapping_network(factor):
    """Adam's first step changes each weight by the learning rate."""
    state = fresh_state(replace(small_curriculum(f"mapping_lr_factor={factor}"), unique_lr=False))
    state.set_learning_rates(0)
    before = {name: value.clone() for name, value in state.generator.state_dict().items()}
    for parameter in state.generator.parameters():
        parameter.grad = torch.ones_like(parameter)
    state.optimizer_G.step()
    rate = state.curriculum.stages[0].gen_lr
    for name, value in state.generator.state_dict().items():
        expected = rate * (factor if ".mapping_network." in name else 1)
        torch.testing.assert_close(before[name] - value, torch.full_like(value, expected), rtol=1e-2, atol=1e-6)
