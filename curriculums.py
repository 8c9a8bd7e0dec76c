"""The curricula: all settings of a run, as plain dictionaries. To add one, add a dictionary; ``--curriculum NAME`` selects it.

Stages have integer keys: the step at which they begin. The last integer key is the end of the run. A stage sets ``batch_size``
(per process), ``img_size`` (pixels), ``gen_lr``, ``disc_lr`` and ``batch_split`` (number of sub-batches for gradient
accumulation, 1 by default). Below the stages, a curriculum sets the values in which it differs from ``COMMON``.
Angles are radians, except ``fov``. Distances are along the unit ray, in world units. The camera is at distance 1 from the
origin, so the object is around t = 1. ``docs/curriculums.md`` compares all settings of all curricula.
"""

import math

# Values shared by the published runs. The comment after each value describes the setting in docs/curriculums.md.
COMMON = {
    # Cameras and rays
    "fov": 12.0,  # full field of view, degrees
    "ray_start": 0.88,  # t where rays begin
    "ray_end": 1.12,  # t where rays end
    "h_stddev": 0.3,  # yaw: standard deviation, or half width if sample_dist is uniform; no effect if it is None
    "v_stddev": 0.155,  # pitch: the same
    "h_mean": math.pi / 2,  # mean yaw; pi/2 is the front
    "v_mean": math.pi / 2,  # mean pitch; pi/2 is level
    "sample_dist": "gaussian",  # poses: gaussian, uniform, truncated_gaussian, hybrid, spherical_uniform, or None (the mean)
    # Images
    "num_holdout": 0,  # number of held-out images: never used in training; scores are computed against them
    # Networks
    "model": "SPATIALSIRENBASELINE",  # kind of field; also TALLSIREN, EmbeddingPiGAN128, EmbeddingPiGAN256 or TRIPLANE
    "generator": "ImplicitGenerator3d",  # class of the generator; the only choice
    "discriminator": "ProgressiveEncoderDiscriminator",  # kind of discriminator; also ResidualDiscriminator, with disc_widths
    "latent_dim": 256,  # size of the latent z
    "z_dist": "gaussian",  # distribution of z: gaussian, or uniform in [-1, 1]
    "hidden_dim": 256,  # width of the field
    "mapping_dim": None,  # width of the mapping network; None: hidden_dim
    "num_layers": 8,  # FiLM layers before the occupancy output
    "view_dependent": True,  # whether colors depend on the view direction
    "disc_channels": (16, 32, 64, 128, 256, 400, 400, 400, 400),  # channels of the progressive discriminator at 512 to 2 px
    "disc_widths": (48, 64, 96, 128),  # channels of the ResidualDiscriminator at ..., 32, 16, 8, 4 px
    # Networks of the model TRIPLANE, which does not use hidden_dim and num_layers
    "w_dim": 128,  # size of the intermediate latent w
    "backbone_channels": (128, 128, 96, 48, 32),  # channels at 4, 8, ... px; the last resolution is that of the planes
    "plane_channels": 16,  # feature channels of each plane; a multiple of 16
    "plane_extent": 0.0,  # half the side of the cube that the planes cover; 0: as far as the rays reach
    "plane_reduce": "sum",  # reduction of a point's features over the three planes: sum or product
    "decoder_dim": 32,  # width of the decoder's hidden layer; a multiple of 4
    # Rendering
    "pred_occ": True,  # True: occupancy, alpha = sigmoid(logit) (GOF); False: density, a radiance field (pi-GAN)
    "surface_sample": True,  # whether to find the surface on each ray and sample within Delta of it (GOF)
    "hierarchical_sample": True,  # whether to add importance samples where the coarse weights are large (NeRF)
    "num_steps_coarse": 9,  # samples per ray for finding the surface or, without surface_sample, for the image
    "num_steps_surface": 9,  # samples per ray around the surface, with surface_sample
    "num_steps_fine": 6,  # importance samples per ray, with hierarchical_sample
    "tau": 0.5,  # occupancy at the surface, in (0, 1)
    "root_method": "secant",  # method of surface refinement: secant or bisection
    "n_secant_steps": 4,  # iterations of surface refinement
    "interval_max": 0.12,  # initial Delta, the half width of the interval around the surface; at most half of the ray
    "interval_min": 0.03,  # final Delta
    "decay_beta": 1e-5,  # decay of Delta per step: max(interval_min, interval_max * exp(-decay_beta * step))
    "interval_eval": None,  # Delta in images of the trained generator; None: interval_min
    "clamp_mode": "relu",  # activation of the densities of a radiance field: relu or softplus; no effect with pred_occ
    "last_back": False,  # whether the last sample gets the remaining weight, in training
    "eval_last_back": None,  # the same in images of the trained generator; None: True unless white_back or random_back
    "white_back": False,  # whether the remaining weight and the background of transparent photos are white, not black
    "random_back": False,  # whether the background of transparent photos and the remaining weight have random colors in training
    # Losses
    "gan_loss": "non_saturating",  # non_saturating, or relativistic: D compares pairs of real and generated images (R3GAN)
    "r1_lambda": 1.0,  # weight of R1, D's gradient penalty on real images
    "r2_lambda": 0.0,  # weight of R2, the same on generated images
    "r1_interval": 1,  # steps between evaluations of R1 and R2, whose weights are multiplied by it
    "z_lambda": 0.0,  # weight of the latent loss, in both D and G: D regresses z
    "pos_lambda": 15.0,  # weight of the pose loss, in both D and G: D regresses pitch and yaw
    "topk_interval": 2000,  # steps after which the top-k fraction (G learns from the best-scored images only) has fallen by 1%
    "topk_v": 0.6,  # minimum of that fraction, in (0, 1]
    "with_opacprior": True,  # whether to push occupancies toward 0 or 1
    "opacprior_lambda_init": 0.05,  # weight of that prior at step 0, which grows up to tenfold; needs with_opacprior
    "opacprior_growth_rate": 0.5e-5,  # exponential growth of that weight per step; needs with_opacprior
    "with_normal_loss": True,  # whether to smooth the normals at the surface
    "get_normal_with_pred_depth": True,  # published key that has no effect: the surface point is always the root
    "normal_lambda": 0.05,  # weight of the smoothness of normals; needs with_normal_loss
    "h_sample": 0.01,  # distance of the neighbor whose normal is compared; needs with_normal_loss
    # Optimization
    "horizontal_flip": True,  # whether training mirrors half of the images
    "betas": (0.0, 0.9),  # betas of Adam, for both networks
    "weight_decay": 0.0,  # weight decay of Adam, for both networks
    "grad_clip": 1.0,  # maximum norm of each network's gradient
    "augment_target": 0.0,  # target of ADA's r_t, the mean sign of the real scores; 0: never augment D's images
    "share_images": False,  # whether G's step reuses the generated images of D's step
    "lr_warmup_steps": 0,  # steps of the linear warm-up of the learning rates
    "lr_decay": "constant",  # constant, or cosine: the learning rates decay to 0 at the end
    "mapping_lr_factor": 1.0,  # factor on the mapping network's learning rate; for TRIPLANE, in addition to a fixed 0.1
    "unique_lr": True,  # published key that has no effect: True was meant as mapping_lr_factor 0.05, but the factor stayed 1
    "fade_steps": 10000,  # steps over which D's new layer fades in after a change of image size
    # Initial shape
    "init_ball_radius": 0.0,  # radius of the initial ball; 0: none (TRIPLANE: half of the rays' shorter reach from the origin)
    "init_ball_stretch": (1.0, 1.0, 1.0),  # factors on that radius along x (right), y (up), z (front); needs init_ball_radius
    "ball_hold_steps": 0,  # steps until the weight of the loss for leaving the ball is at its lowest; needs init_ball_radius
    "ball_hold_lambda": 0.1,  # weight of that loss at step 0; needs init_ball_radius and ball_hold_steps
    "ball_hold_floor": 0.0,  # lowest weight of that loss, for the rest of the run; needs init_ball_radius
    "hollow_check_interval": 0,  # steps between checks for hollow shapes, which are mirrored if they persist; 0: never
    # Evaluation
    "num_eval_imgs": 8000,  # images in the published evaluation, for reference only; eval_metrics.py takes --num_images
}

