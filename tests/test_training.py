"""Training: the gradient does not depend on batch splits, nor the run on interruptions; and errors that users see."""

from __future__ import annotations

import copy
import functools
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from checkpoints.files import load_training_checkpoint, read_inference
from checkpoints.loading import load_generator
from checkpoints.starting_points import load_starting_point
from common.errors import UserError
from distributed.processes import Processes
from settings.curriculum import Curriculum
from settings.registry import CURRICULUMS
from small_models import fit_colored_ball
from train import main as train
from training import outward_start
from training.augmentation import GENERATED, REAL, augment
from training.inputs import draw_inputs
from training.run.run_state import RunState
from training.steps import StepSettings, discriminator_losses, generate, generator_losses
from training.trainer import RunOptions, Trainer

SMALL_FIELD = ("hidden_dim=16", "num_layers=2")
SMALL = [
    *SMALL_FIELD,
    *("latent_dim=8", "disc_channels=(4,4,4,4,4,4,8,8,8)", "init_ball_radius=0"),
    *("num_steps_coarse=6", "num_steps_surface=3", "num_steps_fine=2", "batch_size=4", "img_size=8", "topk_v=0.5"),
]
ALONE = Processes(0, 1, torch.device("cpu"))
LATE = 5_000  # a step at which top-k drops images and the field is held to a ball
HELD = ("init_ball_radius=0.08", f"ball_hold_steps={2 * LATE}")
TRIPLANE = ("model=TRIPLANE", "view_dependent=False", "backbone_channels=(8,8,8)", "w_dim=8", "decoder_dim=8")


