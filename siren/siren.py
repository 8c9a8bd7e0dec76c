"""The SIREN's weights, under the published names, so that published state dicts load unchanged.

The modules here only hold parameters. field.py evaluates them for given latents.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from settings.curriculum import Curriculum
from siren.mapping import MappingNetwork

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
    """SPATIALSIRENBASELINE, TALLSIREN and the two EmbeddingPiGAN models (docs/method.md, "The field and FiLM")."""

    def __init__(self, curriculum: Curriculum) -> None:
        super().__init__()
        hidden_dim, num_layers = curriculum.hidden_dim, curriculum.num_layers
        self.hidden_dim = hidden_dim
        self.num_layers = num_layers
        self.view_dependent = curriculum.view_dependent
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
