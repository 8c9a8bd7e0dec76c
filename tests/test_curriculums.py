"""Curricula: the published values, and errors that are reported before any work is done."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch

import curriculums
from checkpoints.published import read_options_curriculum
from common.errors import UserError
from curriculums import COMMON
from generators.cameras import sample_camera_poses
from generators.renderer import RenderSettings
from generators.views import ViewSettings
from settings import checks
from settings.checks import NEEDS, WITHOUT_EFFECT
from settings.curriculum import Curriculum
from settings.registry import CURRICULUMS, get_curriculum
from settings.schedules import interval_at
from tools.curriculum_json import main as print_json
from tools.curriculum_table import OUTPUT, described_settings, markdown_page

# The table of GOF's published curricula: rows of (BFM, CelebA, CATS).
PUBLISHED = ("BFM", "CelebA", "CATS")
PUBLISHED_STAGES = {
    "BFM": [(0, 16, 32, 5e-5, 2e-4, 1), (10_000, 8, 64, 5e-5, 2e-4, 1), (60_000, 4, 128, 4e-6, 2e-5, 2)],
    "CelebA": [(0, 16, 32, 5e-5, 2e-4, 1), (20_000, 8, 64, 5e-5, 2e-4, 1), (160_000, 4, 128, 4e-6, 2e-5, 2)],
    "CATS": [(0, 16, 32, 4e-5, 2e-4, 1), (5_000, 8, 64, 4e-5, 2e-4, 1), (30_000, 4, 128, 4e-6, 2e-5, 2)],
}
PUBLISHED_VALUES = {
    "end_step": (80_000, 200_000, 40_000),
    "fov": (12, 12, 12),
    "ray_start": (0.88, 0.88, 0.8),
    "ray_end": (1.12, 1.12, 1.2),
    "h_stddev": (0.3, 0.3, 0.5),
    "v_stddev": (0.155, 0.155, 0.4),
    "sample_dist": ("gaussian", "gaussian", "uniform"),
    "decay_beta": (3e-5, 1e-5, 2e-5),
    "interval_max": (0.12, 0.12, 0.2),
    "interval_min": (0.02, 0.03, 0.1),
    "opacprior_lambda_init": (0.1, 0.05, 0.05),
    "opacprior_growth_rate": (4e-5, 0.5e-5, 1e-5),
    "normal_lambda": (0.01, 0.05, 0.05),
    "h_sample": (1e-3, 0.01, 0.01),
    "num_steps_coarse": (9, 9, 9),
    "num_steps_surface": (12, 9, 9),
    "num_steps_fine": (3, 6, 6),
    "num_eval_imgs": (8000, 8000, 6444),
}
PUBLISHED_COMMON = {
    "h_mean": math.pi / 2,
    "v_mean": math.pi / 2,
    "topk_interval": 2000,
    "topk_v": 0.6,
    "betas": (0.0, 0.9),
    "weight_decay": 0,
    "r1_lambda": 1,
    "latent_dim": 256,
    "grad_clip": 1,
    "z_lambda": 0,
    "pos_lambda": 15,
    "fade_steps": 10_000,
    "tau": 0.5,
    "n_secant_steps": 4,
    "last_back": False,
    "eval_last_back": True,
    "clamp_mode": "relu",
    "z_dist": "gaussian",
    "hierarchical_sample": True,
    "unique_lr": True,
}


@pytest.mark.parametrize("name", sorted(CURRICULUMS))
def test_round_trip_through_plain_data(name):
    plain = json.loads(json.dumps(CURRICULUMS[name].to_dict()))
    assert Curriculum.from_dict(plain) == CURRICULUMS[name]


@pytest.mark.parametrize(("place", "name"), list(enumerate(PUBLISHED)))
def test_published_values(place, name):
    curriculum = CURRICULUMS[name]
    assert [dataclasses.astuple(stage) for stage in curriculum.stages] == PUBLISHED_STAGES[name]
    for key, values in PUBLISHED_VALUES.items():
        assert getattr(curriculum, key) == values[place], key
    for key, value in PUBLISHED_COMMON.items():
        own = "view_last_back" if key == "eval_last_back" else key  # where it is None, it follows from white_back
        assert getattr(curriculum, own) == value, key


def test_stage_at():
    cats = CURRICULUMS["CATS"]
    assert cats.stage_at(4_999).img_size == 32 and cats.stage_at(5_000).img_size == 64 and cats.stage_at(10**9).img_size == 128


def test_cars_are_seen_from_above():
    """pi-GAN's CARLA cameras: all around, from the zenith down to just above the horizon."""
    c = CURRICULUMS["PIGAN_CARLA"]
    poses = sample_camera_poses(
        4000,
        h_mean=c.h_mean,
        v_mean=c.v_mean,
        h_stddev=c.h_stddev,
        v_stddev=c.v_stddev,
        sample_dist=c.sample_dist,
        generator=torch.Generator().manual_seed(0),
    )
    assert float(poses.pitch.max()) < math.pi / 2 and float(poses.pitch.min()) < 0.1
    assert float(poses.yaw.min()) < -math.pi / 2 + 0.1 and float(poses.yaw.max()) > 3 * math.pi / 2 - 0.1