def small_curriculum(*more: str) -> Curriculum:
    small = [text for text in SMALL if text not in SMALL_FIELD or "model=TRIPLANE" not in more]
    return CURRICULUMS["SYNTH_TINY"].with_overrides([*small, "topk_interval=100", *more])


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for i in range(10):
        Image.fromarray(random.integers(0, 255, (12, 12, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return folder


def arguments(photos: Path, output: Path, *more: str) -> list[str]:
    return [
        *("--curriculum", "SYNTH_TINY", "--dataset_path", str(photos), "--output_dir", str(output), "--device", "cpu"),
        *("--no-cache", "--no-use_logger", "--log_interval", "1", *more, "--set", *SMALL),
    ]


@functools.cache
def fitted_weights(network: tuple[str, ...]) -> dict[str, torch.Tensor]:
    state = RunState(small_curriculum(*network), seed=3, device=torch.device("cpu"), amp_dtype=None)
    fit_colored_ball(state.generator, num_steps=200)  # so that rays hit and the normal loss has a say
    return state.generator.state_dict()


def fitted_state(curriculum: Curriculum) -> RunState:
    """A state of a curriculum with the network of small_curriculum, or with small tri-planes."""
    state = RunState(curriculum, seed=3, device=torch.device("cpu"), amp_dtype=None)
    state.generator.load_state_dict(fitted_weights(TRIPLANE if curriculum.model == "TRIPLANE" else ()))
    return state


def gradients(network: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])


def step_gradients(state: RunState, batch_split: int, monkeypatch) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradients of D and G after the trainer's step, with optimizers that do nothing."""
    trainer = Trainer(state, RunOptions(Path(), ""), ALONE)
    kept = {}

    def keep(optimizer, scaler, network, results):
        kept[id(network)] = gradients(network)
        return {**results[0], "grad_norm": kept[id(network)].norm()}

    monkeypatch.setattr(trainer, "_finish", keep)
    state.step = LATE
    trainer._step(real_images(), replace(state.curriculum.stage_at(LATE), batch_split=batch_split))
    return kept[id(state.discriminator)], kept[id(state.generator)]


def real_images() -> torch.Tensor:
    return torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1


RELATIVISTIC = ("gan_loss=relativistic", "r2_lambda=0.5")


@pytest.mark.parametrize("more", [(), ("share_images=True",), ("share_images=True", *RELATIVISTIC), TRIPLANE])
def test_batch_split_gives_the_gradient_of_the_whole_batch(monkeypatch, more):
    state = fitted_state(small_curriculum(*HELD, *more, "augment_target=0.6"))
    with torch.no_grad():
        state.discriminator.final_layer.weight[0] *= 50  # so that it matters which images make a pair
    state.is_held = True
    unchanged = step_gradients(state, 1, monkeypatch)
    state.augment_p = torch.tensor(0.7)
    settings = StepSettings.at(state.curriculum, LATE)
    assert settings.topk_fraction < 1 and settings.lambda_ball_hold > 0
    whole = step_gradients(state, 1, monkeypatch)
    split = step_gradients(state, 4, monkeypatch)
    for a, b, c in zip(whole, split, unchanged, strict=True):
        assert float((a - b).norm() / a.norm()) < 1e-4  # pairs put together wrongly differ by 5e-2
        assert float((a - c).norm() / a.norm()) > 1e-2  # what D sees is changed, in both steps


def test_shared_images_are_those_that_the_generator_learned_from(monkeypatch):
    """D's gradient is that of the images that G rendered for its own step, with the same latents, poses and noise."""
    state = fitted_state(small_curriculum("share_images=True", "topk_v=1.0"))
    shared, of_G = step_gradients(state, 1, monkeypatch)
    c = state.curriculum
    settings = StepSettings.at(c, LATE)
    inputs = draw_inputs(c, settings, 4, ALONE, seed=state.draw_seed, step=LATE, purpose="G")
    with torch.no_grad():
        images = generate(state.generator, inputs, settings).images
    state.discriminator.zero_grad(set_to_none=True)
    discriminator_losses(state.discriminator, c, real_images(), images, inputs, settings).total.backward()
    torch.testing.assert_close(gradients(state.discriminator), shared)
    state.generator.zero_grad(set_to_none=True)
    generated = generate(state.generator, inputs, settings)
    generator_losses(generated, state.discriminator, c, None, inputs, settings).total.backward()
    torch.testing.assert_close(gradients(state.generator), of_G)


def test_D_learns_from_shared_images_before_it_judges_them():
    state = fitted_state(small_curriculum("share_images=True", "disc_lr=1e-2", "gen_lr=1e-3"))
    c, before = state.curriculum, copy.deepcopy(state.discriminator)
    state.step = LATE
    state.set_learning_rates(LATE)
    settings = StepSettings.at(c, LATE)
    inputs = draw_inputs(c, settings, 4, ALONE, seed=state.draw_seed, step=LATE, purpose="G")
    generated = generate(state.generator, inputs, settings)
    scalars = Trainer(state, RunOptions(Path(), ""), ALONE)._step(real_images(), c.stage_at(LATE))
    judged_by = {
        D: float(generator_losses(generated, D, c, None, inputs, settings).terms["gan"]) for D in (before, state.discriminator)
    }
    assert float(scalars["G/gan"]) == pytest.approx(judged_by[state.discriminator], rel=1e-5)
    assert abs(judged_by[before] - judged_by[state.discriminator]) > 1e-3


def test_relativistic_losses_compare_pairs(monkeypatch):
    """D's gradient and G's loss in the trainer are those of the formulas; both use the same images."""
    more = ("share_images=True", "topk_v=1.0", "pos_lambda=0", "r1_lambda=0.3", "augment_target=0.6")
    state = fitted_state(small_curriculum(*more, *RELATIVISTIC))
    state.augment_p = torch.tensor(0.7)
    with torch.no_grad():
        state.discriminator.final_layer.weight[0] *= 50  # so that the losses are far from linear
    of_D, of_G = step_gradients(state, 1, monkeypatch)
    c, D, real = state.curriculum, state.discriminator, real_images().requires_grad_(True)
    settings = replace(StepSettings.at(c, LATE), augment_p=state.augment_p)
    inputs = draw_inputs(c, settings, 4, ALONE, seed=state.draw_seed, step=LATE, purpose="G")
    generated = generate(state.generator, inputs, settings)
    fake = generated.images.detach().requires_grad_(True)
    seen = [augment(x, inputs.augmentation[:, i], settings.augment_p) for x, i in ((real, REAL), (fake, GENERATED))]
    D.zero_grad(set_to_none=True)
    score_real, score_fake = (D(x, settings.fade_alpha).score for x in seen)
    slopes = [torch.autograd.grad(s.sum(), x, create_graph=True)[0] for s, x in ((score_real, real), (score_fake, fake))]
    steepness = [slope.flatten(1).norm(dim=1).square().mean() for slope in slopes]
    (torch.log1p(torch.exp(score_fake - score_real)).mean() + 0.15 * steepness[0] + 0.25 * steepness[1]).backward()
    torch.testing.assert_close(gradients(D), of_D, rtol=1e-3, atol=1e-6)

    state.generator.zero_grad(set_to_none=True)
    kept = generator_losses(generated, D, c, real.detach(), inputs, settings)
    of_G_alone = torch.log1p(torch.exp(score_real - score_fake)).mean().detach()
    torch.testing.assert_close(kept.terms["gan"], of_G_alone)
    kept.total.backward()
    torch.testing.assert_close(gradients(state.generator), of_G)


def test_the_sign_of_relativistic_scores_is_that_of_their_difference():
    """Adding a constant to all scores changes neither D's loss nor the augmentation probability."""
    state = fitted_state(small_curriculum("augment_target=0.6", *RELATIVISTIC))
    c, D, settings = state.curriculum, state.discriminator, StepSettings.at(state.curriculum, LATE)
    settings = replace(settings, augment_p=torch.zeros(()))
    inputs = draw_inputs(c, settings, 4, ALONE, seed=0, step=LATE, purpose="D")
    fake = -real_images()
    fake[:2] = real_images()[:2].flip(0)  # so these two pairs lead and lag by the same: not all real ones are ahead
    before = discriminator_losses(D, c, real_images(), fake, inputs, settings).terms["real_sign"]
    lead = (D(real_images(), settings.fade_alpha).score - D(fake, settings.fade_alpha).score).sign().mean()
    with torch.no_grad():
        D.final_layer.bias[0] += 1000
    after = discriminator_losses(D, c, real_images(), fake, inputs, settings).terms["real_sign"]
    lead = lead.detach()
    assert float(before) == float(after) == float(lead)
    assert abs(float(lead)) < 1  # else it could also mean "all above 0"


def assert_same(a, b, where="state"):
    assert type(a) is type(b), where
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, (list, tuple)):
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}[{i}]")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    else:
        assert a == b, where