# -- Published ---------------------------------------------------------------------------------------------------------
# The published runs start from an early checkpoint that was chosen by hand because its faces bulge outward. Our addition
# hollow_check_interval makes that unnecessary. All other values are as published.

BFM = {
    0: {"batch_size": 16, "img_size": 32, "gen_lr": 5e-5, "disc_lr": 2e-4},
    10_000: {"batch_size": 8, "img_size": 64, "gen_lr": 5e-5, "disc_lr": 2e-4},
    60_000: {"batch_size": 4, "img_size": 128, "gen_lr": 4e-6, "disc_lr": 2e-5, "batch_split": 2},
    80_000: {},
    "dataset": "BFM",
    # Rendering
    "num_steps_surface": 12,
    "num_steps_fine": 3,
    "interval_min": 0.02,
    "decay_beta": 3e-5,
    # Losses
    "opacprior_lambda_init": 0.1,
    "opacprior_growth_rate": 4e-5,
    "normal_lambda": 0.01,
    "h_sample": 1e-3,
    # Initial shape
    "hollow_check_interval": 100,  # not in the paper
}

CelebA = {
    0: {"batch_size": 16, "img_size": 32, "gen_lr": 5e-5, "disc_lr": 2e-4},
    20_000: {"batch_size": 8, "img_size": 64, "gen_lr": 5e-5, "disc_lr": 2e-4},
    160_000: {"batch_size": 4, "img_size": 128, "gen_lr": 4e-6, "disc_lr": 2e-5, "batch_split": 2},
    200_000: {},
    "dataset": "CelebA",
    # Initial shape
    "hollow_check_interval": 100,  # not in the paper
}

