"""The geometry score: its parts on shapes with known results, the predictor, and the script from end to end."""

from __future__ import annotations

import json
import math
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from checkpoints.loading import load_generator
from common.errors import UserError
from generators.cameras import CameraPoses, camera_rays
from metrics.predictor import GeometryPredictor, PredictorSettings, augment, get_predictor, prediction_loss, train_predictor
from metrics.sampling import ALONE
from metrics.shapes import Geometry, compare, compare_statistics, flattened, mirrored, normals_to_camera, shape_statistics
from metrics.truth import find_truth, read_truth
from tools.eval_geometry import main
from training.evaluation import Evaluator
from training.options import RunOptions
from training.run.recorder import Recorder

SIZE, FOV, RADIUS = 32, 12.0, 0.07


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Such small steps are slower with a second thread, especially on a busy machine."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


def ball_views(poses: CameraPoses) -> tuple[Geometry, torch.Tensor]:
    """A ball at the origin seen from N poses, by the formula; and its normals in world axes."""
    rays = camera_rays(poses, SIZE, FOV)
    middle = -(rays.origins * rays.directions).sum(-1)
    discriminant = middle**2 - (1 - RADIUS**2)
    mask = discriminant > 0
    depth = torch.where(mask, middle - discriminant.clamp_min(0).sqrt(), 0)
    world = (rays.origins + rays.directions * depth.unsqueeze(-1)) / RADIUS * mask.unsqueeze(-1)
    world = world.transpose(1, 2).unflatten(2, (SIZE, SIZE))
    depth, mask = (value.unflatten(1, (SIZE, SIZE)) for value in (depth, mask))
    return Geometry(depth, normals_to_camera(world, poses), mask), world


def two_poses():
    return CameraPoses(torch.tensor([math.pi / 2, 1.2]), torch.tensor([math.pi / 2, 0.6]))


def test_normals_in_camera_axes():
    """In the camera's axes, a ball looks the same from everywhere, and its central normal points at the camera."""
    ball, world = ball_views(two_poses())
    assert torch.allclose(ball.normals[0], ball.normals[1], atol=1e-3)
    assert not torch.allclose(world[0], world[1], atol=0.1)
    assert torch.allclose(world[0], ball.normals[0], atol=1e-6)  # the frontal camera's axes are the world's
    assert ball.normals[:, 2][ball.mask].min() > -0.01
    assert ball.normals[0, 0, 16, 20] > 0 and ball.normals[0, 1, 10, 16] > 0  # x to the right, y up


def test_compare_on_known_differences():
    ball, _ = ball_views(two_poses())
    same = compare(ball, ball)
    assert same["depth_mae"] == 0 and same["normal_mean_degrees"] < 0.1 and same["mask_iou"] == 1
    assert same["depth_correlation"] == pytest.approx(1) and same["num_views_compared"] == 2
    nearer = compare(ball, ball._replace(depth=ball.depth - 0.02))
    assert nearer["depth_mae"] == pytest.approx(0.02, rel=1e-4) and nearer["depth_rmse"] == pytest.approx(0.02, rel=1e-4)
    assert nearer["depth_mae_aligned"] < 1e-6 and nearer["depth_correlation"] == pytest.approx(1)
    angle = math.radians(10)
    turn = torch.tensor([[math.cos(angle), 0, math.sin(angle)], [0, 1, 0], [-math.sin(angle), 0, math.cos(angle)]])
    flat = flattened(ball)
    turned = compare(flat, flat._replace(normals=torch.einsum("ij,njhw->nihw", turn, flat.normals)))
    assert turned["normal_mean_degrees"] == pytest.approx(10, abs=0.01)
    assert turned["normal_median_degrees"] == pytest.approx(10, abs=0.01)


def test_hollow_and_flat_shapes_score_worse_than_a_ball():
    ball, _ = ball_views(two_poses())
    hollow, flat = compare(ball, mirrored(ball)), compare(ball, flattened(ball))
    assert hollow["depth_correlation"] == pytest.approx(-1) and flat["depth_correlation"] == 0
    assert hollow["depth_mae_aligned"] == pytest.approx(2 * flat["depth_mae_aligned"], rel=1e-4)
    assert hollow["normal_mean_degrees"] > flat["normal_mean_degrees"] > 20


