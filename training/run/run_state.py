"""The state of a run: networks, averages, optimizers and counters; saving, resuming, starting from other weights."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from checkpoints.files import check_state, load_training_checkpoint, save_inference, save_training_checkpoint
from checkpoints.safe_pickle import printable
from checkpoints.starting_points import load_starting_point
from common.errors import UserError
from discriminators.build import build_discriminator
from generators.generator import ImplicitGenerator3d
from settings.checks import WITHOUT_EFFECT
from settings.curriculum import Curriculum
from settings.schedules import ball_hold_weight_at, learning_rates_at
from training.ema import MovingAverage
from training.mirror import mirror_field, mirror_moments, mirror_pose_readout, mirror_readout_moments
from training.outward_start import Ball, fit_to_ball
from training.run.nonfinite import BadSteps, are_finite
from triplane.growth import grow_planes

EMA_DECAYS = {"ema": 0.999, "ema2": 0.9999}
RESUME_KEYS = ("seed", "images_seen", "optimizer_G", "optimizer_D", "scaler_G", "scaler_D")
ADAM_MOMENTS = ("exp_avg", "exp_avg_sq")
FREE_KEYS = ("eval_last_back", "interval_eval", *WITHOUT_EFFECT)  # may differ when a run is resumed


class RunState:
    """Networks, averages and optimizers of a run at ``step``, on one device."""

    def __init__(self, curriculum: Curriculum, seed: int, device: torch.device, amp_dtype: torch.dtype | None) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            generator = ImplicitGenerator3d(curriculum)
            discriminator = build_discriminator(curriculum)
        self.curriculum = curriculum
        self.seed = seed
        self.device = device
        self.step = 0
        self.is_fresh = True  # no weights have been loaded from a checkpoint
        self.images_seen = 0
        self.num_images: int | None = None  # in the data set, as recorded in the checkpoint
        self.is_held = False  # held to its initial ball by more than the curriculum's floor (training/outward_start.py)
        self.hollow_looks = 0  # consecutive checks in which the shapes were hollow (training/hollow.py)
        self.augment_p = torch.zeros((), device=device)  # probability of augmentation (training/augmentation.py)
        self.attempt = 0  # number of recoveries; each draws different random numbers
        self.bad_steps = BadSteps()
        self.amp_dtype = amp_dtype
        self.generator = generator.to(device)
        self.discriminator = discriminator.to(device)
        self.averages = {name: MovingAverage(self.generator, decay) for name, decay in EMA_DECAYS.items()}
        self.optimizer_G = _adam(_generator_groups(self.generator), curriculum, device)
        self.optimizer_D = _adam(self.discriminator.parameters(), curriculum, device)
        self.scaler_G, self.scaler_D = (torch.amp.GradScaler(device.type, enabled=amp_dtype == torch.float16) for _ in range(2))

    def start_outward(self) -> None:
        """Fit a new generator and its averages to the curriculum's ball. Tri-planes are initialized as a ball already."""
        self.is_held = True
        if not self.curriculum.is_siren:
            return
        fit_to_ball(self.generator, Ball.of(self.curriculum), self.seed)
        for average in self.averages.values():
            average.generator.load_state_dict(self.generator.state_dict())

    def weights(self) -> Iterator[Tensor]:
        """The tensors of all networks and averages."""
        for network in self._networks.values():
            yield from network.state_dict().values()

    @property
    def draw_seed(self) -> int | tuple[int, int]:
        """The seed of a step's random inputs, used together with the step number."""
        return (self.seed, self.attempt) if self.attempt else self.seed

    def set_learning_rates(self, step: int) -> None:
        """Set the optimizers' learning rates to those of ``step``."""
        gen_lr, disc_lr = learning_rates_at(self.curriculum, step)
        for group in self.optimizer_G.param_groups:
            group["lr"] = gen_lr * group.get("rate", 1.0)
        for group in self.optimizer_D.param_groups:
            group["lr"] = disc_lr

    # -- saving and resuming ---------------------------------------------------------------------------------------

    def save(self, output_dir: Path, world_size: int) -> Path:
        """Write the training checkpoint and return its path. Raises WriteError, and then leaves an existing file intact."""
        path = output_dir / f"checkpoint_{self.step:07d}.pt"
        is_held = self.is_held and ball_hold_weight_at(self.curriculum, self.step) > self.curriculum.ball_hold_floor
        state = {
            "curriculum": self.curriculum.to_dict(),
            "step": self.step,
            "seed": self.seed,
            "world_size": world_size,
            "images_seen": self.images_seen,
            "num_images": self.num_images,
            "is_held": int(is_held),
            "hollow_looks": self.hollow_looks,
            "augment_p": self.augment_p,
            "attempt": self.attempt,
            "bad_steps": asdict(self.bad_steps),
            "generator": self.generator.state_dict(),
            "discriminator": self.discriminator.state_dict(),
        }
        state |= {name: _sorted_state(optimizer.state_dict()) for name, optimizer in self._optimizers.items()}
        state |= {name: scaler.state_dict() for name, scaler in self._scalers.items()}
        state |= {name: average.generator.state_dict() for name, average in self.averages.items()}
        state |= {f"{name}_num_updates": average.num_updates for name, average in self.averages.items()}
        save_training_checkpoint(path, state)
        return path

    def save_generator(self, output_dir: Path) -> None:
        """Write the inference file: the averaged generator. Raises WriteError."""
        save_inference(output_dir / "generator.safetensors", self.averages["ema"].generator, self.step)

    def first_not_finite(self) -> str | None:
        """Name the first part of the state that contains NaN or infinity, or None. Synchronizes with the device."""
        networks = {name: list(network.parameters()) for name, network in self._networks.items()}
        parts = networks | {name: _moments(optimizer) for name, optimizer in self._optimizers.items()}
        return next((f"the {name}" for name, tensors in parts.items() if tensors and not are_finite(tensors)), None)

    def num_bytes(self) -> int:
        """The approximate size of a checkpoint: weights, moments, averages."""
        sizes = {name: sum(p.numel() * p.element_size() for p in net.parameters()) for name, net in self._networks.items()}
        return sum(sizes.values()) + 2 * (sizes["generator"] + sizes["discriminator"])

    def resume(self, path: Path, world_size: int) -> list[str]:
        """Resume from the checkpoint ``path``. Returns the names of changed settings that did not affect its steps.

        Raises UserError, naming the first, if a setting that did affect its steps differs.
        """
        state = load_training_checkpoint(path)
        missing = [key for key in RESUME_KEYS if key not in state]
        if missing:
            raise UserError(
                f"{path} lacks {missing[0]}, so a run cannot resume from it; use --load_dir to start from its weights"
            )
        saved_curriculum = Curriculum.from_dict(state["curriculum"])
        self._check_same_run(path, state, saved_curriculum, world_size)
        self.step = state["step"]
        self.images_seen = _count(path, state, "images_seen")
        self.hollow_looks = _count(path, state, "hollow_looks")
        self.attempt = _count(path, state, "attempt")
        self.num_images = _count(path, state, "num_images") or None
        self.bad_steps = _bad_steps(path, state.get("bad_steps"))
        self._load_weights(path, state)
        for name, optimizer in self._optimizers.items():
            if not _load_optimizer(optimizer, state[name]):
                raise UserError(f"{path}: {name} does not match the network; use --load_dir to start from its weights")
        for name, scaler in self._scalers.items():
            if scaler.is_enabled() and state[name] != {}:  # empty if saved at another precision
                try:
                    scaler.load_state_dict(state[name])
                except (KeyError, TypeError, ValueError, RuntimeError):
                    raise UserError(f"{path}: {name} is invalid; use --load_dir to start from its weights") from None
        self.set_learning_rates(max(self.step - 1, 0))  # saving again without a step must give the same file
        before = saved_curriculum.to_dict()
        return [key for key, value in self.curriculum.to_dict().items() if before.get(key) != value]

    def _check_same_run(self, path: Path, state: dict[str, Any], curriculum: Curriculum, world_size: int) -> None:
        """Raise UserError if a setting, the seed or the number of processes of ``state`` differs from this run's.

        The batch size is per process, so the number of processes changes the global batch. Old files do not record it.
        """
        step = state["step"]
        saved, current = (_settings_until(c, step) for c in (curriculum, self.curriculum))
        differing = [key for key in current if key in saved and saved[key] != current[key]]
        if differing:
            name, was, wanted = _first_difference(differing[0], saved[differing[0]], current[differing[0]])
            others = f" (also different: {', '.join(differing[1:])})" if differing[1:] else ""
            record = path.parent / "run.json"
            own = f"use its own settings (--curriculum {record})," if record.is_file() else "use its settings,"
            ahead = f"; only stages from step {step} on may change" if differing[0] == "stages" else ""
            raise UserError(
                f"{path} was trained with {name} = {was!r}, but this run has {wanted!r}{others}{ahead}; {own}"
                " choose another --output_dir, or use --load_dir to start a new run from its weights"
            )
        if _count(path, state, "seed") != self.seed:
            raise UserError(f"{path} was trained with --seed {state['seed']}, but this run has {self.seed}; use the same seed")
        num = _count(path, state, "world_size")
        if num not in (0, world_size):
            size = self.curriculum.stage_at(max(step - 1, 0)).batch_size
            raise UserError(
                f"{path} was trained by {num} process(es), {num} x {size} images per step, but this run has {world_size},"
                f" {world_size} x {size}; start {num} (torchrun --nproc_per_node), or start a new run from its weights"
                " (--load_dir, another --output_dir)"
            )

    def start_from(self, source: Path, notes: list[str]) -> None:
        """Load weights, averages and, if they match, optimizers of another run, or only a generator (load_starting_point).

        The step is unchanged. Raises UserError if the networks' shapes differ.
        """
        state = load_starting_point(source, notes)
        larger = self.generator.state_dict()
        networks = [state[name] for name in ("generator", *self.averages) if isinstance(state.get(name), dict)]
        are_grown = [grow_planes(weights, larger) for weights in networks]
        if any(are_grown):
            notes.append("the planes get a higher resolution; their new layers add nothing to them at first")
        self._load_weights(source, state)
        for name, optimizer in self._optimizers.items():
            if state.get(name) is not None and not _load_optimizer(optimizer, state[name]):
                notes.append(f"{name} does not match this run's parameters; it starts from scratch")

    def mirror_depth(self, invert: bool) -> None:
        """Mirror the networks and Adam's moments in depth, to turn a hollow shape outward (training/mirror.py)."""
        mirror_pose_readout(self.discriminator, self.curriculum)
        mirror_readout_moments(self.discriminator, self.optimizer_D)
        mirror_moments(self.generator, self.optimizer_G, invert)
        for generator in (self.generator, *(average.generator for average in self.averages.values())):
            mirror_field(generator, invert)

    @property
    def _networks(self) -> dict[str, nn.Module]:
        averages = {name: average.generator for name, average in self.averages.items()}
        return {"generator": self.generator, "discriminator": self.discriminator, **averages}

    @property
    def _optimizers(self) -> dict[str, torch.optim.Adam]:
        return {"optimizer_G": self.optimizer_G, "optimizer_D": self.optimizer_D}

    @property
    def _scalers(self) -> dict[str, torch.amp.GradScaler]:
        return {"scaler_G": self.scaler_G, "scaler_D": self.scaler_D}

    def _load_weights(self, path: Path, state: dict[str, Any]) -> None:
        """Load networks, averages, ``augment_p`` and ``is_held``, so that a later shape is not pulled back to the ball.

        A missing average starts from ``ema`` or else from the generator. A missing discriminator stays new.
        """
        self.is_fresh = False
        self.is_held = bool(_count(path, state, "is_held"))
        self.augment_p = _probability(path, state, "augment_p").to(self.device)
        _load_network(self.generator, state["generator"], path, "generator")
        if state.get("discriminator") is not None:
            _load_network(self.discriminator, state["discriminator"], path, "discriminator")
        for name, average in self.averages.items():
            source = next(key for key in (name, "ema", "generator") if state.get(key) is not None)
            _load_network(average.generator, state[source], path, name)
            average.generator.truncation_mean = None
            average.num_updates = _count(path, state, f"{source}_num_updates")