def test_a_resumed_run_equals_an_undisturbed_one_bit_for_bit(photos, tmp_path):
    stages = ["stages=({'start_step':0,'batch_size':4,'img_size':8,'gen_lr':1e-3,'disc_lr':1e-3},"
              "{'start_step':3,'batch_size':2,'img_size':16,'gen_lr':5e-4,'disc_lr':1e-3,'batch_split':2})"]  # fmt: skip
    overrides = (
        [text for text in SMALL if not text.startswith(("batch_size", "img_size"))]
        + stages
        + ["end_step=7", "augment_target=0.01"]
    )
    common = [*arguments(photos, tmp_path)[: -len(SMALL)], *overrides]
    for name, limits in (("whole", [None]), ("cut", ["2", "5", None])):
        for limit in limits:
            command = list(common)
            command[command.index("--output_dir") + 1] = str(tmp_path / name)
            train([*(["--max_steps", limit] if limit else []), "--sample_interval", "3", *command])
    assert_same(
        load_training_checkpoint(tmp_path / "whole" / "checkpoint_0000007.pt"),
        load_training_checkpoint(tmp_path / "cut" / "checkpoint_0000007.pt"),
    )
    assert (tmp_path / "whole" / "samples" / "0000007.png").is_file()
    assert load_generator(tmp_path / "cut" / "generator.safetensors").step == 7
    # The end of a curriculum is final: the same command stops at once, and all files stay in place.
    train(
        [
            *common[: common.index("--output_dir")],
            "--output_dir",
            str(tmp_path / "cut"),
            *common[common.index("--output_dir") + 2 :],
        ]
    )