def test_views_without_overlap_are_excluded():
    ball, _ = ball_views(two_poses())
    mask = ball.mask.clone()
    mask[1] = False
    results = compare(ball, ball._replace(mask=mask))
    assert results["num_views_compared"] == 1 and results["mask_iou"] == 0.5
    assert math.isnan(compare(ball, ball._replace(mask=torch.zeros_like(mask)))["depth_mae"])
    statistics = compare_statistics(ball, ball._replace(mask=torch.zeros_like(mask)))
    assert statistics["bulge_w1"] is None and statistics["bulge_real"] > 0


def test_shape_statistics():
    ball, _ = ball_views(two_poses())
    statistics = shape_statistics(ball)
    assert torch.allclose(statistics["coverage"], ball.mask.float().mean(dim=(1, 2)))
    assert torch.allclose(statistics["relief"][0], ball.depth[0][ball.mask[0]].std(correction=0), rtol=1e-3)
    assert (statistics["bulge"] > 0.01).all()
    assert torch.allclose(shape_statistics(mirrored(ball))["bulge"], -statistics["bulge"], atol=1e-5)
    # the mean cosine over a ball's disc is 2/3 from far away; from distance 1 its rim is hidden, the least cosine RADIUS
    assert statistics["facing"].mean().item() == pytest.approx(2 / 3 * (1 - RADIUS) + RADIUS, abs=0.03)
    same = compare_statistics(ball, ball)
    assert all(value == 0 for name, value in same.items() if name.endswith("_w1"))


def test_mirroring_keeps_truth_consistent():
    """A mirrored image's normals must be those of the mirrored shape; a ball's are its own."""
    ball, _ = ball_views(two_poses())
    images = torch.zeros(2, 3, SIZE, SIZE)
    for seed in range(4):
        _, truth = augment(images, ball, torch.Generator().manual_seed(seed))
        assert compare(ball, truth)["normal_mean_degrees"] < 0.5


def test_predictor_loss_is_zero_at_the_truth_and_odd_sizes_work():
    ball, _ = ball_views(two_poses())
    raw = torch.cat([(ball.depth - 1).unsqueeze(1) / 0.1, ball.normals * 3, (ball.mask * 60.0 - 30).unsqueeze(1)], dim=1)
    assert prediction_loss(raw, ball).item() == pytest.approx(0, abs=1e-4)
    predicted = GeometryPredictor(16).predict(torch.zeros(1, 3, 21, 21, dtype=torch.uint8))
    assert predicted.depth.shape == (1, 21, 21) and predicted.normals.shape == (1, 3, 21, 21)


@pytest.fixture(scope="module")
def ball_set(tmp_path_factory, tiny_generator_path):
    """A set with ground truth whose images are those of the tiny generator, so its surfaces match its images."""
    folder = tmp_path_factory.mktemp("balls")
    (folder / "images").mkdir()
    (folder / "ground_truth").mkdir()
    from generators.views import ViewSettings, render_views
    from metrics.sampling import sample_fields

    loaded = load_generator(tiny_generator_path)
    views = []
    for field, poses in sample_fields(loaded, 40, psi=1.0, seed=5, batch_size=20, what="balls"):
        views += render_views(field, poses, loaded.curriculum, ViewSettings(SIZE, ray_step_multiplier=1, last_back=False))
    for i, view in enumerate(views):
        pixels = ((view.image + 1) * 127.5).round().clamp(0, 255).byte().permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(folder / "images" / f"{i:06d}.png")
        truth = {"depth": view.surface_depth * view.hit_mask, "normals": view.normals, "mask": view.hit_mask}
        truth = {name: value.numpy() for name, value in truth.items()}
        np.savez(folder / "ground_truth" / f"{i:06d}.npz", **truth, yaw=np.float32(view.yaw), pitch=np.float32(view.pitch))
    return folder


def test_predictor_is_trained_once_and_repeatable(ball_set, tmp_path):
    files, settings, cpu = find_truth(ball_set, 30), PredictorSettings(num_steps=3), torch.device("cpu")
    first, floor, path = get_predictor(files, settings, tmp_path, cpu)

    def refuse():
        raise AssertionError("trained again")

    again, floor_again, _ = get_predictor(files, settings, tmp_path, cpu, refuse)
    assert floor == floor_again and floor["num_views"] == 3
    images = read_truth(files).images[:2]
    assert torch.equal(first.predict(images).depth, again.predict(images).depth)
    path.write_bytes(path.read_bytes()[:100])
    repaired, _, _ = get_predictor(files, settings, tmp_path, cpu)
    assert torch.allclose(first.predict(images).depth, repaired.predict(images).depth, atol=1e-5)
    assert get_predictor(find_truth(ball_set, 29), settings, tmp_path, cpu)[2] != path
    other = train_predictor(read_truth(files), PredictorSettings(num_steps=3, seed=1), cpu)
    assert not torch.equal(first.predict(images).depth, other.predict(images).depth)