def test_every_setting_has_its_common_value_and_its_check():
    """One source of defaults; none of them is unchecked, none is checked twice."""
    fields = [field.name for field in dataclasses.fields(Curriculum)]
    assert list(COMMON) == [key for key in fields if key not in ("name", "dataset", "stages", "end_step")]
    checked = [
        *checks.FLAGS,
        *checks.NUMBERS,
        *checks.COUNTS,
        *checks.CHOICES,
        "betas",
        "disc_channels",
        "disc_widths",
        "init_ball_stretch",
        "backbone_channels",
        "eval_last_back",
        "interval_eval",
        "mapping_dim",
    ]
    assert sorted(checked) == sorted([*COMMON, "end_step"])


@pytest.mark.parametrize("name", sorted(CURRICULUMS))
def test_a_curriculum_repeats_no_common_value(name):
    repeated = [key for key, value in getattr(curriculums, name).items() if key in COMMON and COMMON[key] == value]
    assert not repeated


def test_a_new_dictionary_is_a_curriculum(monkeypatch):
    stages = {0: {"batch_size": 4, "img_size": 32, "gen_lr": 1e-4, "disc_lr": 1e-4}, 10: {}}
    monkeypatch.setattr(curriculums, "MINE", {**stages, "dataset": "Images", "fov": 20}, raising=False)
    monkeypatch.setattr(curriculums, "BROKEN", {**stages, "dataset": "Images", "fov": 200}, raising=False)
    mine = get_curriculum("MINE")
    assert (mine.name, mine.fov, mine.end_step, mine.tau) == ("MINE", 20, 10, COMMON["tau"])
    with pytest.raises(UserError, match="curriculum BROKEN: fov must be positive and less than 180 degrees"):
        get_curriculum("BROKEN")
    with pytest.raises(UserError, match="unknown curriculum 'COMMON'"):
        get_curriculum("COMMON")


def test_the_page_of_all_curricula_is_current():
    settings = described_settings(Path(curriculums.__file__).read_text())
    assert [setting.key for setting in settings] == list(COMMON)
    message = "run python -m tools.curriculum_table"
    assert OUTPUT.read_text() == markdown_page(settings, CURRICULUMS), message


def test_a_setting_without_a_description_is_named():
    source = 'COMMON = {\n    # Cameras\n    "fov": 1,  # degrees\n    "tau": 0.5,\n}\n'
    with pytest.raises(UserError, match="line 4: tau has no comment"):
        described_settings(source)


