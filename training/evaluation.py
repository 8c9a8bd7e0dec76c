"""Evaluation during a run: metrics every ``--eval_freq`` steps, in metrics.jsonl and TensorBoard (docs/metrics.md).

Nothing is downloaded. Metrics whose requirements are missing are skipped: the shape error (ground truth for the data set), the
variety of shapes (occupancy), FID and KID (Inception's weights), and fd, precision and recall (EfficientNet's weights).
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from checkpoints.loading import LoadedGenerator
from common.cache_folder import cache_folder
from common.errors import UserError
from common.psnr import psnr_db
from dataset import spec_over
from distributed.processes import Processes
from generators.generator import ImplicitGenerator3d, latents_of_first_seeds
from generators.pose_prior import mean_poses
from generators.views import ViewSettings, render_views
from loading.files import Split
from metrics.consistency import view_consistency
from metrics.efficientnet import is_installed
from metrics.fidelity import local_weights
from metrics.geometry import background_is_white, generated_geometry, over_background, surfaces_of
from metrics.perceptual import MIN_IMAGES
from metrics.predictor import GeometryPredictor, PredictorSettings, get_predictor
from metrics.registry import METRICS, Evaluation
from metrics.sampling import SharedWorkFailed, generated_images, real_images
from metrics.shape_variety import generated_variety, true_variety
from metrics.shapes import compare, shape_statistics
from metrics.truth import TruthFiles, find_truth, read_truth
from metrics.weighted_variance import latent_variances
from training.options import RunOptions
from training.run.recorder import Recorder

NUM_SEEDS = 8
NUM_SCORED_VIEWS = 64  # views for the shape error
NUM_TRUTH = 4000  # most views with ground truth to train the predictor on, as in tools/eval_geometry.py
BATCH_SIZE = 8
MIN_IMAGE_SIZE = 8  # pixels; SWD needs at least this size
EXTRACTOR = "inception-v3-compat"
KEPT = {  # results of the metrics to log
    "swd",
    "swd_real_halves",
    "fid",
    "kid",
    "fd",
    "fd_real_halves",
    "fd_32",
    "fd_32_real_halves",
    "precision",
    "recall",
    "recall_real_halves",
}


class Evaluator:
    """Evaluate the averaged generator of a run. Results that do not change during the run are cached."""

    def __init__(self, options: RunOptions, processes: Processes) -> None:
        self._options = options
        self._processes = processes
        self._real: dict[int, Tensor] = {}
        self._real_features: dict[int, Tensor] = {}
        self._true_variety: dict[int, dict[str, float]] = {}

    def evaluate(self, generator: ImplicitGenerator3d, image_size: int, step: int, recorder: Recorder | None) -> dict[str, float]:
        """Return the scores of a generator at ``step`` in the main process, and {} in the others.

        Every process must call this: images are gathered first, so that no process waits for one whose metric fails later.
        ``recorder``, None in the other processes, reports metrics that fail, and the others are returned.
        """
        loaded = LoadedGenerator(generator, generator.curriculum, step, [])
        fake, failure = self._generated_images(loaded, image_size)
        if not self._processes.is_main:
            return {}
        scores: dict[str, float] = {}
        with recorder.tolerate_evaluation(step, "surfaces"):
            scores |= surface_metrics(generator, image_size)
        if generator.curriculum.pred_occ:
            with recorder.tolerate_evaluation(step, "the variety of shapes"):
                scores |= self._shape_variety(generator, image_size)
            if self._truth:
                with recorder.tolerate_evaluation(step, "the shape error"):
                    scores |= self._shape_error(loaded)
        with recorder.tolerate_evaluation(step, "generated images"):
            if failure is not None:
                raise failure
        with recorder.tolerate_evaluation(step, "image metrics"):
            if fake is not None:
                scores |= self._image_metrics(fake, image_size, generator)
        return scores

    def _generated_images(self, loaded: LoadedGenerator, image_size: int) -> tuple[Tensor | None, Exception | None]:
        """Return ``eval_images`` images in the main process, or the failure. All processes render a share.

        Returns (None, None) without images to render.
        """
        num = self._options.eval_images
        if num == 0 or image_size < MIN_IMAGE_SIZE:
            return None, None
        try:
            return generated_images(loaded, num, image_size, batch_size=BATCH_SIZE, processes=self._processes), None
        except SharedWorkFailed as failure:  # in all processes
            return None, failure

    # -- shapes -------------------------------------------------------------------------------------------

    def _shape_variety(self, generator: ImplicitGenerator3d, image_size: int) -> dict[str, float]:
        if image_size not in self._true_variety:
            self._true_variety = {image_size: {}}
            for folder in self._folders:
                self._true_variety[image_size] |= true_variety(folder, generator.curriculum, image_size)
        return generated_variety(generator, image_size) | self._true_variety[image_size]

    @property
    def _folders(self) -> list[Path]:
        """The folders that may hold ground truth, in the layout of tools/synthetic_heads.py."""
        path = Path(self._options.dataset_path)
        return [path, path.parent] if path.name == "images" else [path]

    @cached_property
    def _truth(self) -> TruthFiles | None:
        """The data set's ground truth, or None."""
        for folder in self._folders:
            try:
                return find_truth(folder, NUM_TRUTH)
            except (UserError, OSError, ValueError):
                continue
        return None

    @cached_property
    def _predictor(self) -> tuple[GeometryPredictor, int, bool]:
        """The predictor, the data set's image size, and whether its background is white."""
        files = self._truth
        cache_dir = cache_folder()
        predictor = get_predictor(files, PredictorSettings(), cache_dir, self._processes.device)[0]
        some = read_truth(TruthFiles(files.images[:16], files.truths[:16], files.fingerprint))
        return predictor, some.images.shape[-1], background_is_white(some)

    def _shape_error(self, loaded: LoadedGenerator) -> dict[str, float]:
        predictor, size, is_white = self._predictor
        curriculum = over_background(loaded.curriculum, is_white)
        images, generated = generated_geometry(loaded, curriculum, NUM_SCORED_VIEWS, size, psi=1.0, seed=0, batch_size=BATCH_SIZE)
        scores = compare(predictor.predict(images), generated)
        names = {
            "depth_error": "depth_mae_aligned",
            "depth_correlation": "depth_correlation",
            "normal_median_degrees": "normal_median_degrees",
            "mask_iou": "mask_iou",
        }
        return {name: scores[key] for name, key in names.items()}

    # -- images ----------------------------------------------------------------------------------------------------

    def _image_metrics(self, fake: Tensor, image_size: int, generator: ImplicitGenerator3d) -> dict[str, float]:
        options, weights = self._options, local_weights(EXTRACTOR, self._options.eval_weights)
        if image_size not in self._real:
            spec = spec_over(generator.curriculum.dataset, generator.curriculum)
            num = generator.curriculum.num_holdout
            real = real_images(
                options.dataset_path,
                spec,
                options.eval_images,
                image_size,
                use_cache=options.use_cache,
                split=Split("holdout" if num else "all", num),
            )
            self._real = {image_size: real}
            self._real_features = {}
        real = self._real[image_size]
        names = ["swd", *(() if weights is None else ("fid", "kid"))]
        if min(len(real), len(fake)) >= MIN_IMAGES and is_installed():
            names += ["fd", "prc"]
        device = generator.device
        evaluation = Evaluation(
            real,
            fake,
            tuple(names),
            device=device,
            extractor=EXTRACTOR,
            weights_file=weights,
            real_features=self._real_features,
        )
        results: dict[str, float] = {}
        for name in names:
            results |= METRICS[name].compute(evaluation)
        return {name: value for name, value in results.items() if name in KEPT}


