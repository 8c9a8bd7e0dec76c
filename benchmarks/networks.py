"""The networks to measure, and the cost of evaluating them.

The published curricula use 8 layers of 256 units, but no trained network of that size is available here. So the pretrained
`heads_siren` is widened and deepened without changing the function (Net2Net; Chen, Goodfellow, Shlens, ICLR 2016). Units are
copied, and the weights that read them are distributed randomly over the copies. Added layers have small phases, where the sine
is nearly linear, and so pass values on. The shapes are those of `heads_siren`, the cost is that of BFM.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from checkpoints.loading import load_generator
from fields.interface import Field
from generators.generator import ImplicitGenerator3d, latent_from_seed
from settings.curriculum import Curriculum
from settings.registry import CURRICULUMS, get_curriculum
from siren.mapping import FilmParameters

SHIPPED = "heads_siren"
PASSING_PHASE = 0.02  # of an added layer: its sine differs from its argument by 1 part in 15,000
PSI = 0.7
NUM_MEAN_LATENTS = 500  # for the truncation mean of the widened network; approximate but fast


@dataclass(frozen=True)
class Network:
    """A generator to measure, and its description for the report."""

    generator: ImplicitGenerator3d
    curriculum: Curriculum
    description: str

    @torch.no_grad()
    def field(self, seed: int = 0) -> Field:
        """Return the field of a seed, psi 0.7."""
        z = latent_from_seed(seed, self.curriculum)
        return self.generator.field_of_latents(z, PSI)


def shipped_network() -> Network:
    loaded = load_generator(SHIPPED)
    return Network(loaded.generator, loaded.curriculum, f"pretrained {SHIPPED} ({_sizes(loaded.curriculum)})")


def full_network(path: str | None, curriculum_name: str | None) -> Network:
    """Return the generator at ``path``, or the pretrained one at BFM's size. Raises UserError if the file is not usable."""
    if path is not None:
        loaded = load_generator(path, get_curriculum(curriculum_name) if curriculum_name else None)
        return Network(loaded.generator, loaded.curriculum, f"{Path(path).name} ({_sizes(loaded.curriculum)})")
    curriculum = CURRICULUMS["BFM"]
    generator = widen(shipped_network().generator, curriculum)
    description = f"pretrained {SHIPPED}, widened and deepened to the size of BFM ({_sizes(curriculum)}), same function"
    return Network(generator, curriculum, description)


def _sizes(curriculum: Curriculum) -> str:
    return f"{curriculum.num_layers} layers of {curriculum.hidden_dim}"


# -- cost ----------------------------------------------------------------------------------------------------------------


def flops_per_point(curriculum: Curriculum, with_color: bool) -> int:
    """Return the FLOP per point: two per multiply-add of the linear layers, with FiLM folded in, without sines and biases."""
    hidden = curriculum.hidden_dim
    products = 3 * hidden + (curriculum.num_layers - 1) * hidden**2 + hidden
    if with_color:
        products += (hidden + 3) * hidden + 3 * hidden
    return 2 * products