CATS = {
    0: {"batch_size": 16, "img_size": 32, "gen_lr": 4e-5, "disc_lr": 2e-4},
    5_000: {"batch_size": 8, "img_size": 64, "gen_lr": 4e-5, "disc_lr": 2e-4},
    30_000: {"batch_size": 4, "img_size": 128, "gen_lr": 4e-6, "disc_lr": 2e-5, "batch_split": 2},
    40_000: {},
    "dataset": "Cats",
    # Cameras and rays
    "ray_start": 0.8,
    "ray_end": 1.2,
    "h_stddev": 0.5,
    "v_stddev": 0.4,
    "sample_dist": "uniform",
    # Rendering
    "interval_max": 0.2,
    "interval_min": 0.1,
    "decay_beta": 2e-5,
    # Losses
    "opacprior_growth_rate": 1e-5,
    # Initial shape
    "hollow_check_interval": 100,  # not in the paper
    # Evaluation
    "num_eval_imgs": 6444,
}

# -- pi-GAN: a radiance field, without a surface -----------------------------------------------------------------------
# The dictionaries of pi-GAN also work unchanged: settings/published.py converts their keys.

PIGAN_CelebA = {
    0: {"batch_size": 56, "img_size": 32, "gen_lr": 6e-5, "disc_lr": 2e-4},
    20_000: {"batch_size": 56, "img_size": 64, "gen_lr": 6e-5, "disc_lr": 2e-4, "batch_split": 2},  # the start step is our choice
    200_000: {},
    "dataset": "CelebA",
    # Rendering
    "pred_occ": False,
    "surface_sample": False,
    "num_steps_coarse": 12,
    "num_steps_surface": 0,
    "num_steps_fine": 12,
    # Losses
    "r1_lambda": 0.2,
    "with_opacprior": False,
    "with_normal_loss": False,
    # Optimization
    "grad_clip": 10.0,
    "unique_lr": False,
}

