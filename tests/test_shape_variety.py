"""The variety of shapes, on constructed ones and on the built-in heads."""

from __future__ import annotations

import json

import pytest
import torch

from checkpoints.loading import load_generator
from metrics.shape_variety import generated_variety, shape_variety, true_variety
from metrics.shapes import Geometry
from settings.registry import get_curriculum


def geometry(depth: torch.Tensor, mask: torch.Tensor | None = None) -> Geometry:
    mask = torch.ones(depth.shape, dtype=torch.bool) if mask is None else mask
    return Geometry(depth, torch.zeros(len(depth), 3, *depth.shape[1:]), mask)


def relief(size: int = 8) -> torch.Tensor:
    """(1, size, size), mean 0, standard deviation 1."""
    values = torch.randn(1, size, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return (values - values.mean()) / values.std(correction=0)


def test_identical_shapes_have_no_variety():
    """The distance from the camera does not count as shape."""
    shift = torch.tensor([0.0, 0.1, -0.2]).view(-1, 1, 1)
    found = shape_variety(geometry(0.03 * relief().expand(3, -1, -1) + 1 + shift))
    assert found["shape_correlation"] == pytest.approx(1) and found["shape_deviation"] == pytest.approx(0, abs=1e-9)


def test_variety_of_constructed_shapes():
    """A common part of deviation 1 and own parts of 0.5, all orthogonal: correlation 1 / 1.25; between shapes 0.5 over the
    relief of the mean shape."""
    basis = torch.linalg.qr(torch.cat([torch.ones(64, 1), torch.randn(64, 5)], dim=1).double()).Q[:, 1:] * 8
    common, own = basis[:, 0], basis[:, 1:]
    depth = (common + 0.5 * own.T).view(4, 8, 8)
    found = shape_variety(geometry(0.02 * depth + 1))
    assert found["shape_correlation"] == pytest.approx(0.8)
    between = (0.5 * own).std(dim=1).mean()
    assert found["shape_deviation"] == pytest.approx(float(between) / (1 + 0.25 / 4) ** 0.5)


def test_only_rays_that_hit_all_shapes_count():
    depth = 0.03 * relief().repeat(2, 1, 1) + 1
    mask = torch.ones(2, 8, 8, dtype=torch.bool)
    mask[0, :, 0] = mask[1, 0] = False
    depth[0, :, 0] = depth[1, 0] = 7.0
    assert shape_variety(geometry(depth, mask))["shape_correlation"] == pytest.approx(1)


def test_without_enough_data_there_is_no_score():
    mask = torch.zeros(2, 8, 8, dtype=torch.bool)
    mask[:, 0] = True  # 8 rays are too few
    assert shape_variety(geometry(0.03 * relief().repeat(2, 1, 1), mask)) == {}
    assert shape_variety(geometry(torch.ones(2, 8, 8))) == {}  # flat
    assert shape_variety(geometry(relief())) == {}  # one shape


def test_variety_of_a_generator_is_repeatable(tiny_generator_path, empty_generator_path):
    generator = load_generator(tiny_generator_path).generator
    found = generated_variety(generator, 16)
    assert found == generated_variety(generator, 16)
    assert found["shape_correlation"] > 0.9 and 0 < found["shape_deviation"] < 0.5  # all were fitted to one ball
    assert found["bulge_positive"] == 1
    less = generated_variety(generator, 16, psi=0.3)
    assert less["shape_deviation"] < found["shape_deviation"] and less["shape_correlation"] > found["shape_correlation"]
    assert generated_variety(load_generator(empty_generator_path).generator, 16) == {"bulge_positive": 0.0}


def test_the_true_heads_differ_more_than_balls(tmp_path):
    curriculum = get_curriculum("SYNTH_TINY")
    assert true_variety(tmp_path, curriculum, 16) == {}
    (tmp_path / "meta.json").write_text(json.dumps({"kind": "something else", "seed": 3}))
    assert true_variety(tmp_path, curriculum, 16) == {}
    (tmp_path / "meta.json").write_text(json.dumps({"kind": "procedural heads", "seed": 3}))
    found = true_variety(tmp_path, curriculum, 16)
    assert 0.9 < found["shape_correlation_true"] < 0.99 and 0.1 < found["shape_deviation_true"] < 0.2