def test_json_to_edit(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("sys.argv", ["curriculum_json", "CATS", "--set", "fov=9", "h_stddev=0.3", "--set", "h_stddev=0.4"])
    print_json()
    path = tmp_path / "mine.json"
    path.write_text(capsys.readouterr().out)
    assert get_curriculum(str(path)) == CURRICULUMS["CATS"].with_overrides(["fov=9", "h_stddev=0.4"])
    assert capsys.readouterr().err == "", "no notes on settings that are as in COMMON"


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


PIGAN_DICTIONARY = {  # in the form of pi-GAN's own file
    0: {"batch_size": 56, "num_steps": 12, "img_size": 32, "batch_split": 1, "gen_lr": 6e-5, "disc_lr": 2e-4},
    20_000: {"batch_size": 56, "num_steps": 12, "img_size": 64, "batch_split": 2, "gen_lr": 6e-5, "disc_lr": 2e-4},
    200_000: {},
    "dataset_path": "/images/*.jpg",
    "fov": 12,
    "ray_start": 0.88,
    "ray_end": 1.12,
    "fade_steps": 10_000,
    "h_stddev": 0.3,
    "v_stddev": 0.155,
    "h_mean": math.pi * 0.5,
    "v_mean": math.pi * 0.5,
    "sample_dist": "gaussian",
    "topk_interval": 2000,
    "topk_v": 0.6,
    "betas": (0, 0.9),
    "unique_lr": False,
    "weight_decay": 0,
    "r1_lambda": 0.2,
    "latent_dim": 256,
    "grad_clip": 10,
    "model": "SPATIALSIRENBASELINE",
    "generator": "ImplicitGenerator3d",
    "discriminator": "ProgressiveEncoderDiscriminator",
    "dataset": "CelebA",
    "clamp_mode": "relu",
    "z_dist": "gaussian",
    "hierarchical_sample": True,
    "z_lambda": 0,
    "pos_lambda": 15,
    "last_back": False,
    "eval_last_back": True,
    "learnable_dist": False,
}


def test_pigan_dictionary():
    """Omitted settings have pi-GAN's defaults; the two keys without a counterpart are named."""
    notes = []
    curriculum = Curriculum.from_dict(PIGAN_DICTIONARY, "PIGAN_CelebA", notes)
    assert curriculum == CURRICULUMS["PIGAN_CelebA"]
    assert not curriculum.pred_occ and not curriculum.surface_sample
    assert ["dataset_path" in "\n".join(notes), "learnable_dist" in "\n".join(notes), "pi-GAN" in "\n".join(notes)] == [True] * 3


def test_pigan_dictionary_with_other_classes_and_counts():
    settings = {**PIGAN_DICTIONARY, "discriminator": "CCSEncoderDiscriminator", "dataset": "CARLA", "pred_occ": True}
    settings[20_000] = {**settings[20_000], "num_steps": 24}
    del settings["topk_v"], settings["eval_last_back"]
    notes = []
    curriculum = Curriculum.from_dict(settings, "mine", notes)
    assert (curriculum.num_steps_coarse, curriculum.num_steps_fine) == (24, 24)
    assert curriculum.discriminator == "ProgressiveEncoderDiscriminator" and not curriculum.horizontal_flip
    assert curriculum.pred_occ and curriculum.topk_v == 1 and not curriculum.eval_last_back
    assert any("CCSEncoderDiscriminator" in note for note in notes) and any("num_steps is 24" in note for note in notes)


def test_published_dictionary_saved_as_json(tmp_path, capsys):
    """JSON has no integer keys: the steps come as text. The notes reach the user."""
    path = tmp_path / "published.json"
    path.write_text(json.dumps(PIGAN_DICTIONARY))
    curriculum = get_curriculum(str(path))
    assert curriculum.with_overrides(["fov=12"]).to_dict() == CURRICULUMS["PIGAN_CelebA"].to_dict() | {"name": "published"}
    assert "learnable_dist is ignored" in capsys.readouterr().err
    gof = {str(key): value for key, value in curriculums.BFM.items()}
    path.write_text(json.dumps(gof))
    assert get_curriculum(str(path)).to_dict() == CURRICULUMS["BFM"].to_dict() | {"name": "published"}
    assert capsys.readouterr().err == ""
    path.write_text(json.dumps(gof | {"fovv": 12}))
    with pytest.raises(UserError, match="unknown setting 'fovv'; did you mean 'fov'"):
        get_curriculum(str(path))


def test_foreign_keys_of_options(tmp_path):
    """A published options.txt may contain any keys; unknown ones are named, not rejected."""
    path = tmp_path / "options.txt"
    settings = {**curriculums.BFM, "their_own": 3, 0: {**curriculums.BFM[0], "other": 1}}
    path.write_text(f"Namespace(x=1)\n\n{settings}\n")
    notes = []
    assert read_options_curriculum(path, notes).to_dict() == CURRICULUMS["BFM"].to_dict()
    assert notes == ["unknown settings are ignored: 'other', 'their_own'"]


@pytest.mark.parametrize(("unique_lr", "factor"), [(True, 1.0), (False, 0.05)])
def test_files_from_before_mapping_lr_factor(unique_lr, factor):
    """There, unique_lr False meant a twentieth of the rate for the mapping network; in the published form it means one rate."""
    old = {key: value for key, value in CURRICULUMS["BFM"].to_dict().items() if key != "mapping_lr_factor"}
    assert Curriculum.from_dict({**old, "unique_lr": unique_lr}).mapping_lr_factor == factor
    published = {**curriculums.BFM, "unique_lr": unique_lr}
    assert Curriculum.from_dict(published, "BFM").mapping_lr_factor == 1


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["init_ball_radius=0", "ball_hold_steps=10"], "ball_hold_steps has no effect, since init_ball_radius is 0.0"),
        (["init_ball_radius=0", "ball_hold_floor=0.1"], "ball_hold_floor"),
        (["init_ball_radius=0", "init_ball_stretch=(1,2,1)"], "init_ball_stretch has no effect"),
        (["with_normal_loss=False", "normal_lambda=0.1"], "normal_lambda has no effect, since with_normal_loss is False"),
        (["fov=12", "w_dim=64"], "w_dim has no effect, since model is 'SPATIALSIRENBASELINE'"),
        (["fov=12", "disc_widths=(8,8)"], "set discriminator"),
    ],
)
def test_settings_without_effect_are_refused(overrides, named):
    with pytest.raises(UserError) as error:
        CURRICULUMS["CATS_TINY"].with_overrides(overrides)
    assert named in str(error.value)
    assert CURRICULUMS["CATS_TINY"].with_overrides(overrides[:1])  # an ablation inherits the rest