# Cars, seen from anywhere above the ground. Model, cameras and rays are those of pi-GAN. Other values are similar to pi-GAN's but
# were not compared with its file: stages (steps, batch sizes, learning rates), number of samples, topk, R1 and pose weights.
PIGAN_CARLA = {
    0: {"batch_size": 30, "img_size": 32, "gen_lr": 4e-5, "disc_lr": 4e-4},
    10_000: {"batch_size": 20, "img_size": 64, "gen_lr": 2e-5, "disc_lr": 2e-4, "batch_split": 2},
    55_000: {"batch_size": 10, "img_size": 128, "gen_lr": 1e-5, "disc_lr": 1e-4, "batch_split": 5},
    200_000: {},
    "dataset": "CARLA",
    # Cameras and rays
    "fov": 30.0,
    "ray_start": 0.7,
    "ray_end": 1.3,
    "h_stddev": math.pi,
    "v_stddev": math.pi / 4 * 85 / 90,
    "v_mean": math.pi / 4 * 85 / 90,  # with this v_stddev: from straight above down to almost level
    "sample_dist": "spherical_uniform",
    # Networks
    "model": "TALLSIREN",
    # Rendering
    "pred_occ": False,
    "surface_sample": False,
    "num_steps_coarse": 48,
    "num_steps_surface": 0,
    "num_steps_fine": 48,
    "white_back": True,  # the background of the images is white
    # Losses
    "r1_lambda": 10.0,
    "pos_lambda": 0.0,
    "topk_interval": 1000,
    "topk_v": 1.0,
    "with_opacprior": False,
    "with_normal_loss": False,
    # Optimization
    "horizontal_flip": False,
    "unique_lr": False,
}

# -- Ours: the built-in heads (SYNTH) and cats, for a GPU or, if TINY or TRIPLANE, for two CPU cores --------------------
# pos_lambda, betas and share_images: docs/results.md, "The recipe".

SYNTH = {
    0: {"batch_size": 32, "img_size": 32, "gen_lr": 5e-5, "disc_lr": 2e-4},
    8_000: {"batch_size": 16, "img_size": 64, "gen_lr": 5e-5, "disc_lr": 2e-4},
    30_000: {},
    "dataset": "Heads",
    # Cameras and rays
    "h_stddev": 0.7,
    "v_stddev": 0.25,
    "sample_dist": "uniform",
    # Rendering
    "decay_beta": 1e-4,
    "eval_last_back": False,  # the background of the images is black, like the remaining weight
    # Initial shape
    "init_ball_radius": 0.08,
    "ball_hold_steps": 2000,
    "ball_hold_lambda": 0.3,
    "hollow_check_interval": 100,
    # Evaluation
    "num_eval_imgs": 2048,
}

CATS64 = {
    0: {"batch_size": 32, "img_size": 32, "gen_lr": 5e-5, "disc_lr": 2e-4},
    10_000: {"batch_size": 16, "img_size": 64, "gen_lr": 4e-5, "disc_lr": 2e-4},
    40_000: {},
    "dataset": "Cats",
    # Cameras and rays: poses and interval are narrower than published, for rounder faces and sharper surfaces
    "ray_start": 0.8,
    "ray_end": 1.2,
    "h_stddev": 0.25,
    "v_stddev": 0.18,
    # Networks
    "view_dependent": False,
    # Rendering
    "decay_beta": 1e-4,
    "last_back": True,  # photos fill their frame, so the remaining weight gets the color at the end of the ray, not black
    # Losses
    "gan_loss": "relativistic",  # after 1000 steps, more kinds of cats than the non-saturating loss after 4500 (one seed)
    "r1_lambda": 0.1,
    "r2_lambda": 0.1,  # equal to R1, as in CATS_TINY; not yet tested
    "pos_lambda": 5.0,
    "opacprior_growth_rate": 1e-5,
    # Optimization
    "betas": (0.0, 0.99),
    "share_images": True,
    "fade_steps": 2000,
    # Initial shape
    "init_ball_radius": 0.1,
    "ball_hold_steps": 4000,
    "ball_hold_lambda": 0.3,
    "ball_hold_floor": 0.05,
    "hollow_check_interval": 100,
    # Evaluation
    "num_eval_imgs": 6444,
}

SYNTH_TINY = {
    0: {"batch_size": 16, "img_size": 16, "gen_lr": 4e-4, "disc_lr": 8e-4},
    1_000: {"batch_size": 16, "img_size": 32, "gen_lr": 3e-4, "disc_lr": 6e-4},
    20_000: {},
    "dataset": "Heads",
    # Cameras and rays
    "h_stddev": 0.7,
    "v_stddev": 0.25,
    "sample_dist": "uniform",
    # Networks
    "latent_dim": 64,
    "hidden_dim": 64,
    "num_layers": 4,
    "disc_channels": (4, 8, 16, 24, 32, 48, 64, 64, 64),
    # Rendering
    "num_steps_coarse": 8,
    "num_steps_surface": 5,
    "num_steps_fine": 3,
    "decay_beta": 1e-3,
    "eval_last_back": False,  # as in SYNTH
    # Losses
    "r1_lambda": 0.02,  # small, because images have few pixels
    "pos_lambda": 5.0,
    "topk_interval": 1000,
    "opacprior_lambda_init": 0.1,
    "opacprior_growth_rate": 1.5e-3,
    # Optimization
    "betas": (0.0, 0.99),
    "share_images": True,
    "fade_steps": 100,
    # Initial shape
    "init_ball_radius": 0.08,
    "ball_hold_steps": 1000,
    "ball_hold_lambda": 0.3,
    "hollow_check_interval": 50,
    # Evaluation
    "num_eval_imgs": 512,
}

