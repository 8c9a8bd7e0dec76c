"""The residual discriminator: growth that preserves outputs, initialization, and gradients of the penalties."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from checkpoints.files import load_training_checkpoint
from common.errors import UserError
from discriminators.build import build_discriminator
from discriminators.progressive import ProgressiveEncoderDiscriminator
from discriminators.residual import ResidualDiscriminator
from settings.curriculum import Curriculum
from settings.registry import CURRICULUMS
from train import main as train
from training.losses import zero_centered_penalty_loss

STAGES = ["img_size=32", "discriminator=ResidualDiscriminator"]


def curriculum(*more: str) -> Curriculum:
    return CURRICULUMS["SYNTH_TINY"].with_overrides([*STAGES, *more])


def images_of(size: int, count: int = 3) -> torch.Tensor:
    """Smooth images with some noise in [-1, 1]."""
    random = torch.Generator().manual_seed(0)
    smooth = F.interpolate(torch.randn(count, 3, 4, 4, generator=random), size=(size, size), mode="bicubic")
    return torch.tanh(smooth + 0.1 * torch.randn(count, 3, size, size, generator=random))


@pytest.fixture
def discriminator() -> ResidualDiscriminator:
    torch.manual_seed(0)
    return ResidualDiscriminator(curriculum())


def trained(discriminator: ResidualDiscriminator) -> ResidualDiscriminator:
    """A discriminator with all weights changed, except for the details of larger images."""
    with torch.no_grad():
        for name, parameter in discriminator.named_parameters():
            if "details" not in name:
                parameter.add_(0.05 * torch.randn_like(parameter))
    return discriminator


def test_a_curriculum_names_its_discriminator():
    assert isinstance(build_discriminator(CURRICULUMS["SYNTH_TINY"]), ProgressiveEncoderDiscriminator)
    assert isinstance(build_discriminator(curriculum()), ResidualDiscriminator)


@pytest.mark.parametrize("size", [32, 64, 128, 512])
def test_shapes(discriminator, size):
    output = discriminator(images_of(size))
    assert output.score.shape == (3,) and output.pose.shape == (3, 2) and output.latent is None


def test_the_latent_is_predicted_only_with_a_latent_loss():
    with_latent = ResidualDiscriminator(curriculum("z_lambda=0.1"))
    assert with_latent(images_of(32)).latent.shape == (3, with_latent.latent_dim)


@pytest.mark.parametrize("size", [64, 128, 256])
def test_growing_does_not_change_the_outputs(discriminator, size):
    """At the moment of growth, larger images score as their averages did."""
    D, images = trained(discriminator), images_of(size)
    before = D(F.avg_pool2d(images, size // 32))
    after = D(images)
    torch.testing.assert_close(after.score, before.score, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(after.pose, before.pose, rtol=1e-5, atol=1e-5)


def test_growing_again_keeps_what_the_details_have_learned(discriminator):
    D, images = trained(discriminator), images_of(128)
    torch.nn.init.normal_(D.stem.details[0].weight)
    halved = F.avg_pool2d(images, 2)
    torch.testing.assert_close(D(images).score, D(halved).score, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(D(halved).score, D(F.avg_pool2d(images, 4)).score, atol=1e-3)


def test_details_distinguish_images_with_the_same_average(discriminator):
    D, images = trained(discriminator), images_of(64)
    checkerboard = (torch.arange(64).view(-1, 1) + torch.arange(64)) % 2 * 2 - 1
    torch.testing.assert_close(D(images + 0.5 * checkerboard).score, D(images).score, rtol=1e-4, atol=1e-4)
    torch.nn.init.normal_(D.stem.details[0].weight)
    assert not torch.allclose(D(images + 0.5 * checkerboard).score, D(images).score, atol=1e-2)


def test_blocks_start_as_the_identity(discriminator):
    x = torch.randn(2, 48, 8, 8)
    assert torch.equal(discriminator.blocks[0](x), x)


@pytest.mark.parametrize("size", [32, 64])
def test_initial_outputs_and_gradients_have_a_sensible_scale(size):
    """Scores and their gradients of order 1, poses near the prior's mean, over several draws of the weights."""
    c = curriculum("h_mean=1.2", "v_mean=1.7", "hollow_check_interval=0")
    scores, gradients, poses = [], [], []
    for seed in range(4):
        torch.manual_seed(seed)
        images = images_of(size, 6).requires_grad_(True)
        output = ResidualDiscriminator(c)(images)
        scores.append(output.score.detach())
        poses.append(output.pose.detach())
        gradients.append(zero_centered_penalty_loss(output.score, images).detach())
    assert 0.05 < float(torch.stack(scores).std()) < 2
    assert 1e-4 < float(torch.stack(gradients).mean()) < 10
    torch.testing.assert_close(torch.cat(poses).mean(dim=0), torch.tensor([1.7, 1.2]), atol=0.4, rtol=0)