def test_script_finds_a_generator_true_to_its_images(ball_set, tiny_generator_path, tmp_path, capsys):
    output = tmp_path / "score.json"
    args = [str(tiny_generator_path), "--dataset_path", str(ball_set), "--num_images", "8", "--predictor_steps", "80"]
    main([*args, "--predictor_cache", str(tmp_path), "--output_json", str(output)])
    record = json.loads(output.read_text())
    score, baselines = record["score"], record["baselines"]
    assert score["num_views_compared"] == 8 and score["bulges_outward"] is True and score["depth_correlation"] > 0.7
    assert score["mask_iou"] > 0.8
    assert score["depth_mae_aligned"] < 0.5 * score["mirrored_depth_mae"]
    assert score["normal_mean_degrees"] < baselines["flat"]["normal_mean_degrees"]
    assert record["shape_statistics"]["bulge_w1"] < 0.005
    assert record["noise_floor"]["depth_mae"] > 0 and record["protocol"]["predictor"]["num_steps"] == 80
    assert record["protocol"]["white_background"] is False and record["protocol"]["image_size"] == SIZE
    assert record["shape_variety"]["bulge_positive"] == 1 and record["shape_variety"]["shape_correlation"] > 0.9
    assert "noise floor" in capsys.readouterr().out


def test_a_run_measures_its_shape_error_where_the_set_has_a_truth(ball_set, tiny_generator_path, tmp_path, monkeypatch):
    monkeypatch.setattr("training.evaluation.PredictorSettings", partial(PredictorSettings, num_steps=80))
    monkeypatch.setattr("training.evaluation.cache_folder", lambda: tmp_path)
    monkeypatch.setattr("training.evaluation.NUM_SCORED_VIEWS", 8)
    loaded = load_generator(tiny_generator_path)
    recorder = Recorder(tmp_path, 0, 1, use_tensorboard=False)
    for path in (ball_set, ball_set / "images"):
        evaluator = Evaluator(RunOptions(tmp_path, str(path), eval_images=0), ALONE)
        scores = evaluator.evaluate(loaded.generator, SIZE, 1, recorder)
        assert {"bulge", "shape_correlation"} < scores.keys() and "fd" not in scores
        assert scores["depth_correlation"] > 0.7 and scores["mask_iou"] > 0.8 and 0 < scores["depth_error"] < 0.02
    (tmp_path / "photos").mkdir()
    without = Evaluator(RunOptions(tmp_path, str(tmp_path / "photos"), eval_images=0), ALONE)
    scores = without.evaluate(loaded.generator, SIZE, 1, recorder)
    recorder.close()
    assert {"bulge", "shape_correlation"} < scores.keys() and "depth_correlation" not in scores


def test_bad_input(ball_set, tiny_generator_path, empty_generator_path, tmp_path):
    common = ["--num_images", "4", "--predictor_steps", "1", "--predictor_cache", str(tmp_path), "--num_truth", "10"]
    common += ["--output_json", str(tmp_path / "x.json")]
    with pytest.raises(UserError, match="no images with ground truth"):
        main([str(tiny_generator_path), "--dataset_path", str(tmp_path), *common])
    with pytest.raises(UserError, match="radiance field"):
        pigan = load_generator(tiny_generator_path).curriculum.with_overrides(
            [
                "pred_occ=False",
                "init_ball_radius=0",
                "surface_sample=False",
                "with_opacprior=False",
                "with_normal_loss=False",
                "hollow_check_interval=0",
            ]
        )
        (tmp_path / "pigan.json").write_text(json.dumps(pigan.to_dict()))
        radiance = ["--curriculum", str(tmp_path / "pigan.json")]
        main([str(tiny_generator_path), "--dataset_path", str(ball_set), *common, *radiance])
    with pytest.raises(UserError, match="none of the 4 generated views"):
        main([str(empty_generator_path), "--dataset_path", str(ball_set), *common])
    damaged = tmp_path / "damaged"
    for name in ("images", "ground_truth"):
        (damaged / name).mkdir(parents=True)
    (damaged / "images" / "0.png").write_bytes((ball_set / "images" / "000000.png").read_bytes())
    (damaged / "ground_truth" / "0.npz").write_bytes(b"not an archive")
    with pytest.raises(UserError, match=r"0\.npz"):
        main([str(tiny_generator_path), "--dataset_path", str(damaged), *common])
    assert not (tmp_path / "x.json").exists()