RADIANCE = ("pred_occ=False", "surface_sample=False", "with_opacprior=False", "with_normal_loss=False")
RADIANCE += ("init_ball_radius=0", "hollow_check_interval=0")
UNMET = {  # by the setting that another one needs: changes to SYNTH_TINY, or to SYNTH_TRIPLANE for settings of a SIREN
    "sample_dist": ["sample_dist=None"],
    "surface_sample": ["surface_sample=False"],
    "hierarchical_sample": ["hierarchical_sample=False"],
    "with_opacprior": ["with_opacprior=False"],
    "with_normal_loss": ["with_normal_loss=False"],
    "init_ball_radius": ["init_ball_radius=0"],
    "pred_occ": RADIANCE,
}


@pytest.mark.parametrize("key", NEEDS)
def test_every_setting_without_effect_is_refused_and_every_other_accepted(key):
    base, other = CURRICULUMS["SYNTH_TINY"], CURRICULUMS["SYNTH_TRIPLANE"]
    if not NEEDS[key].is_met(base):
        base, other = other, base
    changes = [] if key == "clamp_mode" else UNMET.get(NEEDS[key].setting, [])
    value = getattr(base, key) or 1  # a stated value counts, even if it is the one that was there
    if key != "clamp_mode":
        assert base.with_overrides([f"{key}={value}"])
    with pytest.raises(UserError, match=f"{key} has no effect, since {NEEDS[key].setting} is"):
        (base if changes or key == "clamp_mode" else other).with_overrides([*changes, f"{key}={value}"])


