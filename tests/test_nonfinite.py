"""Non-finite numbers: skipped and counted, never averaged or saved; recovery, and a final diagnosis."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from checkpoints.files import damage_in, list_checkpoints, load_training_checkpoint
from distributed.processes import Processes
from settings.curriculum import Curriculum
from settings.registry import CURRICULUMS
from train import main as train
from training.ema import MovingAverage
from training.run.nonfinite import BadSteps, Diverged, Guard, are_finite, nan_unless_finite, step_if_finite
from training.run.recorder import Recorder
from training.run.run_state import RunState
from training.trainer import RunOptions, Trainer

CPU = torch.device("cpu")
ALONE = Processes(0, 1, CPU)
SMALL = [
    *("hidden_dim=16", "num_layers=2", "latent_dim=8", "disc_channels=(4,4,4,4,4,4,8,8,8)", "init_ball_radius=0"),
    *("num_steps_coarse=4", "num_steps_surface=2", "num_steps_fine=2", "batch_size=2", "img_size=8"),
]


def small_curriculum(*more: str) -> Curriculum:
    return CURRICULUMS["SYNTH_TINY"].with_overrides([*SMALL, *more])


@pytest.fixture(autouse=True)
def one_thread():
    """Such small products are slower with more threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for i in range(6):
        Image.fromarray(random.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return folder


def terms(grad_D: float = 1.0, grad_G: float = 1.0, **more: float) -> dict[str, torch.Tensor]:
    values = {"D/gan": 1.0, "D/grad_norm": grad_D, "G/gan": 1.0, "G/grad_norm": grad_G}
    return {name: torch.tensor(value) for name, value in {**values, **more}.items()}


def test_bad_steps_are_counted_and_the_first_term_named():
    guard = Guard(CPU, BadSteps())
    for step, scalars in enumerate([terms(), terms(grad_G=math.nan), terms(), terms(math.inf), terms(math.nan, math.nan)]):
        guard.watch(step, scalars)
    assert guard.read() == BadSteps(skipped=3, in_a_row=2, first_step=3, first_term="D/grad_norm")
    guard.watch(5, terms())
    assert guard.read().in_a_row == 0
    guard.watch(6, {**terms(grad_G=math.nan), "G/gan": torch.tensor(math.inf)})
    assert guard.read() == BadSteps(skipped=4, in_a_row=1, first_step=6, first_term="G/gan")
    resumed = Guard(CPU, guard.read())
    resumed.watch(7, terms(math.nan))
    assert resumed.read() == BadSteps(skipped=5, in_a_row=2, first_step=6, first_term="G/gan")


def test_terms_keep_their_names_when_another_term_ends():
    """G/ball_hold is logged until the hold ends."""
    guard = Guard(CPU, BadSteps())
    held = {**terms(grad_G=math.nan), "G/ball_hold": torch.tensor(1.0), "G/hit_rate": torch.tensor(1.0)}
    guard.watch(0, {name: held[name] for name in ("D/gan", "D/grad_norm", "G/gan", "G/ball_hold", "G/hit_rate", "G/grad_norm")})
    guard.watch(1, terms())
    assert guard.read() == BadSteps(skipped=1, in_a_row=0, first_step=0, first_term="G/grad_norm")
    guard.watch(2, terms(math.nan))
    assert guard.read() == BadSteps(skipped=2, in_a_row=1, first_step=2, first_term="D/grad_norm")


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_step_without_a_finite_gradient_changes_nothing(bad):
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer, scaler = torch.optim.Adam([weight], lr=0.1), torch.amp.GradScaler("cpu", enabled=False)
    for gradient in (torch.ones(3), torch.tensor([1.0, bad, 1.0])):
        before = weight.detach().clone()
        state = {name: value.clone() for name, value in optimizer.state[weight].items()}
        weight.grad = gradient
        step_if_finite(optimizer, scaler, gradient.norm())
        assert torch.equal(before, weight) == (not torch.isfinite(gradient).all())
    assert all(torch.equal(optimizer.state[weight][name], value) for name, value in state.items())


def test_a_term_that_appears_later_is_still_checked_before_the_gradients():
    guard = Guard(CPU, BadSteps())
    good, bad = torch.tensor(1.0), torch.tensor(math.nan)
    guard.watch(0, {"D/gan": good, "D/grad_norm": good, "G/grad_norm": good})
    guard.watch(1, {"D/gan": good, "D/r1": bad, "D/grad_norm": bad, "G/grad_norm": good})
    assert guard.read().first_term == "D/r1"
    guard.watch(2, {"D/gan": good, "D/r1": good, "D/grad_norm": good, "G/grad_norm": good})
    guard.watch(3, {"D/gan": good, "D/grad_norm": bad, "G/grad_norm": good})
    assert guard.read().first_term == "D/grad_norm"
    guard.watch(4, {"D/gan": good, "D/r1": good, "D/r2": good, "D/grad_norm": good, "G/grad_norm": good})
    guard.watch(5, {"D/gan": good, "D/r1": good, "D/r2": bad, "D/grad_norm": bad, "G/grad_norm": good})
    assert guard.read().first_term == "D/r2"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: the fused kernel that looks at the gradient itself")
def test_a_gpu_skips_the_step_without_synchronization():
    weight = torch.nn.Parameter(torch.ones(3, device="cuda"))
    optimizer, scaler = torch.optim.Adam([weight], lr=0.1, fused=True), torch.amp.GradScaler("cuda", enabled=False)
    average = torch.zeros((), device="cuda")
    for value in (1.0, math.nan, 1.0):
        weight.grad = torch.full((3,), value, device="cuda")
        norm = weight.grad.norm()
        torch.cuda.set_sync_debug_mode("error")
        try:
            step_if_finite(optimizer, scaler, norm)
            average = torch.where(are_finite([weight]), weight.sum(), average)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert float(optimizer.state[weight]["step"]) == 2
    assert torch.allclose(weight, torch.full_like(weight, 0.8)) and float(average) == pytest.approx(2.4)


def test_a_loss_that_is_not_finite_has_no_finite_gradient():
    weight = torch.ones(2, requires_grad=True)
    for scale, is_finite in ((1.0, True), (math.inf, False)):
        loss = weight.sum() + torch.tensor(0.0 if is_finite else scale)
        weight.grad = None
        nan_unless_finite(loss).backward()
        assert bool(torch.isfinite(weight.grad).all()) == is_finite
    assert not bool(are_finite([torch.ones(2), torch.tensor([1.0, math.nan])])) and bool(are_finite([torch.ones(2)]))


def test_averages_ignore_weights_that_are_not_finite():
    generator = RunState(small_curriculum(), 0, CPU, None).generator
    average = MovingAverage(generator, 0.9)
    before = {name: value.clone() for name, value in average.generator.state_dict().items()}
    with torch.no_grad():
        next(generator.parameters()).flatten()[0] = math.nan
    for rate in (average.next_rate(), torch.tensor(average.next_rate())):
        average.update(generator, are_finite(generator.parameters()), rate)
    assert all(torch.equal(value, before[name]) for name, value in average.generator.state_dict().items())


# ------------------------------------------------------------------------------------------------ the way back


class Poisoned(Trainer):
    """A trainer whose generator gets a NaN at given steps, in given attempts."""

    poison: tuple[tuple[int, range], ...] = ()

    def _step(self, real, stage):
        for step, attempts in self.poison:
            if self.state.step == step and self.state.attempt in attempts:
                with torch.no_grad():
                    self.state.generator.siren.final_layer.bias.fill_(math.nan)
        return super()._step(real, stage)


def run(photos: Path, folder: Path, poison: tuple, **options) -> tuple[Poisoned, str]:
    folder.mkdir(exist_ok=True)
    state = RunState(small_curriculum(), 0, CPU, None)
    given = {"max_steps": 12, "save_interval": 4, "log_interval": 1, "sample_interval": 0, "max_bad_steps": 3}
    settings = RunOptions(folder, str(photos), **{**given, "use_cache": False, **options})
    trainer = Poisoned(state, settings, ALONE)
    trainer.poison = poison
    newest = list_checkpoints(folder)
    if newest:
        state.resume(newest[0][1], 1)
        trainer.guard = Guard(CPU, state.bad_steps)
    recorder = Recorder(folder, state.step, 12, use_tensorboard=False)
    try:
        return trainer, trainer.run(recorder)
    finally:
        recorder.close()


def read_log(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_recovery_continues_with_other_random_numbers_and_is_reproducible(photos, tmp_path, capsys):
    poison = ((6, range(1)),)
    trainer, reason = run(photos, tmp_path / "a", poison)
    assert reason == "--max_steps 12" and trainer.state.attempt == 1
    final = load_training_checkpoint(tmp_path / "a" / "checkpoint_0000012.pt")
    assert final["attempt"] == 1 and final["bad_steps"]["skipped"] == 3 and final["bad_steps"]["in_a_row"] == 0
    log = read_log(tmp_path / "a")
    assert [line["step"] for line in log] == [1, 2, 3, 4, 4, 5, 6, 7, 8, 9, 10, 11, 12]
    assert log[4]["event"] == "went back" and log[4]["from_step"] == 9 and "at step 6" in log[4]["reason"]
    assert log[-1]["skipped_steps"] == 3 and all("not_finite" not in line for line in log)
    assert "going back to" in capsys.readouterr().err
    # again, and cut by a crash after it went back: resumed from step 4, it meets the same NaN and takes the same way
    run(photos, tmp_path / "b", poison)
    for name in ("checkpoint_0000008.pt", "checkpoint_0000012.pt"):
        (tmp_path / "b" / name).unlink()
    run(photos, tmp_path / "b", poison)
    run(photos, tmp_path / "undisturbed", ())
    expected = (tmp_path / "a" / "checkpoint_0000012.pt").read_bytes()
    assert (tmp_path / "b" / "checkpoint_0000012.pt").read_bytes() == expected
    undisturbed = load_training_checkpoint(tmp_path / "undisturbed" / "checkpoint_0000012.pt")
    assert not torch.equal(undisturbed["generator"]["siren.final_layer.weight"], final["generator"]["siren.final_layer.weight"])


def test_going_back_forgets_the_graphs_of_steps(photos, tmp_path, monkeypatch):
    """After it, Adam's moments are in other tensors, which graphs would not change."""
    cleared_at = []
    graphs = SimpleNamespace(run=lambda kind, update, inputs: update(inputs))

    def open_images(self):
        self._graphs = graphs
        graphs.clear = lambda: cleared_at.append((self.state.attempt, self.state.step))
        original(self)

    original = Trainer.open_images
    monkeypatch.setattr(Trainer, "open_images", open_images)
    trainer, _ = run(photos, tmp_path, ((6, range(1)),))
    assert trainer.state.attempt == 1 and (1, 4) in cleared_at


def test_a_run_that_keeps_diverging_ends_with_a_diagnosis_and_intact_checkpoints(photos, tmp_path):
    with pytest.raises(Diverged) as verdict:
        run(photos, tmp_path, ((6, range(99)),), save_interval=2)
    assert verdict.value.exit_status == 4
    for word in ("D/gan", "at step 6", "gen_lr", "3 times", "--load_dir"):
        assert word in str(verdict.value)
    events = [(line["event"], line["step"]) for line in read_log(tmp_path) if "event" in line]
    assert events == [("went back", 6), ("went back", 4), ("went back", 2), ("diverged", 9)]  # each time further
    for step, path in list_checkpoints(tmp_path):
        assert step <= 6 and damage_in(path) is None
        state = load_training_checkpoint(path)
        for part in ("generator", "ema", "ema2", "discriminator"):
            assert are_finite(state[part].values()), (path, part)


def test_no_checkpoint_is_written_while_steps_are_bad(photos, tmp_path):
    trainer, _ = run(photos, tmp_path, ((6, range(1)),), save_interval=1, max_steps=9, num_kept=99)
    assert trainer.state.attempt == 1
    assert [step for step, _ in reversed(list_checkpoints(tmp_path))] == list(range(1, 10))  # 7 to 9 are of the second attempt
    assert load_training_checkpoint(tmp_path / "checkpoint_0000007.pt")["attempt"] == 1


def test_an_absurd_learning_rate_is_diagnosed(photos, tmp_path):
    command = ["--curriculum", "SYNTH_TINY", "--dataset_path", str(photos), "--output_dir", str(tmp_path), "--device", "cpu"]
    command += ["--no-cache", "--no-use_logger", "--sample_interval", "0", "--max_bad_steps", "4", "--max_steps", "60"]
    with pytest.raises(Diverged, match=r"lr 1e\+30.* there is no checkpoint to go back to"):
        train([*command, "--set", *SMALL, "gen_lr=1e30", "disc_lr=1e30"])
    common = "'batch_size':2,'img_size':8"
    sane, absurd = (f"{{'start_step':{step},{common},'gen_lr':{lr},'disc_lr':{lr}}}" for step, lr in ((0, 1e-4), (3, 1e30)))
    stages = f"stages=({sane},{absurd})"
    settings = [text for text in SMALL if not text.startswith(("batch_size", "img_size"))]
    with pytest.raises(Diverged, match="going back 3 times"):
        train([*command, "--model_save_interval", "1", "--set", *settings, stages])
    assert [step for step, _ in list_checkpoints(tmp_path)] == [3, 2, 1]
    for _, path in list_checkpoints(tmp_path):
        state = load_training_checkpoint(path)
        assert damage_in(path) is None and all(are_finite(state[part].values()) for part in ("generator", "ema", "discriminator"))