def _first_difference(name: str, saved: Any, current: Any) -> tuple[str, Any, Any]:
    """Return the name of the innermost setting that differs, and both values."""
    if isinstance(saved, list) and isinstance(current, list):  # a missing element counts as None
        pairs = [(f"{name}[{i}]", *both) for i, both in enumerate(itertools.zip_longest(saved, current))]
    elif isinstance(saved, dict) and isinstance(current, dict) and saved.keys() == current.keys():
        pairs = [(f"{name}.{key}", saved[key], current[key]) for key in current]
    else:
        return name, saved, current
    return next(_first_difference(*pair) for pair in pairs if pair[1] != pair[2])


def _settings_until(curriculum: Curriculum, step: int) -> dict[str, Any]:
    """Return the settings that affected a run's first ``step`` steps. Later stages may change when a run is resumed."""
    settings = {key: value for key, value in curriculum.to_dict().items() if key not in FREE_KEYS}
    settings["stages"] = [stage for stage in settings["stages"] if stage["start_step"] < max(step, 1)]
    if curriculum.lr_decay == "constant":
        del settings["end_step"]
    return settings


def _count(path: Path, state: dict[str, Any], key: str) -> int:
    value = state.get(key)
    if value is not None and (type(value) is not int or value < 0):
        raise UserError(f"{path}: {key} is not a non-negative integer; the file is damaged")
    return value or 0


