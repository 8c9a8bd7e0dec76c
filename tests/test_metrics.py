"""Image metrics: sampling, the patch distance, torch-fidelity with random weights, and errors."""

from __future__ import annotations

import json
import os
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

import eval_metrics
from checkpoints.loading import load_generator
from common.errors import UserError
from generators.pose_prior import draw_poses
from metrics import fidelity
from metrics.fidelity import FidelitySettings, calculate, find_weights, read_state_dict
from metrics.registry import METRICS, Evaluation, Metric
from metrics.sampling import ALONE, generated_images
from metrics.swd import laplacian_pyramid, sliced_distance, sliced_wasserstein
from settings.registry import CURRICULUMS
from training.evaluation import KEPT, Evaluator
from training.options import RunOptions
from training.run.recorder import Recorder


@pytest.fixture(scope="module")
def photo_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for i in range(12):
        Image.fromarray(random.integers(0, 255, (24, 24, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory):
    """torch-fidelity's network with random weights: the real code path, meaningless numbers."""
    module = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    path = tmp_path_factory.mktemp("weights") / "random_inception.pth"
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng():
        torch.manual_seed(0)
        patch.setattr(module.FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        patch.setattr(module, "load_state_dict_from_url", lambda *args, **kwargs: {})
        network = module.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
        for layer in network.modules():
            if isinstance(layer, torch.nn.Conv2d):  # the usual start lets the signal die out over so many layers
                torch.nn.init.kaiming_normal_(layer.weight)
    torch.save(network.state_dict(), path)
    return path


def random_images(num, size=16, seed=0, high=256):
    return torch.randint(0, high, (num, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


# ------------------------------------------------------------------------------------------------------------- sampling


def test_generated_images_do_not_depend_on_the_batch_size(tiny_generator_path):
    loaded = load_generator(tiny_generator_path)
    one, three = (generated_images(loaded, 5, 16, seed=1, batch_size=size) for size in (1, 3))
    assert one.shape == (5, 3, 16, 16) and one.dtype == torch.uint8
    assert (one.int() - three.int()).abs().max() <= 1
    assert not torch.equal(one, generated_images(loaded, 5, 16, seed=2, batch_size=3))
    assert one.float().std() > 5


def test_poses_follow_the_curriculum(tiny_generator_path):
    curriculum = load_generator(tiny_generator_path).curriculum
    poses = draw_poses(500, curriculum, torch.Generator().manual_seed(0))
    assert (poses.yaw - curriculum.h_mean).abs().max() <= curriculum.h_stddev
    assert poses.yaw.std() == pytest.approx(curriculum.h_stddev / 3**0.5, rel=0.1)
    hybrid = draw_poses(500, curriculum.with_overrides(["sample_dist=hybrid"]), torch.Generator().manual_seed(0))
    assert (hybrid.yaw - curriculum.h_mean).abs().max() > 1.4 * curriculum.h_stddev  # both halves are drawn from


# ------------------------------------------------------------------------------------------------------------------ swd


def test_pyramid_adds_up_again():
    images = torch.rand(2, 3, 64, 64)
    levels = laplacian_pyramid(images)
    assert [level.shape[-1] for level in levels] == [64, 32, 16]
    image = levels[-1]
    for level in reversed(levels[:-1]):
        image = level + torch.nn.functional.interpolate(image, size=level.shape[-2:], mode="bilinear", align_corners=False)
    assert torch.allclose(image, images, atol=1e-5)


def test_sliced_distance_of_a_shift():
    """Shifting a set by v moves every projection by v . d, whose mean size for a unit v in D dimensions is known."""
    points, dim = torch.randn(500, 3), 3
    shift = torch.tensor([0.3, 0.0, 0.0])
    assert sliced_distance(points, points, 0) == 0
    assert sliced_distance(points, points + shift, 0) == pytest.approx(1e3 * 0.3 / 2, rel=0.1)  # E|u_1| = 1/2 on the sphere
    assert dim == points.shape[1]


def test_swd_orders_image_sets():
    real, same = random_images(40), random_images(40, seed=1)
    darker, smooth = random_images(40, seed=2, high=200), torch.nn.functional.avg_pool2d(same.float(), 3, 1, 1).byte()
    close = sliced_wasserstein(real, same)
    assert close["swd"] < 2 * close["swd_real_halves"]
    for other in (darker, smooth):
        assert sliced_wasserstein(real, other)["swd"] > 3 * close["swd"]
    assert sliced_wasserstein(real, same) == close
    assert sliced_wasserstein(real, same[:25])["swd"] > 0


# ------------------------------------------------------------------------------------------------------- torch-fidelity


def test_settings_adapt_to_small_sets():
    assert FidelitySettings.for_counts(2048, 8000, "x", 0, 1).kid_subset_size == 1000
    small = FidelitySettings.for_counts(9, 30, "x", 0, 1)
    assert small.kid_subset_size == 4 and small.isc_splits == 3


def test_script_through_torch_fidelity(photo_dir, inception_file, tiny_generator_path, tmp_path, capsys):
    output = tmp_path / "results.json"
    command = [tiny_generator_path, "--real_image_dir", photo_dir, "--image_size", "16"]
    command += ["--num_images", "14", "--dataset", "Images", "--output_json", output, "--device", "cpu"]
    command += ["--metrics", "fid", "kid", "is", "swd", "--feature_extractor_weights", inception_file]
    eval_metrics.main([str(part) for part in command])
    record = json.loads(output.read_text())
    assert set(record["metrics"]) >= {"fid", "kid", "kid_std", "is", "is_std", "swd"}
    assert record["metrics"]["fid"] > 1e-3 and record["metrics"]["kid"] > 0 and record["metrics"]["is"] > 0.99
    protocol = record["protocol"]
    assert (protocol["num_real"], protocol["num_fake"], protocol["kid_subset_size"]) == (12, 14, 6)
    assert protocol["feature_extractor"] == "inception-v3-compat" and protocol["psi"] == 1.0 and protocol["torch_fidelity"]
    shown = capsys.readouterr().out
    assert "only 12 real images" in shown and "fid" in shown


def test_a_run_measures_fid_where_the_weights_are(photo_dir, inception_file, tiny_generator_path, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))  # where none lie
    generator = load_generator(tiny_generator_path).generator
    always = {"swd", "swd_real_halves", "fd", "fd_real_halves", "precision", "recall", "recall_real_halves"}
    for weights, expected in ((inception_file, {"fid", "kid"}), (None, set())):
        options = RunOptions(tmp_path, str(photo_dir), eval_images=8, eval_weights=weights, use_cache=False)
        recorder = Recorder(tmp_path, 0, 1, use_tensorboard=False)
        scores = Evaluator(options, ALONE).evaluate(generator, 16, 1, recorder)
        recorder.close()
        results = {name: value for name, value in scores.items() if name in KEPT}
        assert set(results) == always | expected
        may_be_zero = ("kid", "precision", "recall", "recall_real_halves")
        assert all(value > 0 for name, value in results.items() if name not in may_be_zero)


def test_hostile_weights_run_nothing(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (os.system, (f"touch {tmp_path}/exploded",))

    hostile = tmp_path / "hostile.pth"
    torch.save({"weight": Bomb()}, hostile)
    legacy = tmp_path / "legacy.pth"
    legacy.write_bytes(pickle.dumps({"weight": Bomb()}))
    for path in (hostile, legacy):
        with pytest.raises(UserError, match=path.name):
            calculate(
                random_images(8),
                random_images(8),
                {"fid"},
                FidelitySettings.for_counts(8, 8, "vgg16", 0, 4),
                path,
                torch.device("cpu"),
            )
    assert not (tmp_path / "exploded").exists()


def test_weights_of_another_kind(tmp_path):
    other = tmp_path / "other.pth"
    torch.save({"weight": torch.zeros(3)}, other)
    settings = FidelitySettings.for_counts(8, 8, "inception-v3-compat", 0, 4)
    with pytest.raises(UserError, match="not a weights file of inception"):
        calculate(random_images(8), random_images(8), {"fid"}, settings, other, torch.device("cpu"))
    torch.save([1, 2], other)
    with pytest.raises(UserError, match="named tensors"):
        read_state_dict(other)
    with pytest.raises(UserError, match="too few"):
        calculate(random_images(2), random_images(8), {"fid"}, settings, other, torch.device("cpu"))
    for name, file in (("clip-rn50", None), ("inception-v3-compat", tmp_path / "absent.pth")):
        with pytest.raises(UserError):
            find_weights(name, file)


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    """Downloads go to a port where nothing listens, and nothing was downloaded before."""
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))


def test_no_network_is_one_line_before_any_work(no_network, photo_dir, tiny_generator_path, tmp_path):
    with pytest.raises(UserError) as caught:
        eval_metrics.main([str(tiny_generator_path), "--dataset_path", str(photo_dir), "--output_json", str(tmp_path / "x.json")])
    message = str(caught.value)
    assert "weights-inception-2015-12-05-6726825d.pth" in message and "--feature_extractor_weights" in message
    assert not (tmp_path / "x.json").exists()
    assert not list((tmp_path / "torch").rglob("*.pth"))


def test_a_download_with_a_wrong_hash_is_refused(monkeypatch, tmp_path):
    file = tmp_path / "weights.pth"
    torch.save({"a": torch.zeros(1)}, file)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setitem(fidelity.EXTRACTORS, "vgg16", fidelity.WeightsSource(file.as_uri(), "00000000"))
    with pytest.raises(UserError, match="hash"):
        find_weights("vgg16", None)


# --------------------------------------------------------------------------------------------------------------- script


def test_swd_needs_no_network(no_network, photo_dir, tiny_generator_path, tmp_path):
    output = tmp_path / "deeper" / "x.json"
    args = [str(tiny_generator_path), "--dataset_path", str(photo_dir), "--dataset", "Images", "--metrics", "swd"]
    eval_metrics.main([*args, "--num_images", "6", "--image_size", "16", "--output_json", str(output)])
    record = json.loads(output.read_text())
    assert record["protocol"]["num_real"] == 6 and record["metrics"]["swd"] > 0 and record["notes"] == []


def test_adding_a_metric_is_one_entry(monkeypatch, photo_dir, tiny_generator_path, tmp_path):
    def brightness(evaluation: Evaluation) -> dict[str, float]:
        return {"brightness_gap": float(evaluation.fake.float().mean() - evaluation.real.float().mean())}

    monkeypatch.setitem(METRICS, "brightness", Metric(brightness, "difference of mean brightness"))
    args = [str(tiny_generator_path), "--dataset_path", str(photo_dir), "--metrics", "brightness", "--num_images", "4"]
    eval_metrics.main([*args, "--image_size", "16", "--output_json", str(tmp_path / "x.json")])
    assert json.loads((tmp_path / "x.json").read_text())["metrics"]["brightness_gap"] < 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--dataset_path", "absent"], "absent"),
        (["--curriculum", "BFMM"], "unknown curriculum"),
        (["--dataset", "Dogs"], "unknown dataset"),
        (["--image_size", "4"], "at least 8"),
    ],
)
def test_bad_input(changes, message, photo_dir, tiny_generator_path, tmp_path):
    args = [str(tiny_generator_path), "--dataset_path", str(photo_dir), "--metrics", "swd", "--num_images", "4"]
    with pytest.raises(UserError, match=message):
        eval_metrics.main([*args, "--image_size", "16", "--output_json", str(tmp_path / "x.json"), *changes])


@pytest.mark.parametrize("changes", [["--metrics", "fidd"], ["--num_images", "0"], ["--seed", "one"]])
def test_bad_arguments(changes, photo_dir, tiny_generator_path, capsys):
    with pytest.raises(SystemExit) as caught:
        eval_metrics.main([str(tiny_generator_path), "--dataset_path", str(photo_dir), *changes])
    assert caught.value.code == 2 and capsys.readouterr().err.count("\n") == 1


def test_the_protocol_records_the_settings_that_were_used(photo_dir, tiny_generator_path, tmp_path):
    curriculum = load_generator(tiny_generator_path).curriculum
    args = [str(tiny_generator_path), "--dataset_path", str(photo_dir), "--metrics", "swd", "--num_images", "4"]
    for changes in (["last_back=True"], ["interval_min=0.05", "num_steps_fine=2"]):
        used = curriculum.with_overrides(changes)
        (tmp_path / "c.json").write_text(json.dumps(used.to_dict()))
        args_used = [*args, "--curriculum", str(tmp_path / "c.json"), "--image_size", "16"]
        eval_metrics.main([*args_used, "--output_json", str(tmp_path / "x.json")])
        rendering = json.loads((tmp_path / "x.json").read_text())["protocol"]["rendering"]
        assert rendering["last_back"] is used.last_back and rendering["interval"] == used.interval_min
        assert rendering["num_fine"] == used.num_steps_fine and rendering["jitter"] is False


def parsed(*changes):
    return eval_metrics.make_parser().parse_args(["g.safetensors", "--dataset_path", "photos", *changes])


def test_departures_from_the_published_protocol_are_named():
    celeba = CURRICULUMS["CelebA"]
    as_published = parsed("--num_real", "all", "--real_resize", "nearest")
    assert eval_metrics.departures(as_published, 5000, "all", celeba) == []
    found = "; ".join(eval_metrics.departures(parsed(), 2048, "all", celeba))
    assert "2048 real images instead of all" in found and "antialiasing" in found
    for changes, named in (
        (["--psi", "0.7"], "psi 0.7"),
        (["--image_size", "64"], "64 px instead of 128"),
        (["--num_images", "500"], "500 generated"),
        (["--feature_extractor", "vgg16"], "vgg16"),
    ):
        (only,) = eval_metrics.departures(parsed("--num_real", "all", "--real_resize", "nearest", *changes), 5000, "all", celeba)
        assert named in only
    (only,) = eval_metrics.departures(as_published, 5000, "all", celeba.with_overrides(["last_back=True"]))
    assert "last_back" in only
    (only,) = eval_metrics.departures(as_published, 500, "holdout", celeba)
    assert "the holdout split" in only


def test_real_images_are_counted_apart_from_generated_ones(photo_dir, tiny_generator_path, tmp_path):
    args = [str(tiny_generator_path), "--dataset_path", str(photo_dir), "--dataset", "Images", "--metrics", "swd"]
    for num_real, expected in (([], 4), (["--num_real", "9"], 9), (["--num_real", "all"], 12)):
        output = ["--output_json", str(tmp_path / "x.json")]
        eval_metrics.main([*args, "--num_images", "4", "--image_size", "16", "--real_resize", "nearest", *num_real, *output])
        protocol = json.loads((tmp_path / "x.json").read_text())["protocol"]
        assert (protocol["num_real"], protocol["num_fake"]) == (expected, 4) and "nearest" in protocol["real_resize"]


def test_inception_scores_need_inceptions_classes(photo_dir, tiny_generator_path, tmp_path):
    args = [str(tiny_generator_path), "--dataset_path", str(photo_dir), "--feature_extractor", "vgg16"]
    with pytest.raises(UserError, match="IS is the entropy of Inception's classes"):
        eval_metrics.main([*args, "--output_json", str(tmp_path / "x.json")])
