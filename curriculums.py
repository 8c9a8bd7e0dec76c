"""The curricula: the published ones and our own. To add one, add an entry."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from settings.curriculum import Curriculum, Stage


def _three_stages(second: int, third: int, lr: float, end: int) -> dict[str, Any]:
    """The published progression 32 -> 64 -> 128 px."""
    return {
        "stages": (
            Stage(0, 16, 32, lr, 2e-4),
            Stage(second, 8, 64, lr, 2e-4),
            Stage(third, 4, 128, 4e-6, 2e-5, batch_split=2),
        ),
        "end_step": end,
    }


_PIGAN: dict[str, Any] = {  # a radiance field: the same code with the surface switched off
    "pred_occ": False,
    "surface_sample": False,
    "with_opacprior": False,
    "with_normal_loss": False,
    "num_steps_coarse": 12,
    "num_steps_surface": 0,
    "num_steps_fine": 12,
}


# The published runs start from a checkpoint picked by hand for its outward faces; this needs no hand.
_WATCH: dict[str, Any] = {"hollow_check_interval": 100}

_CATS_CAMERA: dict[str, Any] = {
    **{"ray_start": 0.8, "ray_end": 1.2, "h_stddev": 0.5, "v_stddev": 0.4, "sample_dist": "uniform"},
    **{"interval_max": 0.2, "interval_min": 0.1},
}


def _published() -> Iterable[Curriculum]:
    yield Curriculum(
        name="BFM",
        dataset="BFM",
        **_three_stages(second=10_000, third=60_000, lr=5e-5, end=80_000),
        **{"decay_beta": 3e-5, "interval_min": 0.02, "opacprior_lambda_init": 0.1, "opacprior_growth_rate": 4e-5},
        **{"normal_lambda": 0.01, "h_sample": 1e-3, "num_steps_surface": 12, "num_steps_fine": 3},
        **_WATCH,
    )
    yield Curriculum(
        name="CelebA",
        dataset="CelebA",
        **_three_stages(second=20_000, third=160_000, lr=5e-5, end=200_000),
        **_WATCH,
    )
    yield Curriculum(
        name="CATS",
        dataset="Cats",
        **_three_stages(second=5_000, third=30_000, lr=4e-5, end=40_000),
        **{"decay_beta": 2e-5, "opacprior_growth_rate": 1e-5, "num_eval_imgs": 6444},
        **_CATS_CAMERA,
        **_WATCH,
    )
    yield Curriculum(
        name="PIGAN_CelebA",
        dataset="CelebA",
        stages=(Stage(0, 32, 32, 6e-5, 2e-4), Stage(20_000, 16, 64, 6e-5, 2e-4)),
        end_step=200_000,
        **{"r1_lambda": 0.2, "grad_clip": 10.0},
        **_PIGAN,
    )


_SYNTH_CAMERA: dict[str, Any] = {
    **{"h_stddev": 0.7, "v_stddev": 0.25, "sample_dist": "uniform", "dataset": "Heads"},
    "eval_last_back": False,  # the heads stand before black, which is what missing weight shows
}
_STEADY: dict[str, Any] = {"pos_lambda": 5.0, "betas": (0.0, 0.99), "share_images": True}  # docs/results.md, "The recipe"
_TWO_CORES: dict[str, Any] = {  # a narrow field and discriminator, short schedules: hours become minutes
    "stages": (Stage(0, 16, 16, 4e-4, 8e-4), Stage(1_000, 16, 32, 3e-4, 6e-4)),
    "end_step": 20_000,
    "fade_steps": 100,
    "hidden_dim": 64,
    "num_layers": 4,
    "latent_dim": 64,
    "disc_channels": (4, 8, 16, 24, 32, 48, 64, 64, 64),
    "num_steps_coarse": 8,
    "num_steps_surface": 5,
    "num_steps_fine": 3,
    "decay_beta": 1e-3,
    "topk_interval": 1000,
    "opacprior_lambda_init": 0.1,
    "opacprior_growth_rate": 1.5e-3,
    "r1_lambda": 0.02,  # of so few pixels
    **_STEADY,
    "num_eval_imgs": 512,
    "hollow_check_interval": 50,
    "ball_hold_steps": 1000,
    "ball_hold_lambda": 0.3,
}
_OUR_CATS: dict[str, Any] = {  # a prior and an interval narrower than published: rounder faces, sharper surfaces
    **{"h_stddev": 0.25, "v_stddev": 0.18, "sample_dist": "gaussian", "interval_max": 0.12, "interval_min": 0.03},
    **_STEADY,
    "gan_loss": "relativistic",  # kinds of cats after 1000 steps that the plain loss lacked at 4500 (one seed)
}
_TINY_CATS: dict[str, Any] = {  # photos fill their frame: what a ray leaves over is the colour at its end, not black
    # the stage from 4500 is for calm: at a constant rate the cats went on changing colour and place
    "stages": (
        Stage(0, 16, 16, 3e-4, 6e-4),
        Stage(2_000, 16, 32, 2e-4, 4e-4),
        Stage(4_500, 16, 32, 5e-5, 1e-4),
        Stage(6_000, 8, 64, 1e-4, 2e-4),
    ),
    "r2_lambda": 0.02,
    "last_back": True,
    "view_dependent": False,
    "normal_lambda": 0.5,
    "init_ball_radius": 0.1,
    "ball_hold_steps": 2000,
    "ball_hold_floor": 0.05,  # else the faces flatten: so small a picture hardly shows how far they turn
}
_TRIPLANE: dict[str, Any] = {  # to replace the network of _TWO_CORES: its queries are cheap, so more of them
    "model": "TRIPLANE",
    "view_dependent": False,
    "latent_dim": 128,
    "disc_channels": (16, 16, 24, 32, 48, 64, 96, 128, 128),
    "num_steps_coarse": 12,
    "r1_lambda": 0.5,
    "r2_lambda": 0.5,
    "r1_interval": 4,
    "gan_loss": "relativistic",
    "grad_clip": 10.0,
}


def _our_own() -> Iterable[Curriculum]:
    yield Curriculum(
        name="SYNTH",
        stages=(Stage(0, 32, 32, 5e-5, 2e-4), Stage(8_000, 16, 64, 5e-5, 2e-4)),
        end_step=30_000,
        **{"decay_beta": 1e-4, "init_ball_radius": 0.08, "ball_hold_steps": 2000, "ball_hold_lambda": 0.3, "num_eval_imgs": 2048},
        **_SYNTH_CAMERA,
        **_WATCH,
    )
    yield Curriculum(
        name="CATS64",
        stages=(Stage(0, 32, 32, 5e-5, 2e-4), Stage(10_000, 16, 64, 4e-5, 2e-4)),
        end_step=40_000,
        **{"fade_steps": 2000, "decay_beta": 1e-4, "opacprior_growth_rate": 1e-5, "num_eval_imgs": 6444},
        **{"r1_lambda": 0.1, "r2_lambda": 0.1},  # R2 as strong as R1, as in CATS_TINY; not yet run
        **{"dataset": "Cats", "last_back": True, "view_dependent": False, "init_ball_radius": 0.1},
        **{"ball_hold_steps": 4000, "ball_hold_lambda": 0.3, "ball_hold_floor": 0.05},
        **{**_CATS_CAMERA, **_OUR_CATS},
        **_WATCH,
    )
    yield Curriculum(name="SYNTH_TINY", init_ball_radius=0.08, **_SYNTH_CAMERA, **_TWO_CORES)
    yield Curriculum(name="CATS_TINY", dataset="Cats", **{**_CATS_CAMERA, **_TWO_CORES, **_TINY_CATS, **_OUR_CATS})
    yield Curriculum(
        name="SYNTH_TRIPLANE",
        init_ball_radius=0.08,
        **{
            **_SYNTH_CAMERA,
            **_TWO_CORES,
            **_TRIPLANE,
            "stages": (Stage(0, 16, 32, 2e-3, 1e-3), Stage(6_000, 16, 64, 2e-3, 1e-3)),
        },
    )
    yield Curriculum(
        name="CATS_TRIPLANE",
        dataset="Cats",
        plane_extent=0.15,
        **{
            **_CATS_CAMERA,
            **_TWO_CORES,
            **_TINY_CATS,
            **_OUR_CATS,
            **_TRIPLANE,
            "stages": (Stage(0, 16, 32, 2e-3, 1e-3), Stage(8_000, 16, 64, 2e-3, 1e-3)),
            "end_step": 40_000,
        },
    )


CURRICULUMS: dict[str, Curriculum] = {c.name: c for c in (*_published(), *_our_own())}