def _probability(path: Path, state: dict[str, Any], key: str) -> Tensor:
    """Return a saved number () in [0, 1], or 0 for older files without it. Raises UserError."""
    value = state.get(key, torch.zeros(()))
    if not isinstance(value, Tensor) or value.shape != () or not 0 <= float(value) <= 1:
        raise UserError(f"{path}: {key} is not a number in [0, 1]; the file is damaged")
    return value.detach().float().clone()


def _bad_steps(path: Path, state: Any) -> BadSteps:
    """Return the saved counts, or zeros for older files without them. Raises UserError."""
    known = asdict(BadSteps())
    state = known if state is None else state
    if not isinstance(state, dict) or {k: type(v) for k, v in state.items()} != {k: type(v) for k, v in known.items()}:
        raise UserError(f"{path}: bad_steps is invalid; the file is damaged")
    return BadSteps(**state)


def _sorted_state(state: dict[str, Any]) -> dict[str, Any]:
    """Sort the keys of an optimizer's state, whose order depends on when parameters first got a gradient."""
    return {**state, "state": {index: dict(sorted(moments.items())) for index, moments in sorted(state["state"].items())}}


def _moments(optimizer: torch.optim.Adam) -> list[Tensor]:
    return [state[name] for state in optimizer.state.values() for name in ADAM_MOMENTS if name in state]