def test_the_hold_to_the_ball_ends_and_does_not_return_on_resume(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(outward_start, "NUM_STEPS", 20)
    held = ["init_ball_radius=0.08", "ball_hold_steps=4"]

    def hold_of(name: str, *limits: str, more: Sequence[str] = ()) -> list[bool]:
        for limit in limits:
            train([*arguments(photos, tmp_path / name, "--max_steps", limit, *more), *held])
        return ["G/ball_hold" in line for line in map(json.loads, (tmp_path / name / "log.jsonl").read_text().splitlines())]

    assert hold_of("whole", "6") == hold_of("cut", "2", "5", "6") == [True] * 4 + [False] * 2
    whole, cut = (load_training_checkpoint(tmp_path / name / "checkpoint_0000006.pt") for name in ("whole", "cut"))
    assert_same(whole, cut)
    assert hold_of("shaped", "2", more=["--load_dir", str(tmp_path / "whole")]) == [False] * 2
    held.append("ball_hold_floor=0.01")
    assert hold_of("a little", "2", more=["--load_dir", str(tmp_path / "whole")]) == [True] * 2
    line = json.loads((tmp_path / "a little" / "log.jsonl").read_text().splitlines()[-1])
    assert line["schedule/lambda_ball_hold"] == 0.01
    early = str(tmp_path / "cut" / "checkpoint_0000002.pt")
    assert hold_of("still held", "4", more=["--load_dir", early, "--set_step", "2"]) == [True] * 2


def test_a_run_resumes_only_with_its_own_settings(photos, tmp_path):
    train([*arguments(photos, tmp_path, "--max_steps", "1"), "r1_lambda=3", "normal_lambda=0.2"])
    with pytest.raises(
        UserError, match=r"r1_lambda = 3.*\(also different: normal_lambda\); use its own settings \(--curriculum .*run.json"
    ):
        train(arguments(photos, tmp_path, "--max_steps", "2"))
    own = arguments(photos, tmp_path, "--max_steps", "2")
    own[own.index("SYNTH_TINY")] = str(tmp_path / "run.json")
    train(own[: own.index("--set")])
    assert load_generator(tmp_path / "generator.safetensors").curriculum.r1_lambda == 3


def test_future_stages_may_change_and_past_ones_may_not(photos, tmp_path, capfd):
    stages = "stages=(%s)"
    first, second, other = (
        f"{{'start_step':{start},'batch_size':2,'img_size':{size},'gen_lr':1e-4,'disc_lr':1e-4}},"
        for start, size in ((0, 8), (2, 16), (2, 32))
    )
    in_one_go, cut = tmp_path / "in one go", tmp_path / "cut"
    train([*arguments(photos, in_one_go, "--max_steps", "3"), stages % (first + second)])
    train([*arguments(photos, cut, "--max_steps", "2"), stages % first])
    train([*arguments(photos, cut, "--max_steps", "3"), stages % (first + second), "end_step=30000"])
    assert "step 2; changed settings: stages, end_step" in "".join(capfd.readouterr())
    whole, continued = (load_training_checkpoint(folder / "checkpoint_0000003.pt") for folder in (in_one_go, cut))
    assert all(torch.equal(continued["generator"][name], tensor) for name, tensor in whole["generator"].items())
    with pytest.raises(UserError, match=r"with stages\[1\]\.img_size = 16, but this run has 32; only stages from step 3 on may"):
        train([*arguments(photos, cut, "--max_steps", "4"), stages % (first + other)])
    cosine = arguments(photos, tmp_path / "cosine", "--max_steps", "1")
    train([*cosine, "lr_decay=cosine"])
    with pytest.raises(UserError, match="with end_step = 20000, but this run has 30000"):
        train([*cosine, "lr_decay=cosine", "end_step=30000"])
    with pytest.raises(UserError, match="with lr_decay = 'constant', but this run has 'cosine';"):
        train([*arguments(photos, cut, "--max_steps", "4"), stages % (first + second), "lr_decay=cosine"])
    with pytest.raises(
        UserError, match=r"with stages\[1\] = \{'start_step': 2, .*\}, but this run has None; only stages from step 3 on may"
    ):
        train([*arguments(photos, cut, "--max_steps", "4"), stages % first])


def test_averages_follow_the_weights(photos, tmp_path):
    train([*arguments(photos, tmp_path, "--max_steps", "3", "--eval_freq", "3")])
    state = load_training_checkpoint(tmp_path / "checkpoint_0000003.pt")
    assert state["ema_num_updates"] == 3
    name = "siren.network.1.layer.weight"
    assert not torch.equal(state["ema"][name], state["generator"][name])
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    measured = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert measured["step"] == 3 and {"hit_rate", "swd", "swd_real_halves"} <= measured.keys()
    assert {"D/r1", "D/pose", "G/gan", "G/opacity_prior", "G/normal", "G/hit_rate", "images_per_second"} <= lines[0].keys()


def test_a_run_is_evaluated_once_more_when_it_ends(photos, tmp_path):
    for stop, evaluated in (("2", [2]), ("2", [2]), ("4", [2, 3, 4])):
        train([*arguments(photos, tmp_path, "--max_steps", stop, "--eval_freq", "3", "--eval_images", "0")])
        lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines] == evaluated


