"""Augmentation: its values, its frequency, and that gradients, R1 and R2 propagate through it."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from training.augmentation import MAX_P, NUM_UNIFORMS, adapted, augment

ONE, ZERO = torch.tensor(1.0), torch.tensor(0.0)
MIDDLE = 0.5  # of a uniform number: no change


def uniforms(**how: float) -> torch.Tensor:
    """Random numbers of one image: all augmentations apply, but only the named ones change anything."""
    places = {"brightness": 4, "contrast": 5, "saturation": 6, "rows": 7, "columns": 8}
    numbers = torch.full((1, NUM_UNIFORMS), MIDDLE)
    for name, value in how.items():
        numbers[0, places[name]] = value
    return numbers


@pytest.fixture()
def image() -> torch.Tensor:
    return torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_each_augmentation_by_hand(image):
    torch.testing.assert_close(augment(image, uniforms(), ONE), image)
    torch.testing.assert_close(augment(image, uniforms(brightness=1.0), ONE), image + 0.4)
    stretched = augment(image, uniforms(contrast=1.0), ONE)
    torch.testing.assert_close(stretched - image.mean(), 2 * (image - image.mean()))
    gray = image.mean(dim=1, keepdim=True)
    torch.testing.assert_close(augment(image, uniforms(saturation=0.0), ONE), gray + (image - gray) / 2)
    down = augment(image, uniforms(rows=1.0), ONE)  # an eighth of 16 px
    torch.testing.assert_close(down[:, :, 2:], image[:, :, :-2])
    torch.testing.assert_close(down[:, :, :2], image[:, :, :1].expand(1, 3, 2, 16))
    left = augment(image, uniforms(columns=0.0), ONE)
    torch.testing.assert_close(left[..., :-2], image[..., 2:])


def test_each_image_is_augmented_independently_with_probability_p():
    images = torch.zeros(4000, 3, 8, 8)
    numbers = torch.rand(4000, NUM_UNIFORMS, generator=torch.Generator().manual_seed(0))
    some = torch.rand(100, 3, 8, 8)
    torch.testing.assert_close(augment(some, numbers[:100], ZERO), some)
    brighter = augment(images, numbers, torch.tensor(0.3))[:, 0, 0, 0]
    assert float((brighter != 0).float().mean()) == pytest.approx(0.3, abs=0.03)
    assert len(brighter.unique()) > 1000
    alone = augment(images[5:6], numbers[5:6], torch.tensor(0.3))
    assert torch.equal(alone, augment(images, numbers, torch.tensor(0.3))[5:6])


def test_augmentation_is_twice_differentiable():
    images = torch.rand(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    numbers = torch.rand(2, NUM_UNIFORMS, generator=torch.Generator().manual_seed(1))
    assert gradcheck(lambda x: augment(x, numbers, ONE), (images,))
    assert gradgradcheck(lambda x: augment(x, numbers, ONE).square().mean(), (images,))


def test_p_follows_the_sign_of_the_real_scores():
    p = torch.tensor(0.5)
    assert float(adapted(p, torch.tensor(0.9), 0.6, 20)) == pytest.approx(0.501)
    assert float(adapted(p, torch.tensor(0.1), 0.6, 20)) == pytest.approx(0.499)
    assert float(adapted(torch.tensor(MAX_P), torch.tensor(1.0), 0.6, 20)) == pytest.approx(MAX_P)
    assert float(adapted(ZERO, torch.tensor(-1.0), 0.6, 20)) == 0