@pytest.mark.parametrize("size", [32, 64, 128])
def test_only_the_details_of_larger_images_get_no_gradient(discriminator, size):
    D = trained(discriminator)
    output = D(images_of(size))
    (output.score.sum() + output.pose.sum()).backward()
    of_larger = {f"stem.details.{k}.weight" for k in range(D.stem.level(size), len(D.stem.details))}
    assert of_larger == {name for name, parameter in D.named_parameters() if parameter.grad is None}
    assert all(bool(parameter.grad.any()) for name, parameter in D.named_parameters() if name not in of_larger)


def test_the_penalty_and_its_gradient_are_those_of_differences():
    """Against finite differences, in float64: of the scores along their gradient, and of the penalty along its own."""
    torch.manual_seed(0)
    D = trained(ResidualDiscriminator(curriculum("disc_widths=(4, 6)"))).double()  # base size 8
    float32 = torch.Tensor.float
    images = images_of(16, 2).double().requires_grad_(True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "float", lambda x: x if x.dtype == torch.float64 else float32(x))
        penalty = zero_centered_penalty_loss(D(images).score, images)
        (along,) = torch.autograd.grad(D(images).score.sum(), images)
        with torch.no_grad():
            slope = (D(images + 1e-6 * along).score - D(images - 1e-6 * along).score) / 2e-6
        assert float(penalty.detach()) == pytest.approx(float(slope.mean()), rel=1e-5)
        parameters = list(D.parameters())
        gradients = torch.autograd.grad(penalty, parameters, allow_unused=True)
        values = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    if gradient is not None:
                        parameter.add_((step if step > 0 else 2 * step) * gradient)
            values.append(float(zero_centered_penalty_loss(D(images).score, images).detach()))
    squared = sum(float(gradient.square().sum()) for gradient in gradients if gradient is not None)
    assert squared > 0
    assert (values[0] - values[1]) / 2e-5 == pytest.approx(squared, rel=1e-3)


@pytest.mark.parametrize("size", [16, 48, 1024])
def test_other_sizes_are_refused(discriminator, size):
    with pytest.raises(ValueError, match=f"{size} px"):
        discriminator(torch.zeros(1, 3, size, size))


@pytest.mark.parametrize(
    "setting, named",
    [
        ("img_size=16", "remove the first"),
        ("disc_widths=()", "disc_widths"),
        ("disc_widths=(8, 0)", "disc_widths"),
        ("disc_widths=(1, 2, 3, 4, 5, 6, 7, 8, 9)", "disc_widths"),
        ("disc_widths=8", "disc_widths"),
    ],
)
def test_bad_settings_are_named(setting, named):
    with pytest.raises(UserError, match=named):
        curriculum(setting)


def test_widths_imply_the_base_size():
    assert curriculum().disc_base_size == 32
    assert curriculum("disc_widths=(8, 8)").disc_base_size == 8
    narrow = ResidualDiscriminator(curriculum("disc_widths=(8, 8)", "img_size=8"))
    assert narrow(images_of(8)).score.shape == (3,)


STAGES_THAT_GROW = (
    "stages=({'start_step':0,'batch_size':4,'img_size':8,'gen_lr':1e-3,'disc_lr':1e-3},"
    "{'start_step':3,'batch_size':2,'img_size':16,'gen_lr':5e-4,'disc_lr':1e-3})"
)
SMALL = ("hidden_dim=8", "num_layers=2", "latent_dim=8", "num_steps_coarse=6", "init_ball_radius=0", "disc_widths=(4, 6)")
PENALTIES = ("gan_loss=relativistic", "r1_lambda=0.1", "r2_lambda=0.1", "r1_interval=2")


def test_a_run_grows_and_resumes_bit_identically(tmp_path):
    """Through the training script: 8 px, then 16 px, cut before and after the growth, with lazy penalties."""
    random = np.random.default_rng(0)
    photos = tmp_path / "photos"
    photos.mkdir()
    for i in range(10):
        Image.fromarray(random.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(photos / f"{i}.png")

    def run(name: str, *limits: str | None) -> dict:
        for limit in limits:
            train(
                [
                    *("--curriculum", "SYNTH_TINY", "--dataset_path", str(photos), "--output_dir", str(tmp_path / name)),
                    *("--device", "cpu", "--no-cache", "--no-use_logger", *(["--max_steps", limit] if limit else [])),
                    *("--set", "discriminator=ResidualDiscriminator", *SMALL, *PENALTIES, STAGES_THAT_GROW, "end_step=6"),
                ]
            )
        return load_training_checkpoint(tmp_path / name / "checkpoint_0000006.pt")

    whole, cut = run("whole", None), run("cut", "2", "4", None)
    for name, weight in whole["discriminator"].items():
        assert torch.equal(weight, cut["discriminator"][name]), name
    for place, moments in whole["optimizer_D"]["state"].items():
        assert torch.equal(moments["exp_avg_sq"], cut["optimizer_D"]["state"][place]["exp_avg_sq"])
    details = [whole["discriminator"][f"stem.details.{k}.weight"] for k in range(2)]
    assert bool(details[0].any()) and not bool(details[1].any())  # 16 px have been seen, 32 px have not
