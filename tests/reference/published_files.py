"""Files in the formats of the published code, made from the recorded weights.

The modules here compute nothing. Their attributes are those of the published modules, so pickling one under the
published class path writes the pickle that the published code would write.
"""

from __future__ import annotations

import contextlib
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from reference import load_weights

STEP = 5000
PERTURBATION = 1e-3  # relative; generator.pth's weights against the averaged ones in ema.pth

PUBLISHED_BFM = {
    0: {"batch_size": 16, "img_size": 32, "batch_split": 1, "gen_lr": 5e-05, "disc_lr": 0.0002},
    10000: {"batch_size": 8, "img_size": 64, "batch_split": 1, "gen_lr": 5e-05, "disc_lr": 0.0002},
    60000: {"batch_size": 4, "img_size": 128, "batch_split": 2, "gen_lr": 4e-06, "disc_lr": 2e-05},
    80000: {},
    "fov": 12,
    "ray_start": 0.88,
    "ray_end": 1.12,
    "fade_steps": 10000,
    "h_stddev": 0.3,
    "v_stddev": 0.155,
    "h_mean": 1.5707963267948966,
    "v_mean": 1.5707963267948966,
    "sample_dist": "gaussian",
    "topk_interval": 2000,
    "topk_v": 0.6,
    "betas": (0, 0.9),
    "unique_lr": True,
    "weight_decay": 0,
    "r1_lambda": 1,
    "latent_dim": 256,
    "grad_clip": 1,
    "model": "SPATIALSIRENBASELINE",
    "generator": "ImplicitGenerator3d",
    "discriminator": "ProgressiveEncoderDiscriminator",
    "dataset": "BFM",
    "clamp_mode": "relu",
    "z_dist": "gaussian",
    "hierarchical_sample": True,
    "z_lambda": 0,
    "pos_lambda": 15,
    "last_back": False,
    "eval_last_back": True,
    "num_eval_imgs": 8000,
    "pred_occ": True,
    "decay_beta": 3e-05,
    "interval_max": 0.12,
    "interval_min": 0.02,
    "surface_sample": True,
    "n_secant_steps": 4,
    "get_normal_with_pred_depth": True,
    "with_opacprior": True,
    "opacprior_lambda_init": 0.1,
    "opacprior_growth_rate": 4e-05,
    "with_normal_loss": True,
    "normal_lambda": 0.01,
    "h_sample": 0.001,
    "tau": 0.5,
    "num_steps_surface": 12,
    "num_steps_coarse": 9,
    "num_steps_fine": 3,
}


class FiLMLayer(nn.Module):
    def __init__(self, num_in: int, num_out: int) -> None:
        super().__init__()
        self.layer = nn.Linear(num_in, num_out)


class CustomMappingNetwork(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        hidden = [nn.Linear(256, 256), nn.LeakyReLU(0.2, inplace=True)]
        hidden += [nn.Linear(256, 256), nn.LeakyReLU(0.2, inplace=True)]
        hidden += [nn.Linear(256, 256), nn.LeakyReLU(0.2, inplace=True)]
        self.network = nn.Sequential(*hidden, nn.Linear(256, 4608))


class UniformBoxWarp(nn.Module):
    def __init__(self, side: float) -> None:
        super().__init__()
        self.scale_factor = 2 / side


class SPATIALSIRENBASELINE(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.device = None
        self.input_dim, self.z_dim, self.hidden_dim, self.output_dim = 3, 256, 256, 4
        self.network = nn.ModuleList([FiLMLayer(3, 256)] + [FiLMLayer(256, 256) for _ in range(7)])
        self.final_layer = nn.Linear(256, 1)
        self.color_layer_sine = FiLMLayer(259, 256)
        self.color_layer_linear = nn.Sequential(nn.Linear(256, 3))
        self.mapping_network = CustomMappingNetwork()
        self.gridwarper = UniformBoxWarp(0.24)


class ImplicitGenerator3d(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.z_dim = 256
        self.siren = SPATIALSIRENBASELINE()
        self.epoch, self.step = 0, STEP


class ExponentialMovingAverage:
    """The state of torch_ema."""

    def __init__(self, weights: list[Tensor]) -> None:
        self.decay, self.num_updates = 0.999, STEP
        self.shadow_params = weights
        self.collected_params: list[Tensor] = []


CLASS_PATHS = {
    "generators.generators": (ImplicitGenerator3d,),
    "generators.siren": (SPATIALSIRENBASELINE, FiLMLayer, CustomMappingNetwork, UniformBoxWarp),
    "torch_ema.ema": (ExponentialMovingAverage,),
}


@contextlib.contextmanager
def published_class_paths() -> Iterator[None]:
    """Give the classes above their published paths while files are written; afterwards no such module can be imported."""
    added = []
    for path, classes in CLASS_PATHS.items():
        for name in (path.partition(".")[0], path):
            if name not in sys.modules:
                sys.modules[name] = types.ModuleType(name)
                added.append(name)
        for cls in classes:
            setattr(sys.modules[path], cls.__name__, cls)
            cls.__module__ = path
    try:
        yield
    finally:
        for name in added:
            del sys.modules[name]
        for classes in CLASS_PATHS.values():
            for cls in classes:
                cls.__module__ = __name__


def perturbed(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights that a loader must not mistake for the averaged ones: each is changed by a fraction of about PERTURBATION."""
    random = torch.Generator().manual_seed(0)
    return {name: w * (1 + PERTURBATION * torch.randn(w.shape, generator=random)) for name, w in weights.items()}


def write_published_files(folder: Path) -> Path:
    """Write generator.pth, ema.pth, options.txt and whole_module/generator.pth; returns ``folder``.

    generator.pth holds perturbed weights; ema.pth and the whole module hold the recorded ones.
    """
    weights = load_weights()
    module = ImplicitGenerator3d()
    (folder / "whole_module").mkdir(parents=True)
    with published_class_paths():
        module.load_state_dict(perturbed(weights))
        torch.save(module.state_dict(), folder / "generator.pth")
        torch.save(ExponentialMovingAverage(list(weights.values())), folder / "ema.pth")
        module.load_state_dict(weights)
        torch.save(module, folder / "whole_module" / "generator.pth")
    options = f"Namespace(curriculum='BFM', output_dir='output')\n\n{module}\n\n{PUBLISHED_BFM}"
    (folder / "options.txt").write_text(options)
    return folder