@torch.no_grad()
def surface_metrics(generator: ImplicitGenerator3d, image_size: int) -> dict[str, float]:
    """Return surface metrics of fixed seeds at psi 1, from the mean pose.

    ``hit_rate``: fraction of rays that hit a surface. ``weighted_variance_1e4``: thickness of the surface, times 1e4, if any
    ray qualifies. ``bulge``: mean distance in world units by which a shape's center is nearer than its rim; below 0, shapes
    are hollow (training/hollow.py turns them outward). ``surface_psnr_db``: PSNR of the surface-rendered against the
    volume-rendered image, on rays that hit. ``consistency_*``: see :func:`metrics.consistency.compare_views`.
    """
    curriculum = generator.curriculum
    device = generator.device
    field = generator.field_of_latents(latents_of_first_seeds(NUM_SEEDS, curriculum).to(device))
    poses = mean_poses(curriculum, NUM_SEEDS, device)
    views = render_views(field, poses, curriculum, ViewSettings(image_size, 1))
    hit = torch.stack([view.hit_mask for view in views])
    scalars = {"hit_rate": float(hit.float().mean())}
    if curriculum.pred_occ:
        variances = [v.variance for v in latent_variances(field, poses, curriculum, image_size) if v.num_rays]
        if variances:
            scalars["weighted_variance_1e4"] = 1e4 * sum(variances) / len(variances)
    bulges = shape_statistics(surfaces_of(views))["bulge"]
    if len(bulges):
        scalars["bulge"] = float(bulges.mean())
    if hit.any():
        difference = torch.stack([(view.image - view.surface_image).square().mean(dim=0) for view in views])[hit]
        scalars["surface_psnr_db"] = psnr_db(float(difference.mean()), peak=2)
        scalars |= view_consistency(field, curriculum, image_size, device)
    return scalars
