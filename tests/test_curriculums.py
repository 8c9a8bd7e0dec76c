"""Curricula: the published numbers, and that what is wrong is named before any work is done."""

from __future__ import annotations

import json

import pytest

from common.errors import UserError
from settings.curriculum import Curriculum
from settings.registry import CURRICULUMS, get_curriculum


@pytest.mark.parametrize("name", sorted(CURRICULUMS))
def test_survives_its_plain_form(name):
    plain = json.loads(json.dumps(CURRICULUMS[name].to_dict()))
    assert Curriculum.from_dict(plain) == CURRICULUMS[name]


def test_published_values():
    cats = CURRICULUMS["CATS"]
    assert [(s.start_step, s.batch_size, s.img_size, s.gen_lr, s.disc_lr, s.batch_split) for s in cats.stages] == [
        (0, 16, 32, 4e-5, 2e-4, 1),
        (5_000, 8, 64, 4e-5, 2e-4, 1),
        (30_000, 4, 128, 4e-6, 2e-5, 2),
    ]
    assert cats.end_step == 40_000 and (cats.ray_start, cats.ray_end) == (0.8, 1.2)
    assert cats.stage_at(4_999).img_size == 32 and cats.stage_at(5_000).img_size == 64 and cats.stage_at(10**9).img_size == 128


def test_published_dictionary():
    settings = {0: {"batch_size": 4, "img_size": 32, "gen_lr": 1e-4, "disc_lr": 1e-4}, 10: {}, "dataset": "Images"}
    settings |= {"fov": 20, "betas": (0, 0.9)}
    curriculum = Curriculum.from_dict(settings, "mine")
    assert curriculum.end_step == 10 and curriculum.fov == 20 and curriculum.stages[0].batch_split == 1
    assert all(type(beta) is float for beta in curriculum.betas)


def test_file(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({**CURRICULUMS["SYNTH_TINY"].to_dict(), "fov": 30}))
    assert get_curriculum(str(path)).fov == 30
    path.write_text("{")
    with pytest.raises(UserError, match=r"mine\.json"):
        get_curriculum(str(path))


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("r3_lambda=1", "did you mean 'r2_lambda'"),
        ("gan_loss=hinge", "gan_loss must be one of non_saturating, relativistic, not 'hinge'"),
        ("r2_lambda=-1", "r2_lambda"),
        ("fov=0", "fov"),
        ("fov=wide", "fov"),
        ("ray_end=0.5", "ray_end"),
        ("interval_max=0.5", "interval_max"),
        ("interval_min=0.2", "interval_min"),
        ("img_size=48", "48"),
        ("img_size=1024", "1024"),
        ("batch_split=3", "batch_split"),
        ("batch_size=0", "batch_size"),
        ("sample_dist=square", "sample_dist"),
        ("tau=1", "tau"),
        ("num_steps_coarse=1", "num_steps_coarse"),
        ("num_steps_coarse=2", "num_steps_coarse"),
        ("stages=3", "stages"),
        ("pred_occ=False", "surface_sample"),
        ("pred_occ=1", "pred_occ"),
        ("betas=(0, 1.5)", "betas"),
        ("r1_lambda=-1", "r1_lambda"),
        ("init_ball_radius=1e-40", "init_ball_radius must be 0 or at least 0.001 and less than 0.12"),
        ("init_ball_radius=0.12", "init_ball_radius"),
        ("ball_hold_steps=-1", "ball_hold_steps"),
        ("ball_hold_lambda=-1", "ball_hold_lambda"),
        ("view_dependent=1", "view_dependent"),
        ("r1_lambda=float('nan')", "r1_lambda"),
        ("r1_interval=0", "r1_interval"),
        ("lr_warmup_steps=-1", "lr_warmup_steps"),
        ("lr_decay=linear", "lr_decay must be one of constant, cosine"),
        ("augment_target=1", "augment_target must be less than 1"),
        ("augment_target=-0.1", "augment_target"),
        ("share_images=2", "share_images"),
        ("model=NERF", "model"),
        ("disc_channels=(1,2)", "disc_channels"),
        ("end_step=0", "end_step"),
        ("fov", "key=value"),
    ],
)
def test_impossible_settings_are_named(override, named):
    with pytest.raises(UserError) as error:
        CURRICULUMS["SYNTH_TINY"].with_overrides([override])
    assert named in str(error.value)


def test_missing_settings_are_named():
    plain = CURRICULUMS["BFM"].to_dict()
    del plain["dataset"]
    with pytest.raises(UserError, match="dataset"):
        Curriculum.from_dict(plain)
    stage = dict(plain["stages"][0])
    del stage["gen_lr"]
    with pytest.raises(UserError, match="gen_lr"):
        Curriculum.from_dict({**plain, "dataset": "BFM", "stages": [stage]})


def test_unknown_names_get_a_hint():
    with pytest.raises(UserError, match="did you mean CelebA"):
        get_curriculum("celeba")


def test_the_background_of_views_follows_white_back():
    published = CURRICULUMS["CelebA"]
    assert published.view_last_back and not published.last_back
    white = published.with_overrides(["white_back=True"])
    assert not white.view_last_back
    assert not published.with_overrides(["eval_last_back=False"]).view_last_back
    for contradiction in ("last_back=True", "eval_last_back=True"):
        with pytest.raises(UserError, match=f"white_back has no effect with {contradiction.partition('=')[0]}"):
            white.with_overrides([contradiction])
    with pytest.raises(UserError, match="eval_last_back must be True, False or None"):
        published.with_overrides(["eval_last_back=1"])


@pytest.mark.parametrize(
    "changes", [["sample_dist=spherical_uniform"], ["h_stddev=3.14", "sample_dist=uniform"], ["v_mean=0.785"]]
)
def test_no_watch_where_the_front_has_no_meaning(changes):
    with pytest.raises(UserError, match="set hollow_check_interval to 0"):
        CURRICULUMS["CelebA"].with_overrides(changes)
    assert CURRICULUMS["CelebA"].with_overrides([*changes, "hollow_check_interval=0"])


def test_the_published_class_has_its_own_widths():
    settings = {0: {"batch_size": 4, "img_size": 32, "gen_lr": 1e-4, "disc_lr": 1e-4}, 10: {}, "dataset": "Images"}
    small = Curriculum.from_dict({**settings, "model": "EmbeddingPiGAN128"}, "small")
    assert (small.hidden_dim, small.mapping_dim) == (128, 256)
    large = Curriculum.from_dict({**settings, "model": "EmbeddingPiGAN256"}, "large")
    assert (large.hidden_dim, large.mapping_dim) == (256, None)