def test_the_crop_is_kept_with_the_run(photos, tmp_path):
    train(arguments(photos, tmp_path, "--max_steps", "1", "--dataset", "Cats"))
    assert load_generator(tmp_path / "generator.safetensors").curriculum.dataset == "Cats"
    with pytest.raises(UserError, match="was trained with dataset = 'Cats', but this run has 'Images'"):
        train(arguments(photos, tmp_path, "--max_steps", "2", "--dataset", "Images"))
    faster = arguments(photos, tmp_path, "--max_steps", "2", "--dataset", "Cats")
    with pytest.raises(UserError, match=r"with stages\[0\]\.gen_lr = 0\.0004, but this run has 0\.001;"):
        train([*faster, "gen_lr=1e-3"])


def test_lazy_r1_is_due_at_its_interval_and_rates_follow_their_schedule(photos, tmp_path):
    lazy = ["r1_interval=2", "lr_warmup_steps=4", "gen_lr=1e-3"]
    train([*arguments(photos, tmp_path, "--max_steps", "2"), *lazy])
    train([*arguments(photos, tmp_path, "--max_steps", "4"), *lazy])
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert ["D/r1" in line for line in lines] == [False, True, False, True]
    assert [line["schedule/gen_lr"] for line in lines] == pytest.approx([2.5e-4, 5e-4, 7.5e-4, 1e-3])
    state = load_training_checkpoint(tmp_path / "checkpoint_0000004.pt")
    assert state["optimizer_G"]["param_groups"][0]["lr"] == pytest.approx(1e-3)


def test_radiance_curriculum_trains(photos, tmp_path):
    radiance = ["pred_occ=False", "surface_sample=False", "with_opacprior=False", "with_normal_loss=False", "num_steps_fine=4"]
    radiance += ["hollow_check_interval=0", "num_steps_surface=0"]
    train([*arguments(photos, tmp_path, "--max_steps", "2"), *radiance])
    assert load_training_checkpoint(tmp_path / "checkpoint_0000002.pt")["step"] == 2


def test_another_curriculum_in_the_same_folder_is_refused(photos, tmp_path, capsys):
    train(arguments(photos, tmp_path, "--max_steps", "1"))
    from common.errors import UserError

    with pytest.raises(UserError, match=r"r1_lambda = 0\.02"):
        train([*arguments(photos, tmp_path, "--max_steps", "2"), "r1_lambda=2"])
    train(
        [*arguments(photos, tmp_path / "new", "--max_steps", "2", "--load_dir", str(tmp_path), "--set_step", "1"), "r1_lambda=2"]
    )
    assert load_training_checkpoint(tmp_path / "new" / "checkpoint_0000002.pt")["optimizer_G"]["state"][0]["step"] == 2


def test_a_generator_file_starts_a_run_with_a_new_discriminator(photos, tmp_path, capsys):
    train(arguments(photos, tmp_path / "first", "--max_steps", "2"))
    source = tmp_path / "first" / "generator.safetensors"
    capsys.readouterr()
    command = arguments(photos, tmp_path / "new", "--load_dir", str(source), "--set_step", "2", "--max_steps", "3")
    train([*command, "gen_lr=1e-9"])
    assert f"starting from the generator {source} (its step 2)" in capsys.readouterr().err
    before = read_inference(source).tensors
    after = load_training_checkpoint(tmp_path / "new" / "checkpoint_0000003.pt")
    for name, value in after["generator"].items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=1e-7)
    assert min(after["ema_num_updates"], after["ema2_num_updates"]) > 1_000_000  # no warm-up of averages of averaged weights
    assert {int(moments["step"]) for moments in after["optimizer_D"]["state"].values()} == {1}


def test_a_shipped_generator_can_be_the_starting_point():
    notes: list[str] = []
    state = load_starting_point(Path("cats"), notes)
    assert set(state) == {"generator", "ema", "ema_num_updates"}
    assert {value.dtype for value in state["generator"].values()} == {torch.float32}
    assert "the discriminator is new" in notes[0]


