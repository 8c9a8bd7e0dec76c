"""Defects to introduce, one at a time: what each breaks, where, and which test files must detect it.

``old`` occurs exactly once in ``file`` (checked by tests/test_mutations.py) and is replaced by ``new``. A mutant that no test
detects shows that a test is missing.
"""

from __future__ import annotations

from typing import NamedTuple


class Mutant(NamedTuple):
    """``file``: path in the tree. ``tests``: files under tests/, without test_ and .py, in the order in which they are run."""

    breaks: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


ORACLE = ("oracle",)

# -- what a reviewer planted, and the suite did not notice -----------------------------------------------------------------

REVIEWED = [
    Mutant(
        "generated images transposed",
        "training/steps.py",
        "images = as_images(output.rgb, settings.image_size) * 2 - 1",
        "images = as_images(output.rgb, settings.image_size).transpose(2, 3) * 2 - 1",
        ORACLE,
    ),
    Mutant(
        "Delta never shrinks",
        "training/steps.py",
        "RenderSettings.from_curriculum(curriculum, schedules.interval_at(curriculum, step))",
        "RenderSettings.from_curriculum(curriculum, curriculum.interval_max)",
        ORACLE,
    ),
    Mutant(
        "opacity prior without weight",
        "training/steps.py",
        "lambda_opacity_prior=schedules.opacity_prior_weight_at(curriculum, step)",
        "lambda_opacity_prior=0.0",
        ORACLE,
    ),
    Mutant(
        "normal term without weight",
        "training/steps.py",
        'weighted["normal"] = (c.normal_lambda, ',
        'weighted["normal"] = (0.0, ',
        ORACLE,
    ),
    Mutant(
        "opacity prior on the weights",
        "training/steps.py",
        "losses.opacity_prior_loss(output.alphas)",
        "losses.opacity_prior_loss(output.weights)",
        ORACLE,
    ),
    Mutant(
        "the neighbor is the point itself",
        "training/steps.py",
        "points + h_sample * neighbors",
        "points + 0 * neighbors",
        ORACLE,
    ),
    Mutant(
        "D's pose without weight",
        "training/steps.py",
        "(curriculum.pos_lambda, losses.pose_loss(output.pose, inputs.poses))",
        "(0.0, losses.pose_loss(output.pose, inputs.poses))",
        ORACLE,
    ),
    Mutant(
        "latent loss of the wrong sign",
        "training/losses.py",
        "return F.mse_loss(predicted, z)",
        "return -F.mse_loss(predicted, z)",
        ORACLE,
    ),
    Mutant(
        "G judged without the fade",
        "training/steps.py",
        "return discriminator(images, settings.fade_alpha)",
        "return discriminator(images, 1.0)",
        ORACLE,
    ),
    Mutant(
        "density noise 0",
        "training/steps.py",
        "render=replace(settings, density_noise=noise)",
        "render=replace(settings, density_noise=0.0)",
        ORACLE,
    ),
    Mutant(
        "density noise never added",
        "generators/renderer.py",
        "logits = logits + settings.density_noise * gaussian",
        "logits = logits + 0 * gaussian",
        ORACLE,
    ),
    Mutant(
        "pitch and yaw exchanged in the pose loss",
        "training/losses.py",
        "torch.stack([poses.pitch, poses.yaw], dim=1)",
        "torch.stack([poses.yaw, poses.pitch], dim=1)",
        ORACLE,
    ),
    Mutant(
        "grad_clip ignored",
        "training/trainer.py",
        "nn.utils.clip_grad_norm_(network.parameters(), self.curriculum.grad_clip)",
        "nn.utils.clip_grad_norm_(network.parameters(), 1e9)",
        ORACLE,
    ),
    Mutant(
        "Adam's betas ignored",
        "training/run/run_state.py",
        "betas=curriculum.betas",
        "betas=(0.0, 0.9)",
        ORACLE,
    ),
    Mutant(
        "reduced rate of the mapping network ignored",
        "training/run/run_state.py",
        'gen_lr * group.get("rate", 1.0)',
        "gen_lr",
        ORACLE,
    ),
    Mutant(
        "every training pose the mean pose",
        "generators/pose_prior.py",
        "sample_dist=curriculum.sample_dist",
        "sample_dist=None",
        ORACLE,
    ),
    Mutant(
        "mirror: inverted about 0, not about tau",
        "siren/siren.py",
        "self.final_layer.bias.neg_().add_(double_level)",
        "self.final_layer.bias.neg_()",
        ("mirror",),
    ),
    Mutant(
        "mirror: the means of the read-outs exchanged",
        "training/mirror.py",
        "new_tensor([curriculum.v_mean, curriculum.h_mean])",
        "new_tensor([curriculum.h_mean, curriculum.v_mean])",
        ("mirror",),
    ),
    Mutant(
        "spherical_uniform without v_mean",
        "generators/cameras.py",
        "* (v_stddev / math.pi) + v_mean / math.pi",
        "* (v_stddev / math.pi) + 0.5",
        ("cameras",),
    ),
    Mutant(
        "hybrid without pitch",
        "generators/cameras.py",
        '"uniform", 2 * h_stddev, 2 * v_stddev',
        '"uniform", 2 * h_stddev, v_stddev',
        ("cameras",),
    ),
    Mutant(
        "surface samples are not jittered",
        "generators/renderer.py",
        "samplers.surface_samples(low, high, settings.num_surface, noise.surface_jitter)",
        "samplers.surface_samples(low, high, settings.num_surface)",
        ORACLE,
    ),
    Mutant(
        "importance samples are not random",
        "generators/renderer.py",
        "samplers.importance_samples(t_coarse, coarse_weights, settings.num_fine, noise.importance)",
        "samplers.importance_samples(t_coarse, coarse_weights, settings.num_fine)",
        ORACLE,
    ),
    Mutant(
        "tau ignored",
        "generators/renderer.py",
        "threshold = math.log(settings.tau / (1 - settings.tau))",
        "threshold = 0.0",
        ORACLE,
    ),
    Mutant(
        "scored images transposed",
        "metrics/sampling.py",
        "as_images(pixels, image_size).contiguous()",
        "as_images(pixels, image_size).transpose(2, 3).contiguous()",
        ORACLE,
    ),
    Mutant(
        "scored images at interval_max",
        "metrics/sampling.py",
        "return RenderSettings.from_curriculum(curriculum)",
        "return RenderSettings.from_curriculum(curriculum, curriculum.interval_max)",
        ORACLE,
    ),
    Mutant(
        "scored images with last_back on",
        "metrics/sampling.py",
        "return RenderSettings.from_curriculum(curriculum)",
        'return __import__("dataclasses").replace(RenderSettings.from_curriculum(curriculum), last_back=True)',
        ORACLE,
    ),
    Mutant(
        "lock_view_dependence looks the other way",
        "generators/views.py",
        "self._ahead.to(directions)",
        "(-self._ahead).to(directions)",
        ("rendering",),
    ),
    Mutant(
        "SIREN's layers start half as large",
        "siren/siren.py",
        "math.sqrt(6 / num_in) / 25",
        "math.sqrt(6 / num_in) / 50",
        ("initial_weights",),
    ),
    Mutant(
        "SIREN's first layer starts small",
        "siren/siren.py",
        "FIRST_BOUND = 1 / 3",
        "FIRST_BOUND = 1 / 35",
        ("initial_weights",),
    ),
    Mutant(
        "D's convolutions start half as large",
        "discriminators/progressive.py",
        "        init_kaiming(self.conv)\n",
        "        init_kaiming(self.conv)\n        self.conv.weight.data.mul_(0.5)\n",
        ("initial_weights",),
    ),
]