CATS_TINY = {
    0: {"batch_size": 16, "img_size": 16, "gen_lr": 3e-4, "disc_lr": 6e-4},
    2_000: {"batch_size": 16, "img_size": 32, "gen_lr": 2e-4, "disc_lr": 4e-4},
    4_500: {"batch_size": 16, "img_size": 32, "gen_lr": 5e-5, "disc_lr": 1e-4},  # or cats keep changing color and position
    6_000: {"batch_size": 8, "img_size": 64, "gen_lr": 1e-4, "disc_lr": 2e-4},
    20_000: {},
    "dataset": "Cats",
    # Cameras and rays: as in CATS64
    "ray_start": 0.8,
    "ray_end": 1.2,
    "h_stddev": 0.25,
    "v_stddev": 0.18,
    # Networks
    "latent_dim": 64,
    "hidden_dim": 64,
    "num_layers": 4,
    "view_dependent": False,
    "disc_channels": (4, 8, 16, 24, 32, 48, 64, 64, 64),
    # Rendering
    "num_steps_coarse": 8,
    "num_steps_surface": 5,
    "num_steps_fine": 3,
    "decay_beta": 1e-3,
    "last_back": True,  # as in CATS64
    # Losses
    "gan_loss": "relativistic",  # as in CATS64
    "r1_lambda": 0.02,  # small, because images have few pixels
    "r2_lambda": 0.02,
    "pos_lambda": 5.0,
    "topk_interval": 1000,
    "opacprior_lambda_init": 0.1,
    "opacprior_growth_rate": 1.5e-3,
    "normal_lambda": 0.5,
    # Optimization
    "betas": (0.0, 0.99),
    "share_images": True,
    "fade_steps": 100,
    # Initial shape
    "init_ball_radius": 0.1,
    "ball_hold_steps": 2000,
    "ball_hold_lambda": 0.3,
    "ball_hold_floor": 0.05,  # prevents flat faces: images this small barely show rotation
    "hollow_check_interval": 50,
    # Evaluation
    "num_eval_imgs": 512,
}

CATS_TRIPLANE = {  # on a GPU: --set batch_size=64
    0: {"batch_size": 16, "img_size": 32, "gen_lr": 2e-3, "disc_lr": 3e-4},
    3_200: {"batch_size": 16, "img_size": 64, "gen_lr": 2e-3, "disc_lr": 3e-4},
    26_400: {"batch_size": 16, "img_size": 64, "gen_lr": 5e-4, "disc_lr": 7.5e-5},
    40_000: {},
    "dataset": "Cats",
    # Cameras and rays: as in CATS64
    "ray_start": 0.8,
    "ray_end": 1.2,
    "h_stddev": 0.25,
    "v_stddev": 0.18,
    # Images
    "num_holdout": 800,
    # Networks
    "model": "TRIPLANE",
    "discriminator": "ResidualDiscriminator",
    "latent_dim": 128,
    "view_dependent": False,
    "plane_extent": 0.15,
    # Rendering
    "num_steps_coarse": 12,
    "num_steps_surface": 5,
    "num_steps_fine": 3,
    "decay_beta": 1e-3,
    "interval_eval": 0.009,  # narrower than in training: views agree better, but fd is 3% higher (docs/results.md)
    "last_back": True,  # as in CATS64
    # Losses
    "gan_loss": "relativistic",  # as in CATS64
    "r1_lambda": 0.5,
    "r2_lambda": 0.5,
    "r1_interval": 4,
    "pos_lambda": 5.0,
    "topk_v": 1.0,  # G learns from all of its images
    "opacprior_lambda_init": 0.1,
    "opacprior_growth_rate": 1.5e-3,
    "normal_lambda": 0.5,
    # Optimization
    "betas": (0.0, 0.99),
    "grad_clip": 100.0,  # high enough not to clip the lazy penalties, which apply at four times their weight
    "share_images": True,
    # Initial shape
    "init_ball_radius": 0.1,
    "ball_hold_steps": 2000,
    "ball_hold_lambda": 0.3,
    "ball_hold_floor": 0.05,
    "hollow_check_interval": 100,
    # Evaluation
    "num_eval_imgs": 800,
}

