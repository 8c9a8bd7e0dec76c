"""The field's blocked arithmetic and its manual gradients, against plain PyTorch and finite differences."""

from __future__ import annotations

import pytest
import torch

from benchmarks.precision import round_to_tf32
from generators.generator import ImplicitGenerator3d
from settings.registry import CURRICULUMS
from siren.backends import blocked, folded
from siren.backends.folded import FoldedSiren


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Several blocks for each latent, the last one not full."""
    monkeypatch.setattr(blocked, "BLOCK", 5)
    monkeypatch.setattr(blocked, "BLOCK_WITH_GRADIENT", 5)


def make_siren(num_layers: int = 3, width: int = 7, channels: int = 3) -> FoldedSiren:
    """Phases of a few radians, float64."""
    random = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random, dtype=torch.float64).requires_grad_(True)

    weights = tuple(draw(2, channels if i == 0 else width, width) for i in range(num_layers))
    biases = tuple(draw(2, width) for _ in range(num_layers))
    heads = (draw(1, width), draw(1), draw(2, width, width), draw(2, 3, width), draw(2, width), draw(3, width), draw(3))
    return FoldedSiren(weights, biases, *heads)


def make_points(num: int = 12, channels: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(1)
    x = torch.randn(2, num, channels, generator=random, dtype=torch.float64)
    directions = torch.randn(2, num, 3, generator=random, dtype=torch.float64)
    return x, torch.nn.functional.normalize(directions, dim=-1)


def plain_query(siren: FoldedSiren, x, directions):
    hidden = folded.features(siren, x)
    return folded.logits(siren, hidden), None if directions is None else folded.colors(siren, hidden, directions)


def gradients_of(outputs, inputs) -> list[torch.Tensor]:
    """Gradients of a random projection of the outputs, the same at each call."""
    random = torch.Generator().manual_seed(2)
    total = sum((torch.randn(o.shape, generator=random, dtype=o.dtype) * o).sum() for o in outputs)
    return [
        torch.zeros_like(i) if g is None else g
        for i, g in zip(inputs, torch.autograd.grad(total, inputs, allow_unused=True), strict=True)
    ]


@pytest.mark.parametrize("with_colors", [True, False])
def test_values_and_gradients_of_a_query(with_colors):
    siren, (x, directions) = make_siren(), make_points()
    x.requires_grad_(True)  # an embedding grid precedes the first layer
    directions = directions if with_colors else None
    plain, by_hand = plain_query(siren, x, directions), blocked.logits_and_colors(siren, x, directions)
    assert (by_hand[1] is None) == (not with_colors)
    chosen = slice(None) if with_colors else slice(1)
    inputs = [x, *siren.tensors()]
    for a, b in zip(plain[chosen], by_hand[chosen], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    for a, b in zip(gradients_of(plain[chosen], inputs), gradients_of(by_hand[chosen], inputs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    with torch.no_grad():
        for a, b in zip(blocked.logits_and_colors(siren, x, directions)[chosen], by_hand[chosen], strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("outputs", [slice(0, 1), slice(1, 2), slice(0, 2)], ids=["logits", "gradients", "both"])
def test_values_and_gradients_of_a_gradient(outputs):
    siren, (x, _) = make_siren(), make_points()
    plain, by_hand = folded.logits_and_gradients(siren, x), blocked.logits_and_gradients(siren, x)
    for a, b in zip(plain, by_hand, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    for a, b in zip(gradients_of(plain[outputs], siren.tensors()), gradients_of(by_hand[outputs], siren.tensors()), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    with torch.no_grad():
        for a, b in zip(blocked.logits_and_gradients(siren, x), by_hand, strict=True):
            assert torch.equal(a, b)


def test_finite_differences():
    siren, (x, directions) = make_siren(num_layers=2, width=4), make_points(num=6)

    def query(*tensors):
        return blocked.logits_and_colors(FoldedSiren.from_tensors(tensors), x, directions)

    def gradient(*tensors):
        return blocked.logits_and_gradients(FoldedSiren.from_tensors(tensors), x)

    assert torch.autograd.gradcheck(query, siren.tensors())
    assert torch.autograd.gradcheck(gradient, siren.tensors())


def test_no_points():
    siren, (x, directions) = make_siren(), make_points(num=0)
    logits, colors = blocked.logits_and_colors(siren, x, directions)
    assert logits.shape == (2, 0) and colors.shape == (2, 0, 3)
    (logits.sum() + colors.sum()).backward()
    assert float(siren.weights[0].grad.abs().sum()) == 0


def test_unsupported_second_derivatives_are_rejected():
    siren, (x, _) = make_siren(), make_points()
    x.requires_grad_(True)
    with pytest.raises(NotImplementedError, match="folded"):
        blocked.logits_and_gradients(siren, x)[1].sum().backward()
    scale = torch.ones((), dtype=x.dtype, requires_grad=True)
    (gradient,) = torch.autograd.grad((blocked.logits_and_colors(siren, x, None)[0] * scale).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize("model", ["SPATIALSIRENBASELINE", "EmbeddingPiGAN256"])
def test_training_gradients_of_a_field_in_float32(model):
    """Within float32 error of double precision, and no worse than automatic differentiation."""
    torch.manual_seed(0)
    overrides = [f"model={model}", "hidden_dim=32", "num_layers=4", "latent_dim=8"]
    generator = ImplicitGenerator3d(CURRICULUMS["SYNTH_TINY"].with_overrides(overrides))
    z = torch.randn(2, 8)
    points = torch.rand(2, 23, 3) * 0.2 - 0.1
    directions = torch.nn.functional.normalize(torch.randn(2, 23, 3), dim=-1)
    parameters = [p for name, p in generator.named_parameters() if "mapping" not in name]

    def by_query(wants_point_gradient: bool) -> list[torch.Tensor]:
        where = points.clone().requires_grad_(wants_point_gradient)  # that is what switches to plain PyTorch
        field = generator.field_of_latents(z)
        outputs = (*field.logits_and_colors(where, directions), field.normals(where))
        return gradients_of(outputs, parameters)

    for by_hand, plain in zip(by_query(False), by_query(True), strict=True):
        assert float((by_hand - plain).norm()) <= 2e-4 * float(plain.norm()) + 1e-7


@torch.no_grad()
def test_nothing_is_recorded_without_gradients():
    """Also for a model with a feature grid, which needs gradients with respect to the points."""
    torch.manual_seed(0)
    curriculum = CURRICULUMS["SYNTH_TINY"].with_overrides(["model=EmbeddingPiGAN256", "hidden_dim=32", "latent_dim=8"])
    generator = ImplicitGenerator3d(curriculum)
    field = generator.field_of_latents(torch.randn(2, 8))
    points = torch.rand(2, 13, 3) * 0.2 - 0.1
    found = field.logits_and_gradients(points)
    assert not any(tensor.requires_grad for tensor in found)
    with torch.enable_grad():
        where = points.clone().requires_grad_(True)
        (expected,) = torch.autograd.grad(field.occupancy_logits(where).sum(), where)
    torch.testing.assert_close(found[1], expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_the_first_product_is_exact_where_tf32_rounds_its_inputs():
    random = torch.Generator().manual_seed(0)
    x = ((torch.rand(2, 50, 3, generator=random) - 0.5) * 0.3).requires_grad_(True)
    weight = ((torch.rand(2, 3, 16, generator=random) - 0.5) * 160).requires_grad_(True)
    exact = x.double() @ weight.double()

    def error(a: torch.Tensor, b: torch.Tensor) -> float:
        rounded = round_to_tf32(a.detach()).double() @ round_to_tf32(b.detach()).double()
        return float((rounded - exact.detach()).abs().max())

    a, b = folded.in_two_parts(x, weight)
    assert error(a, b) < 1e-5 and error(x, weight) > 1e-3
    for found, expected in zip(gradients_of([a @ b], [x, weight]), gradients_of([x @ weight], [x, weight]), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)
    assert torch.isfinite(folded.in_two_parts(x.detach() * 1e7, weight.detach())[0]).all()


@torch.no_grad()
def test_products_in_two_parts_give_the_field_of_a_cpu(monkeypatch):
    siren, x = FoldedSiren.from_tensors([tensor.float() for tensor in make_siren().tensors()]), make_points()[0].float()
    expected = folded.phases(siren, x)
    cpu = folded._products(siren, x)
    assert cpu[0] is x and cpu[1] is siren.weights
    products = folded.in_two_parts(x, siren.weights[0])
    monkeypatch.setattr(folded, "_products", lambda siren, x: (products[0], (products[1], *siren.weights[1:])))
    for a, b in zip(folded.phases(siren, x), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(folded.features(siren, x), expected[-1].sin(), rtol=1e-4, atol=1e-4)


def test_colors_without_view_dependence_are_equal_from_all_directions():
    directions = make_points()[1].float()
    points = directions * 0.05
    for view_dependent in (True, False):
        torch.manual_seed(0)
        curriculum = CURRICULUMS["SYNTH_TINY"].with_overrides([f"view_dependent={view_dependent}"])
        generator = ImplicitGenerator3d(curriculum)
        field = generator.field_of_latents(torch.randn(2, curriculum.latent_dim))
        colors = [field.logits_and_colors(points, d)[1] for d in (directions, -directions)]
        assert torch.equal(*colors) != view_dependent
        (colors[0] - colors[1] * 0.5).square().sum().backward()
        gradient = generator.siren.color_layer_sine.layer.weight.grad
        assert bool(gradient[:, :3].any()) == view_dependent and bool(gradient[:, 3:].any())