# -- the core's arithmetic: one sign, index or constant at a time ----------------------------------------------------------

CAMERAS = [
    Mutant("left is right", "generators/cameras.py", "[..., :3, 0] = -left", "[..., :3, 0] = left", ("cameras",)),
    Mutant(
        "fov is not halved",
        "generators/cameras.py",
        "-1 / math.tan(math.radians(fov_degrees) / 2)",
        "-1 / math.tan(math.radians(fov_degrees))",
        ("cameras",),
    ),
    Mutant(
        "rows from the bottom", "generators/cameras.py", "torch.linspace(1, -1, size", "torch.linspace(-1, 1, size", ("cameras",)
    ),
    Mutant("cut at 3 sigma", "generators/cameras.py", "math.erf(2 / math.sqrt(2))", "math.erf(3 / math.sqrt(2))", ("cameras",)),
    Mutant("heights not uniform", "generators/cameras.py", "torch.arccos(1 - 2 * v", "torch.arccos(1 - 1.8 * v", ("cameras",)),
    Mutant(
        "yaw's spread is pitch's in the gaussian",
        "generators/cameras.py",
        "yaw = torch.randn(num, generator=generator) * h_stddev + h_mean",
        "yaw = torch.randn(num, generator=generator) * v_stddev + h_mean",
        ("cameras",),
    ),
]
SAMPLERS = [
    Mutant(
        "the interval may leave the far end",
        "generators/samplers.py",
        ".clamp(max=t_far - 2 * half_width)",
        ".clamp(max=t_far - half_width)",
        ("rendering",),
    ),
    Mutant(
        "half an interval", "generators/samplers.py", "high = (low + 2 * half_width)", "high = (low + half_width)", ("rendering",)
    ),
    Mutant("jitter to one side", "generators/samplers.py", "(uniform - 0.5) * (t", "uniform * (t", ("rendering",)),
    Mutant(
        "weights of the wrong cells",
        "generators/samplers.py",
        "weights[..., 1:-1] + 1e-5",
        "weights[..., :-2] + 1e-5",
        ("rendering",),
    ),
    Mutant(
        "too much of the empty cells", "generators/samplers.py", "weights[..., 1:-1] + 1e-5", "weights[..., 1:-1] + 1e-2", ORACLE
    ),
    Mutant(
        "quantiles from 0",
        "generators/samplers.py",
        "dtype=t.dtype) + 0.5) / num",
        "dtype=t.dtype)) / num",
        ORACLE,
    ),
    Mutant("bins are not midpoints", "generators/samplers.py", "(t[..., 1:] + t[..., :-1]) / 2", "t[..., 1:]", ("rendering",)),
]
ROOTS = [
    Mutant(
        "a ray that starts inside has a surface",
        "generators/root_finding.py",
        "crosses.any(dim=-1) & ~solid[..., 0]",
        "crosses.any(dim=-1)",
        ("rendering",),
    ),
    Mutant(
        "the secant from the other end",
        "generators/root_finding.py",
        "-level_low / slope.clamp_min(1e-12)",
        "level_high / slope.clamp_min(1e-12)",
        ("rendering",),
    ),
    Mutant(
        "the bracket's upper level is not updated",
        "generators/root_finding.py",
        "torch.where(free, level_high, level)",
        "torch.where(free, level_high, level_high)",
        ("rendering", "oracle"),
    ),
    Mutant(
        "no surface lies near",
        "generators/root_finding.py",
        "torch.where(hit_mask, t, t_coarse[..., -1])",
        "torch.where(hit_mask, t, t_coarse[..., 0])",
        ("rendering",),
    ),
    Mutant(
        "one step less",
        "generators/root_finding.py",
        "for _ in range(num_steps):",
        "for _ in range(num_steps - 1):",
        ("rendering", "oracle"),
    ),
]
COMPOSITING = [
    Mutant(
        "a sample hides itself",
        "generators/volume_rendering.py",
        "torch.cat([torch.ones_like(alphas[..., :1]), survival[..., :-1]], dim=-1)",
        "survival",
        ("rendering",),
    ),
    Mutant(
        "gradient of the transmittance from the front",
        "generators/volume_rendering.py",
        "scan(torch.cumsum, (grad * products).flip(-1)).flip(-1) / factors",
        "scan(torch.cumsum, grad * products) / factors",
        ("rendering",),
    ),
    Mutant(
        "last_back takes weight away",
        "generators/volume_rendering.py",
        "weights[..., -1:] + rest",
        "weights[..., -1:] - rest",
        ("rendering",),
    ),
    Mutant(
        "no color behind generated images",
        "training/steps.py",
        "images + (1 - alpha) * (colors[:, :, None, None] + 1)",
        "images + (1 - alpha) * colors[:, :, None, None]",
        ("random_background",),
    ),
    Mutant(
        "opacity without a gradient",
        "training/steps.py",
        "images = over_color(images, alpha, inputs",
        "images = over_color(images, alpha.detach(), inputs",
        ("random_background",),
    ),
    Mutant(
        "real images on the colors of generated ones",
        "training/steps.py",
        "(real[:, 3:] + 1) / 2, inputs.backgrounds[:, REAL]",
        "(real[:, 3:] + 1) / 2, inputs.backgrounds[:, GENERATED]",
        ("random_background",),
    ),
    Mutant(
        "opacity without its background",
        "loading/files.py",
        'part.getchannel("A")',
        'part.getchannel("R")',
        ("random_background",),
    ),
    Mutant(
        "colors of heads not divided by opacity",
        "tools/synthetic_heads.py",
        "/ 2 / alpha.clamp(min=0.25)",
        "/ 2",
        ("synthetic_heads",),
    ),
    Mutant(
        "white_back darkens",
        "generators/volume_rendering.py",
        "color = color + 1 - weights.sum(dim=-1, keepdim=True)",
        "color = color - 1 + weights.sum(dim=-1, keepdim=True)",
        ("rendering",),
    ),
    Mutant(
        "depth of thin rays too near",
        "generators/volume_rendering.py",
        "(weights.sum(dim=-1) + 1e-5)",
        "(weights.sum(dim=-1) + 1e-2)",
        ("rendering",),
    ),
    Mutant("a thin last sample", "generators/volume_rendering.py", "LAST_DELTA = 1e10", "LAST_DELTA = 1e-3", ORACLE),
    Mutant(
        "softplus is relu",
        "generators/volume_rendering.py",
        'F.softplus(densities) if clamp_mode == "softplus" else F.relu(densities)',
        "F.relu(densities)",
        ORACLE,
    ),
    Mutant(
        "missing weight is near",
        "generators/volume_rendering.py",
        "(1 - weights.sum(dim=-1)) * t_far",
        "(1 - weights.sum(dim=-1)) * 0.88",
        ("rendering",),
    ),
]
LOSSES = [
    Mutant("R1 not halved", "training/steps.py", "(0.5 * settings.lambda_r1, ", "(settings.lambda_r1, ", ORACLE),
    Mutant("one image less in top-k", "training/losses.py", "num_kept = math.ceil(", "num_kept = math.floor(", ("losses",)),
    Mutant("top-k does not weigh what is left", "training/losses.py", "len(gathered) / num_kept)", "1.0)", ("losses",)),
    Mutant("top-k keeps the worst", "training/losses.py", "gathered.topk(num_kept)", "(-gathered).topk(num_kept)", ("losses",)),
    Mutant("prior not symmetric", "training/losses.py", "torch.log(0.1 + alphas)", "torch.log(0.2 + alphas)", ("losses",)),
    Mutant(
        "normal term over all rays",
        "training/losses.py",
        "squared.sum(dim=1) / mask.sum(dim=1).clamp_min(1)",
        "squared.sum(dim=1) / mask.shape[1]",
        ("losses",),
    ),
    Mutant(
        "winners and losers exchanged",
        "training/losses.py",
        "F.softplus(loser_scores - winner_scores)",
        "F.softplus(winner_scores - loser_scores)",
        ("losses",),
    ),
    Mutant(
        "penalty is a mean over pixels",
        "training/losses.py",
        ".sum(dim=(1, 2, 3)).mean()",
        ".mean(dim=(1, 2, 3)).mean()",
        ("losses", "oracle"),
    ),
    Mutant(
        "D's real images count as generated",
        "training/losses.py",
        "F.softplus(-real_scores).mean()",
        "F.softplus(real_scores).mean()",
        ("losses", "oracle"),
    ),
    Mutant(
        "a lazy penalty without its factor",
        "settings/schedules.py",
        "factor = curriculum.r1_interval if",
        "factor = 1 if",
        ("losses",),
    ),
    Mutant(
        "the fade starts over where the rates change",
        "settings/schedules.py",
        "min(1.0, (step - min(same_size)) / curriculum.fade_steps)",
        "min(1.0, (step - curriculum.stage_at(step).start_step) / curriculum.fade_steps)",
        ("losses",),
    ),
]
GRAPHS = [
    Mutant(
        "the rate of an average is left out in a graph",
        "training/ema.py",
        "            torch._foreach_mul_(differences, rate)\n",
        "",
        ("cuda_graphs",),
    ),
    Mutant(
        "a graph keeps the interval of its first step",
        "training/steps.py",
        "interval=schedule.interval, density_noise=noise)",
        "density_noise=noise)",
        ("cuda_graphs",),
    ),
    Mutant(
        "steps with and without the ball hold share a graph",
        "training/cuda_graphs.py",
        "lambda_ball_hold=float(settings.lambda_ball_hold > 0)",
        "lambda_ball_hold=0.0",
        ("cuda_graphs",),
    ),
    Mutant(
        "steps with different top-k counts share a graph",
        "training/cuda_graphs.py",
        "topk_fraction=num_kept / stage.batch_size",
        "topk_fraction=1.0",
        ("cuda_graphs",),
    ),
    Mutant(
        "a graph keeps the fade of its first step",
        "training/steps.py",
        "fade_alpha=schedule.fade_alpha if self.fade_alpha < 1 else 1.0",
        "fade_alpha=self.fade_alpha",
        ("cuda_graphs",),
    ),
    Mutant(
        "steps with and without a fade share a graph",
        "training/cuda_graphs.py",
        "fade_alpha=0.0 if settings.fade_alpha < 1 else 1.0",
        "fade_alpha=1.0",
        ("cuda_graphs",),
    ),
    Mutant(
        "graphs are kept when a run goes back",
        "training/trainer.py",
        "self._graphs.clear()  # the optimizers' states are in other tensors now",
        "pass",
        ("nonfinite",),
    ),
    Mutant(
        "scans for a GPU run along the wrong dimension",
        "generators/volume_rendering.py",
        ".contiguous(), dim=0)",
        ".contiguous(), dim=1)",
        ("rendering",),
    ),
    Mutant(
        "several processes use graphs",
        "training/cuda_graphs.py",
        "return is_cuda and processes.world_size == 1 and not others",
        "return is_cuda and not others",
        ("cuda_graphs",),
    ),
]
AVERAGES = [
    Mutant(
        "a longer warm-up",
        "settings/schedules.py",
        "(1 + num_updates) / (10 + num_updates)",
        "(1 + num_updates) / (11 + num_updates)",
        ORACLE,
    ),
    Mutant("updates are not counted", "training/ema.py", "self.num_updates += 1", "self.num_updates += 0", ORACLE),
    Mutant("the average is the last weights", "training/ema.py", "return 1 - ema_decay_at(", "return ema_decay_at(", ORACLE),
    Mutant("the averages' decays are one", "training/run/run_state.py", '"ema2": 0.9999}', '"ema2": 0.999}', ORACLE),
]
FIELD = [
    Mutant(
        "frequencies without their 30",
        "siren/backends/folded.py",
        ".reshape(shape) * 15 + 30",
        ".reshape(shape) * 15 + 29",
        ORACLE,
    ),
    Mutant("the box a little larger", "siren/siren.py", "BOX_SIDE = 0.24", "BOX_SIDE = 0.25", ORACLE),
    Mutant(
        "shifts before frequencies",
        "siren/mapping.py",
        "FilmParameters(*self.network(z).chunk(2, dim=-1))",
        "FilmParameters(*self.network(z).chunk(2, dim=-1)[::-1])",
        ORACLE,
    ),
    Mutant("the mapping's slope", "siren/mapping.py", "LEAKY_SLOPE = 0.2", "LEAKY_SLOPE = 0.1", ORACLE),
]
MESHES = [
    Mutant(
        "a sheared lattice",
        "visualization/meshes.py",
        "i * (cube_size / (resolution - 1))",
        "i * (cube_size / resolution)",
        ("meshes",),
    ),
    Mutant(
        "a mesh inside out", "visualization/meshes.py", 'gradient_direction="ascent"', 'gradient_direction="descent"', ("meshes",)
    ),
    Mutant(
        "occupancy of the wrong level",
        "visualization/meshes.py",
        "return math.log(level / (1 - level))",
        "return math.log((1 - level) / level)",
        ("meshes", "extraction"),
    ),
    Mutant(
        "a radiance field's step is the cube",
        "visualization/meshes.py",
        "return 1 - torch.exp(-density * spacing)",
        "return 1 - torch.exp(-density)",
        ("meshes",),
    ),
    Mutant("vertices are not moved", "visualization/meshes.py", "NUM_REFINE_STEPS = 7", "NUM_REFINE_STEPS = 0", ("meshes",)),
    Mutant(
        "visible only as far as rays begin",
        "visualization/meshes.py",
        "curriculum.ray_reach / math",
        "curriculum.ray_room / math",
        ("meshes",),
    ),
    Mutant(
        "the clip ball is kept, the rest goes",
        "visualization/meshes.py",
        "(settings.clip_radius - distance) / spacing",
        "(distance - settings.clip_radius) / spacing",
        ("meshes",),
    ),
]

MUTANTS = [*REVIEWED, *CAMERAS, *SAMPLERS, *ROOTS, *COMPOSITING, *LOSSES, *GRAPHS, *AVERAGES, *FIELD, *MESHES]
