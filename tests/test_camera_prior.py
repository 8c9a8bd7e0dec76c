"""The image of a camera prior, and its description."""

from __future__ import annotations

import math

import numpy as np
import pytest
from PIL import Image

import dataset
from common.errors import UserError
from heads.camera_prior import PITCH_QUANTILES, YAW_QUANTILES, prior_angles, write_camera_prior
from settings.registry import CURRICULUMS


def test_angles_are_the_quantiles_of_the_prior():
    uniform = CURRICULUMS["CATS"]
    yaw, pitch = prior_angles(uniform)
    for found, quantiles, half_width in ((yaw, YAW_QUANTILES, 0.5), (pitch, PITCH_QUANTILES, 0.4)):
        assert found.tolist() == pytest.approx([(2 * q - 1) * half_width for q in quantiles], abs=0.02)
    yaw, _ = prior_angles(CURRICULUMS["CelebA"])  # gaussian 0.3; the 98 % quantile of a normal is 2.054
    assert yaw[-1] == pytest.approx(2.054 * 0.3, abs=0.03)


def test_image_turns_with_the_prior(tmp_path):
    wide, fixed = tmp_path / "wide.png", tmp_path / "fixed.png"
    words = write_camera_prior(CURRICULUMS["CATS"], wide)
    assert f"{math.degrees(0.5 * 0.96):.0f}" in words and "CATS" in words
    write_camera_prior(CURRICULUMS["CATS"].with_overrides(["sample_dist=None"]), fixed)

    def cells(path):
        pixels = np.asarray(Image.open(path)).astype(float)
        rows, columns = len(PITCH_QUANTILES), len(YAW_QUANTILES)
        assert pixels.shape[:2] == (rows * 130 - 2, columns * 130 - 2)
        return [pixels[130 + 20 : 130 + 128, j * 130 : j * 130 + 128] for j in range(columns)]  # below the words

    still, turned = cells(fixed), cells(wide)
    assert all(np.array_equal(still[0], cell) for cell in still)
    assert np.abs(turned[0] - turned[-1]).mean() > 5
    assert np.abs(turned[0] - turned[-1][:, ::-1]).mean() < np.abs(turned[0] - turned[-1]).mean()  # left and right mirror


def test_a_file_that_cannot_be_written(tmp_path):
    with pytest.raises(UserError, match="--prior_output"):
        (tmp_path / "file").touch()
        write_camera_prior(CURRICULUMS["CATS"], tmp_path / "file" / "prior.png")


def test_from_the_command_line(tmp_path, capsys):
    Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(tmp_path / "one.png")
    common = ["--check", str(tmp_path / "one.png"), "--output", str(tmp_path / "contact.png")]
    prior = ["--curriculum", "CelebA", "--set", "h_stddev=0.1", "--prior_output", str(tmp_path / "prior.png")]
    dataset.main([*common, *prior])
    assert "camera prior of CelebA: gaussian" in capsys.readouterr().out
    assert (tmp_path / "prior.png").stat().st_size > 1000
    with pytest.raises(UserError, match="--curriculum"):
        dataset.main([*common, "--set", "h_stddev=0.1"])