class CountingField:
    """A field that counts the queried points; see fields.interface.Field. A normal counts as two points, as it costs as much."""

    def __init__(self, field: Field) -> None:
        self._field = field
        self.batch_size = field.batch_size
        self.num_points = 0

    def _count(self, points: Tensor, times: int = 1) -> None:
        self.num_points += times * points.shape[0] * points.shape[1]

    def occupancy_logits(self, points: Tensor) -> Tensor:
        self._count(points)
        return self._field.occupancy_logits(points)

    def logits_and_colors(self, points: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        self._count(points)
        return self._field.logits_and_colors(points, directions)

    def normals(self, points: Tensor) -> Tensor:
        self._count(points, 2)
        return self._field.normals(points)


class StraightforwardField:
    """The same function in straightforward PyTorch: per layer linear, times gamma, plus beta, sine; all points at once."""

    def __init__(self, generator: ImplicitGenerator3d, film: FilmParameters) -> None:
        siren = generator.siren
        self.batch_size = len(film.frequencies)
        self._siren = siren
        shape = (self.batch_size, siren.num_layers + 1, 1, siren.hidden_dim)
        self._gamma = (film.frequencies * 15 + 30).view(shape)
        self._beta = film.phase_shifts.view(shape)

    @classmethod
    @torch.no_grad()
    def of_seed(cls, network: Network, seed: int = 0) -> StraightforwardField:
        """Return the counterpart of :meth:`Network.field`."""
        c = network.curriculum
        return cls(network.generator, network.generator.styles(latent_from_seed(seed, c), PSI))

    def _features(self, points: Tensor) -> Tensor:
        x = points * self._siren.point_scale
        for i, layer in enumerate(self._siren.network):
            x = torch.sin(self._gamma[:, i] * F.linear(x, layer.layer.weight, layer.layer.bias) + self._beta[:, i])
        return x

    def occupancy_logits(self, points: Tensor) -> Tensor:
        return self._siren.final_layer(self._features(points)).squeeze(-1)

    def logits_and_colors(self, points: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        x = self._features(points)
        phase = self._siren.color_layer_sine.layer(torch.cat([directions, x], dim=-1))
        color = torch.sin(self._gamma[:, -1] * phase + self._beta[:, -1])
        return self._siren.final_layer(x).squeeze(-1), torch.sigmoid(self._siren.color_layer_linear(color))

    def normals(self, points: Tensor) -> Tensor:
        with torch.enable_grad():
            points = points.detach().requires_grad_(True)
            (gradient,) = torch.autograd.grad(self.occupancy_logits(points).sum(), points)
        return -F.normalize(gradient, dim=-1)


# -- widening ------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def widen(small: ImplicitGenerator3d, curriculum: Curriculum) -> ImplicitGenerator3d:
    """Return a generator of ``curriculum``'s size with the function of ``small``, given the first numbers of its latents."""
    num_small, hidden = small.siren.hidden_dim, curriculum.hidden_dim
    random = torch.Generator().manual_seed(0)
    copy_of = torch.arange(hidden) % num_small  # unit i of a wide layer is a copy of unit copy_of[i]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        wide = ImplicitGenerator3d(curriculum).eval()
    last = small.siren.num_layers - 1
    for i, layer in enumerate(wide.siren.network):
        target = layer.layer
        if i <= last:
            source = small.siren.network[i].layer
            weight = source.weight[copy_of]
            target.weight.copy_(weight if i == 0 else _distribute(weight, copy_of, random))
            target.bias.copy_(source.bias[copy_of])
        else:
            scale = (PASSING_PHASE if i == last + 1 else 1.0) / 30
            target.weight.copy_(_distribute(torch.eye(num_small)[copy_of] * scale, copy_of, random))
            target.bias.zero_()
    restore = 1 / PASSING_PHASE if len(wide.siren.network) > last + 1 else 1.0
    final = small.siren.final_layer
    _set_linear(wide.siren.final_layer, final, _distribute(final.weight, copy_of, random) * restore)
    source = small.siren.color_layer_sine.layer
    from_features = _distribute(source.weight[copy_of, 3:], copy_of, random) * restore
    wide.siren.color_layer_sine.layer.weight.copy_(torch.cat([source.weight[copy_of, :3], from_features], dim=1))
    wide.siren.color_layer_sine.layer.bias.copy_(source.bias[copy_of])
    color = small.siren.color_layer_linear[0]
    _set_linear(wide.siren.color_layer_linear[0], color, _distribute(color.weight, copy_of, random))
    _widen_mapping(small, wide, copy_of)
    wide.compute_truncation_mean(NUM_MEAN_LATENTS)
    return wide


def _set_linear(target: nn.Linear, source: nn.Linear, weight: Tensor) -> None:
    target.weight.copy_(weight)
    target.bias.copy_(source.bias)


def _distribute(weight: Tensor, copy_of: Tensor, random: torch.Generator) -> Tensor:
    """Distribute each unit's weight over its copies, and add noise that sums to 0 over them: (out, small) -> (out, wide)."""
    num_small = weight.shape[1]
    part = torch.rand(len(weight), len(copy_of), generator=random) + 0.5
    sums = torch.zeros(len(weight), num_small).index_add_(1, copy_of, part)
    shared = weight[:, copy_of] * part / sums[:, copy_of]
    noise = (torch.rand(len(weight), len(copy_of), generator=random) - 0.5) * float(weight.std()) / math.sqrt(len(copy_of))
    means = torch.zeros(len(weight), num_small).index_add_(1, copy_of, noise) / torch.bincount(copy_of, minlength=num_small)
    return shared + noise - means[:, copy_of]


def _widen_mapping(small: ImplicitGenerator3d, wide: ImplicitGenerator3d, copy_of: Tensor) -> None:
    """Embed the mapping network in the first units of the wide one. Added FiLM layers get gamma 30 and beta 0."""
    sources = [module for module in small.siren.mapping_network.network if isinstance(module, nn.Linear)]
    targets = [module for module in wide.siren.mapping_network.network if isinstance(module, nn.Linear)]
    for source, target in zip(sources[:-1], targets[:-1], strict=True):
        target.weight.zero_()
        target.bias.zero_()
        target.weight[: source.out_features, : source.in_features] = source.weight
        target.bias[: source.out_features] = source.bias
    source, target = sources[-1], targets[-1]
    num_small, num_wide = small.siren.hidden_dim, wide.siren.hidden_dim
    shape = (2, wide.siren.num_layers + 1, num_wide)
    weight, bias = torch.zeros(*shape, target.in_features), torch.zeros(shape)
    small_weight = source.weight.view(2, small.siren.num_layers + 1, num_small, -1)[:, :, copy_of]
    small_bias = source.bias.view(2, small.siren.num_layers + 1, num_small)[:, :, copy_of]
    places = [*range(small.siren.num_layers), wide.siren.num_layers]  # the color layer is the last
    weight[:, places, :, : source.in_features] = small_weight
    bias[:, places] = small_bias
    target.weight.copy_(weight.flatten(0, 2))
    target.bias.copy_(bias.flatten())