def _adam(parameters: Any, curriculum: Curriculum, device: torch.device) -> torch.optim.Adam:
    return torch.optim.Adam(
        parameters, lr=1e-4, betas=curriculum.betas, weight_decay=curriculum.weight_decay, fused=device.type == "cuda"
    )


def _generator_groups(generator: ImplicitGenerator3d) -> list[dict[str, Any]]:
    """Return one parameter group, or two if the mapping network has its own learning rate (``mapping_lr_factor``)."""
    factor = generator.curriculum.mapping_lr_factor
    if factor == 1:
        return [{"params": list(generator.parameters())}]
    mapping = list(generator.network.mapping_network.parameters())
    mapping_ids = {id(parameter) for parameter in mapping}
    rest = [parameter for parameter in generator.parameters() if id(parameter) not in mapping_ids]
    return [{"params": rest}, {"params": mapping, "rate": factor}]


def _load_network(network: nn.Module, weights: Any, path: Path, what: str) -> None:
    """Load ``weights``. Raises UserError, naming the first parameter whose shape does not match."""
    weights = check_state(path, what, weights)
    current, saved = ({name: tuple(value.shape) for name, value in part.items()} for part in (network.state_dict(), weights))
    for name in [*current, *saved]:
        if current.get(name) != saved.get(name):
            found, needed = (shapes.get(name, "missing") for shapes in (saved, current))
            raise UserError(
                f"{path}: {printable(name)} of its {what} is {found}, but this curriculum's model needs {needed};"
                " use the curriculum of that run"
            )
    network.load_state_dict(weights)


def _load_optimizer(optimizer: torch.optim.Adam, state: Any) -> bool:
    """Load the moments of ``state`` if they match the optimizer's parameters. Returns whether they match.

    Learning rates and betas are not loaded. Moments of surplus parameters are ignored, because the published discriminator
    has an unused head at its end.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    try:
        indices = [index for group in state["param_groups"] for index in group["params"]][: len(parameters)]
        moments = {i: state["state"][index] for i, index in enumerate(indices) if index in state["state"]}
        fits = len(indices) == len(parameters) and all(
            moment[name].shape == parameters[i].shape for i, moment in moments.items() for name in ADAM_MOMENTS
        )
        moments = {
            i: {**{name: moment[name] for name in ADAM_MOMENTS}, "step": torch.tensor(float(moment["step"]))}
            for i, moment in moments.items()
        }
    except (KeyError, TypeError, AttributeError, IndexError, ValueError, RuntimeError):  # an untrusted file
        return False
    if fits:
        optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
    return fits