# For a GPU: larger networks than CATS_TRIPLANE, planes of 128 texels. Run from scratch to step 22949 in 8.9 minutes on an H200.
CATS_TRIPLANE_LARGE = {key: value for key, value in CATS_TRIPLANE.items() if not isinstance(key, int)} | {
    0: {"batch_size": 32, "img_size": 32, "gen_lr": 2e-3, "disc_lr": 3e-4},
    2_000: {"batch_size": 32, "img_size": 64, "gen_lr": 2e-3, "disc_lr": 3e-4},
    14_000: {"batch_size": 64, "img_size": 64, "gen_lr": 2e-3, "disc_lr": 3e-4},
    20_500: {"batch_size": 64, "img_size": 64, "gen_lr": 5e-4, "disc_lr": 7.5e-5},
    40_000: {},
    "backbone_channels": (192, 192, 160, 128, 64, 32),
    "disc_widths": (64, 128, 192, 256),
    "normal_lambda": 1.0,
}

SYNTH_TRIPLANE = {
    0: {"batch_size": 16, "img_size": 32, "gen_lr": 2e-3, "disc_lr": 3e-4},
    2_500: {"batch_size": 16, "img_size": 64, "gen_lr": 2e-3, "disc_lr": 3e-4},
    19_400: {"batch_size": 16, "img_size": 64, "gen_lr": 5e-4, "disc_lr": 7.5e-5},
    40_000: {},
    "dataset": "Heads",
    # Cameras and rays: as in SYNTH
    "h_stddev": 0.7,
    "v_stddev": 0.25,
    "sample_dist": "uniform",
    # Networks
    "model": "TRIPLANE",
    "discriminator": "ResidualDiscriminator",
    "latent_dim": 128,
    "view_dependent": False,
    "plane_extent": 0.12,  # as far as the rays reach; texels are 14% coarser than the pixels of a 64 px image
    # Rendering
    "num_steps_coarse": 12,
    "num_steps_surface": 5,
    "num_steps_fine": 3,
    "decay_beta": 1e-3,
    "interval_eval": 0.012,  # narrower than in training: sharper images, and views agree better
    "eval_last_back": False,  # the background of the images is black, like the remaining weight
    "random_back": True,  # on black, solid dark space around a head would be invisible
    # Losses
    "gan_loss": "relativistic",
    "r1_lambda": 0.5,
    "r2_lambda": 0.5,
    "r1_interval": 4,
    "pos_lambda": 5.0,
    "topk_v": 1.0,
    "opacprior_lambda_init": 0.1,
    "opacprior_growth_rate": 1.5e-3,
    "normal_lambda": 2.0,  # with 0.3, faces had vertical grooves
    # Optimization
    "betas": (0.0, 0.99),
    "grad_clip": 100.0,
    "share_images": True,
    # Initial shape
    "init_ball_radius": 0.08,
    "ball_hold_steps": 1000,
    "ball_hold_lambda": 0.3,
    "hollow_check_interval": 100,
    # Evaluation
    "num_eval_imgs": 512,
}

# Heads of 128 px: continues a run of SYNTH_TRIPLANE (--load_dir RUN --set_step 20400) with planes of 128 texels.
SYNTH128_TRIPLANE = SYNTH_TRIPLANE | {
    20_400: {"batch_size": 8, "img_size": 128, "gen_lr": 1.5e-3, "disc_lr": 3e-4},
    22_100: {"batch_size": 8, "img_size": 128, "gen_lr": 5e-4, "disc_lr": 1e-4},
    "backbone_channels": (128, 128, 96, 48, 32, 16),
    "normal_lambda": 1.0,
}