@pytest.mark.parametrize("key", WITHOUT_EFFECT)
def test_published_keys_without_effect_cannot_be_set(key):
    with pytest.raises(UserError, match=f"--set {key}: this published setting has no effect"):
        CURRICULUMS["CelebA"].with_overrides([f"{key}={getattr(CURRICULUMS['CelebA'], key)}"])


def test_a_dictionary_with_a_setting_without_effect(monkeypatch, tmp_path, capsys):
    mine = {**curriculums.BFM, "ball_hold_steps": 100}
    monkeypatch.setattr(curriculums, "MINE", mine, raising=False)
    with pytest.raises(UserError, match="curriculum MINE: ball_hold_steps has no effect"):
        get_curriculum("MINE")
    path = tmp_path / "run.json"  # that of an old run must still open
    path.write_text(json.dumps(mine))
    assert get_curriculum(str(path)).ball_hold_steps == 100
    assert "ball_hold_steps has no effect" in capsys.readouterr().err


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
        ("init_ball_radius=1e-40", "init_ball_stretch at least 0.001 and less than 0.12"),
        ("init_ball_radius=0.12", "init_ball_radius"),
        ("init_ball_stretch=(1,2)", "init_ball_stretch must be three positive numbers"),
        ("init_ball_stretch=(1,0,1)", "init_ball_stretch must be three positive numbers"),
        ("init_ball_stretch=(1,1.6,1)", "to fit within the rays, not 0.08, 0.128, 0.08"),
        ("ball_hold_steps=-1", "ball_hold_steps"),
        ("ball_hold_lambda=-1", "ball_hold_lambda"),
        ("view_dependent=1", "view_dependent"),
        ("r1_lambda=float('nan')", "r1_lambda"),
        ("r1_interval=0", "r1_interval"),
        ("mapping_lr_factor=0", "mapping_lr_factor must be positive"),
        ("horizontal_flip=1", "horizontal_flip must be True or False"),
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


def test_views_can_have_a_narrower_interval_than_training():
    published = CURRICULUMS["CelebA"]
    narrow = published.with_overrides(["interval_eval=0.006"])
    assert published.view_interval == 0.03 and narrow.view_interval == 0.006
    assert RenderSettings.from_curriculum(narrow).interval == ViewSettings().render_settings(narrow).interval == 0.006
    assert interval_at(narrow, 10**6) == narrow.interval_min == 0.03
    for value in ("0", "-0.01", "'narrow'", "True"):
        with pytest.raises(UserError, match="interval_eval must be None or a positive number"):
            published.with_overrides([f"interval_eval={value}"])
    with pytest.raises(UserError, match="interval_eval"):
        CURRICULUMS["PIGAN_CelebA"].with_overrides(["interval_eval=0.006"])


@pytest.mark.parametrize(
    "changes", [["sample_dist=spherical_uniform"], ["h_stddev=3.14", "sample_dist=uniform"], ["v_mean=0.785"]]
)
def test_hollow_checks_are_rejected_where_no_side_is_the_front(changes):
    with pytest.raises(UserError, match="set hollow_check_interval to 0"):
        CURRICULUMS["CelebA"].with_overrides(changes)
    assert CURRICULUMS["CelebA"].with_overrides([*changes, "hollow_check_interval=0"])


def test_the_published_class_has_its_own_widths():
    settings = {0: {"batch_size": 4, "img_size": 32, "gen_lr": 1e-4, "disc_lr": 1e-4}, 10: {}, "dataset": "Images"}
    small = Curriculum.from_dict({**settings, "model": "EmbeddingPiGAN128"}, "small")
    assert (small.hidden_dim, small.mapping_dim) == (128, 256)
    large = Curriculum.from_dict({**settings, "model": "EmbeddingPiGAN256"}, "large")
    assert (large.hidden_dim, large.mapping_dim) == (256, None)
