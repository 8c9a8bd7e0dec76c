"""Combinations of settings: model x kind of field x distribution of poses x background, and which of them are refused."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass

from settings.checks import MODELS, SAMPLE_DISTS
from settings.curriculum import Curriculum
from settings.registry import CURRICULUMS

FIELDS = ("occupancy", "volume", "radiance")  # volume: an occupancy field that is sampled without finding its surface
BACKGROUNDS = ("black", "white", "last", "random", "white and last")
EVAL_LAST_BACK = {"black": False, "last": True}  # of these backgrounds; the others leave it to the default, None
VALUES: tuple[tuple[str | None, ...], ...] = (MODELS, FIELDS, SAMPLE_DISTS, BACKGROUNDS)
TINY = (
    *("hidden_dim=64", "num_layers=2", "latent_dim=8", "w_dim=8", "backbone_channels=(12,8,8)", "decoder_dim=8"),
    *("disc_channels=(4,4,4,4,4,4,8,8,8)", "num_steps_coarse=8", "num_steps_surface=4", "num_steps_fine=3"),
    *("batch_size=2", "img_size=8", "ball_hold_steps=2"),
)
TRIPLANE_KEYS = ("w_dim", "backbone_channels", "decoder_dim")
SIREN_KEYS = ("hidden_dim", "num_layers")
WITHOUT_SURFACE = ("with_opacprior=False", "with_normal_loss=False", "init_ball_radius=0.0", "hollow_check_interval=0")


@dataclass(frozen=True)
class Combination:
    """One value of each of VALUES."""

    model: str
    field: str
    sample_dist: str | None
    background: str

    def __str__(self) -> str:
        return ", ".join(map(str, astuple(self)))

    @property
    def refusal(self) -> str | None:
        """Text in the message that refuses the combination; None if it is valid."""
        if self.background == "white and last":
            return "white_back has no effect with last_back"
        if self.model == "TRIPLANE" and self.field == "radiance":
            return "model TRIPLANE needs pred_occ"
        return None

    def settings(self) -> list[str]:
        """Return the combination as ``--set`` arguments for SYNTH_TINY, with a tiny network."""
        is_triplane, has_surface = self.model == "TRIPLANE", self.field != "radiance"
        unused = {*(SIREN_KEYS if is_triplane else TRIPLANE_KEYS), *(() if self.field == "occupancy" else ("num_steps_surface",))}
        found = [text for text in TINY if text.partition("=")[0] not in unused]
        found += [f"model={self.model}", f"view_dependent={not is_triplane}", f"sample_dist={self.sample_dist}"]
        found += [f"{name}_back={name in self.background}" for name in ("white", "last", "random")]
        found += [f"surface_sample={self.field == 'occupancy'}", f"pred_occ={has_surface}"]
        found.append("z_dist=uniform" if self.sample_dist == "uniform" else "z_dist=gaussian")
        if not has_surface:
            found.append("clamp_mode=softplus" if self.sample_dist == "hybrid" else "clamp_mode=relu")
        found.append(f"eval_last_back={EVAL_LAST_BACK.get(self.background)}")
        if not has_surface:
            return [text for text in found if not text.startswith("ball_hold")] + list(WITHOUT_SURFACE)
        return found + (["hollow_check_interval=0"] if self.sample_dist == "spherical_uniform" else [])

    def curriculum(self) -> Curriculum:
        """Return the curriculum. Raises UserError if the combination is refused."""
        return CURRICULUMS["SYNTH_TINY"].with_overrides(self.settings())


def all_combinations() -> list[Combination]:
    return [Combination(*values) for values in itertools.product(*VALUES)]  # type: ignore[arg-type]


def pairwise(factors: Sequence[Sequence[object]] = VALUES) -> Iterator[tuple[object, ...]]:
    """Yield few rows of values such that every pair of values of two factors occurs in one of them (greedy selection)."""
    rows = list(itertools.product(*factors))
    missing = {pair for row in rows for pair in _pairs(row)}
    while missing:
        best = max(rows, key=lambda row: sum(pair in missing for pair in _pairs(row)))
        missing -= set(_pairs(best))
        yield best


def _pairs(row: Sequence[object]) -> list[tuple[tuple[int, object], tuple[int, object]]]:
    return list(itertools.combinations(enumerate(row), 2))
