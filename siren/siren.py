"""The SIREN's weights, under the published names, so that published state dicts load unchanged.

The modules here only hold parameters. :meth:`Siren.bind` makes the field of given latents, which field.py evaluates.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from common.errors import UserError
from settings.curriculum import Curriculum
from siren.backends.folded import fold
from siren.field import SirenField
from siren.mapping import FilmParameters, MappingNetwork

BOX_SIDE = 0.24
EMBEDDING_CHANNELS = 32
EMBEDDING_RESOLUTION = {"EmbeddingPiGAN128": 96, "EmbeddingPiGAN256": 64}
EMBEDDING_STDDEV = {"EmbeddingPiGAN128": 0.01, "EmbeddingPiGAN256": 0.1}  # of the grid's initial values
FIRST_BOUND = 1 / 3  # pi-GAN's initialization of the first layer, for any number of inputs


class FiLMLayer(nn.Module):
    """The linear map of one FiLM layer, with weights uniform in [-bound, bound]."""

    def __init__(self, num_in: int, num_out: int, bound: float) -> None:
        super().__init__()
        self.layer = nn.Linear(num_in, num_out)
        nn.init.uniform_(self.layer.weight, -bound, bound)


def _siren_bound(num_in: int) -> float:
    """Return the weight bound of pi-GAN's initialization for layers after the first."""
    return math.sqrt(6 / num_in) / 25


class Siren(nn.Module):
    """SPATIALSIRENBASELINE, TALLSIREN and the two EmbeddingPiGAN models (docs/method.md, "The field and FiLM").

    ``is_compiled``: whether fields that are bound from now on use torch.compile where gradients are recorded (``--compile``).
    """

    def __init__(self, curriculum: Curriculum) -> None:
        super().__init__()
        hidden_dim, num_layers = curriculum.hidden_dim, curriculum.num_layers
        self.hidden_dim = hidden_dim
        self.num_layers = num_layers
        self.view_dependent = curriculum.view_dependent
        self.is_compiled = False
        self.point_scale = 1.0 if curriculum.model == "TALLSIREN" else 2 / BOX_SIDE
        num_inputs = 3
        resolution = EMBEDDING_RESOLUTION.get(curriculum.model)
        if resolution:
            grid = torch.randn(1, EMBEDDING_CHANNELS, resolution, resolution, resolution)
            grid = grid * EMBEDDING_STDDEV[curriculum.model]
            self.spatial_embeddings = nn.Parameter(grid)
            num_inputs += EMBEDDING_CHANNELS
        self.network = nn.ModuleList(
            [FiLMLayer(num_inputs, hidden_dim, FIRST_BOUND)]
            + [FiLMLayer(hidden_dim, hidden_dim, _siren_bound(hidden_dim)) for _ in range(num_layers - 1)]
        )
        self.final_layer = nn.Linear(hidden_dim, 1)
        self.color_layer_sine = FiLMLayer(hidden_dim + 3, hidden_dim, _siren_bound(hidden_dim + 3))
        self.color_layer_linear = nn.Sequential(nn.Linear(hidden_dim, 3))
        for layer in (self.final_layer, self.color_layer_linear[0]):
            nn.init.uniform_(layer.weight, -_siren_bound(hidden_dim), _siren_bound(hidden_dim))
        mapping_dim = curriculum.mapping_dim or hidden_dim
        self.mapping_network = MappingNetwork(curriculum.latent_dim, mapping_dim, (num_layers + 1) * hidden_dim)
        if not self.view_dependent:
            with torch.no_grad():
                self.color_layer_sine.layer.weight[:, :3] = 0  # these weights get no gradient and stay 0

    @property
    def embedding_grid(self) -> Tensor | None:
        """Feature grid (1, C, D, D, D), indexed [z, y, x]; None for models without one."""
        return self._parameters.get("spatial_embeddings")

    def bind(self, film: FilmParameters) -> SirenField:
        """Return the field of B latents with these FiLM parameters, which are folded into the weights here, once."""
        grid = self.embedding_grid
        layers = [layer.layer for layer in self.network]
        color, logit, rgb = self.color_layer_sine.layer, self.final_layer, self.color_layer_linear[0]
        with torch.autocast(film.frequencies.device.type, enabled=False):
            folded = fold(layers, color, logit, rgb, film, point_scale=self.point_scale if grid is None else 1.0)
        if not self.view_dependent:
            folded = folded._replace(direction_weight=torch.zeros_like(folded.direction_weight))
        return SirenField(folded, grid, self.point_scale, self.is_compiled)

    @torch.no_grad()
    def mirror(self, matrix: Tensor, double_level: float | None) -> None:
        """Replace field(x, direction) by field(matrix x, matrix direction), in place.

        With ``double_level``, also replace logits by double_level - logits.

        Raises UserError if there is a feature grid and ``matrix`` (3, 3) does anything but mirror z.
        """
        grid = self.embedding_grid
        if grid is not None and not torch.equal(matrix, torch.diag(matrix.new_tensor([1, 1, -1]))):
            raise UserError("a model with a feature grid can be mirrored in depth only if h_mean and v_mean are pi/2")
        position, direction = self.network[0].layer.weight[:, -3:], self.color_layer_sine.layer.weight[:, :3]
        for weight in (position, direction):  # points are the last three inputs, directions the first three
            weight.copy_(weight.double() @ matrix.to(weight.device))
        if grid is not None:
            grid.copy_(grid.flip(2))
        if double_level is not None:
            self.final_layer.weight.neg_()
            self.final_layer.bias.neg_().add_(double_level)
