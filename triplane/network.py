"""The weights of a tri-plane generator: mapping, backbone, decoder, and the placement of the planes in the world."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from settings.curriculum import Curriculum
from triplane.backbone import Backbone
from triplane.decoder import Decoder
from triplane.field import TriplaneField
from triplane.mapping import TriplaneMapping, TriplaneStyles
from triplane.plain_lookup import Frame, Planes

BALL_SLOPE = 75.0  # logits per world unit; the ball hold of training asks for twice as much (training/outward_start.py)
MAX_BALL_LOGIT = 6.0
NO_STRETCH = (1.0, 1.0, 1.0)
IDENTITY = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))  # torch.eye on the meta device loads torch's compiler


class Triplane(nn.Module):
    """Tri-plane generator: logit(x) = clamp(slope (radius - |x / stretch|)) + g(features at x).

    At initialization g = logit(tau), so every latent is a ball, or the ellipsoid to which it is stretched, without any fitting.

    Buffers: ``orientation`` (3, 3), applied to points before anything else (training/mirror.py); ``extent`` (), half the side of
    the cube that the planes cover; ``ball_radius`` () in world units; ``ball_slope`` () in logits per world unit before
    stretching; ``ball_stretch`` (3,), factors on the radius along x, y and z, in the state only if one of them is not 1, since
    files of balls do not contain it.
    """

    orientation: Tensor
    extent: Tensor
    ball_radius: Tensor
    ball_stretch: Tensor
    ball_slope: Tensor

    def __init__(self, curriculum: Curriculum) -> None:
        super().__init__()
        channels, w_dim = curriculum.backbone_channels, curriculum.w_dim
        self.is_product = curriculum.plane_reduce == "product"
        self.mapping_network = TriplaneMapping(curriculum.latent_dim, w_dim, Backbone.num_layers(len(channels)))
        self.backbone = Backbone(channels, curriculum.plane_channels, w_dim)
        self.decoder = Decoder(curriculum.plane_channels, curriculum.decoder_dim)
        with torch.no_grad():
            self.decoder.output_bias[0] = math.log(curriculum.tau / (1 - curriculum.tau))
        stretch = curriculum.init_ball_stretch if curriculum.init_ball_radius else NO_STRETCH
        self.register_buffer("orientation", torch.tensor(IDENTITY))
        self.register_buffer("extent", torch.tensor(curriculum.plane_extent or curriculum.ray_reach))
        self.register_buffer("ball_radius", torch.tensor(curriculum.init_ball_radius or curriculum.ray_room / 2))
        self.register_buffer("ball_stretch", torch.tensor(stretch), persistent=stretch != NO_STRETCH)
        self.register_buffer("ball_slope", torch.tensor(BALL_SLOPE))

    def bind(self, styles: TriplaneStyles) -> TriplaneField:
        """Return the field of B latents with these styles. The backbone runs here, once."""
        with torch.autocast(styles.styles.device.type, enabled=False):
            texels = self.backbone(styles.styles)
            decoder = self.decoder.weights()
        axes = self.ball_radius * self.ball_stretch / self.extent
        frame = Frame.of(self.orientation / self.extent, axes, self.ball_slope * self.ball_radius, MAX_BALL_LOGIT)
        texel_size = 2 * self.extent / (texels.shape[1] - 1)
        return TriplaneField(Planes(texels, decoder, frame, self.is_product), texel_size)

    @torch.no_grad()
    def mirror(self, matrix: Tensor, double_level: float | None) -> None:
        """Replace field(x) by field(matrix x), in place. With ``double_level``, also replace logits by double_level - logits."""
        self.orientation.copy_(self.orientation.double() @ matrix.to(self.orientation.device))
        if double_level is not None:
            self.ball_slope.neg_()
            self.decoder.output_weight[0].neg_()
            self.decoder.output_bias[0].neg_().add_(double_level)