def test_published_files_start_a_run(photos, tmp_path, published_files):
    source = tmp_path / "published"
    source.mkdir()
    for name in ("generator.pth", "ema.pth"):
        shutil.copy(published_files / name, source)
    command = ["--curriculum", "BFM", "--dataset_path", str(photos), "--output_dir", str(tmp_path / "out"), "--device", "cpu"]
    tiny = ["batch_size=1", "img_size=4", "batch_split=1", "gen_lr=1e-9"]
    train([*command, "--no-cache", "--no-use_logger", "--load_dir", str(source), "--load_dict", "--set_step", "70000",
           "--max_steps", "70001", "--dataset", "Images", "--sample_interval", "0", "--set", *tiny])  # fmt: skip
    state = load_training_checkpoint(tmp_path / "out" / "checkpoint_0070001.pt")
    expected = load_generator(source / "generator.pth", CURRICULUMS["BFM"]).generator.state_dict()
    for name, value in expected.items():  # the averages start at ema.pth's weights, not at generator.pth's
        off_by = {key: float((state[key][name] - value).norm()) for key in ("generator", "ema", "ema2")}
        assert max(off_by["ema"], off_by["ema2"]) <= 0.1 * off_by["generator"], name


def test_a_signal_leaves_a_checkpoint_and_its_exit_status(photos, tmp_path, repo):
    process = subprocess.Popen(
        [sys.executable, "train.py", *arguments(photos, tmp_path, "--sample_interval", "0")],
        cwd=repo, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    log = tmp_path / "log.jsonl"
    deadline = time.monotonic() + 120
    while not log.exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, errors
    assert "SIGTERM" in output
    checkpoints = sorted(tmp_path.glob("checkpoint_*.pt"))
    assert load_training_checkpoint(checkpoints[-1])["step"] >= 1


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"--curriculum": "SYNTH_TINI"}, "did you mean SYNTH_TINY"),
        ({"--dataset_path": "nowhere"}, "nowhere"),
        ({"--output_dir": "/proc/forbidden"}, "/proc/forbidden"),
        ({"--device": "cuda:99"}, "cuda:99"),
        ({"--load_dir": "nowhere"}, "nowhere"),
    ],
)
def test_bad_input_is_named(photos, tmp_path, change, named):
    from common.errors import UserError

    command = arguments(photos, tmp_path)
    for key, value in change.items():
        if key in command:
            command[command.index(key) + 1] = value
        else:
            command[:0] = [key, value]
    with pytest.raises(UserError) as error:
        train(command)
    assert named in str(error.value)


def test_bad_input_is_one_line_and_status_2(repo, tmp_path):
    (tmp_path / "notes.jpg").write_text("not an image")
    result = subprocess.run(
        [sys.executable, "train.py", "--curriculum", "SYNTH_TINY", "--dataset_path", str(tmp_path), "--output_dir",
         str(tmp_path / "out"), "--device", "cpu", "--no-cache", "--set", *SMALL],
        cwd=repo, capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 2
    lines = [line for line in result.stderr.strip().splitlines() if not line.startswith("decoding")]
    assert len(lines) == 1 and "notes.jpg" in lines[0], result.stderr
    assert not (tmp_path / "out" / "run.json").exists()


def test_held_out_images_are_never_read_and_their_number_stays(photos, tmp_path, capsys):
    held_out = ["num_holdout=4"]
    train([*arguments(photos, tmp_path / "run", "--max_steps", "1", "--eval_freq", "1", "--eval_images", "8"), *held_out])
    content = load_training_checkpoint(tmp_path / "run" / "checkpoint_0000001.pt")
    assert content["num_images"] == 6
    assert f"training on 6 images in {photos}; 4 others are held out for scores" in capsys.readouterr().err
    with pytest.raises(UserError, match="num_holdout = 4, but this run has 3"):
        train([*arguments(photos, tmp_path / "run", "--max_steps", "2"), "num_holdout=3"])
    with pytest.raises(UserError, match="10 cannot be held out"):
        train([*arguments(photos, tmp_path / "other", "--max_steps", "1"), "num_holdout=10"])
