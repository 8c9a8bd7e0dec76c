"""What a run is made of and how it is saved, resumed, or started from another's weights."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from checkpoints.files import check_state, latest_checkpoint, load_training_checkpoint, save_inference, save_training_checkpoint
from checkpoints.published import load_published_training
from checkpoints.safe_pickle import printable
from common.errors import UserError
from discriminators.build import build_discriminator
from generators.generator import ImplicitGenerator3d
from settings.curriculum import Curriculum
from settings.schedules import ball_hold_weight_at, learning_rates_at
from training.ema import MovingAverage
from training.mirror import mirror_field, mirror_moments, mirror_pose_readout, mirror_readout_moments
from training.outward_start import fit_to_ball
from training.run.nonfinite import BadSteps, are_finite

EMA_DECAYS = {"ema": 0.999, "ema2": 0.9999}
MAPPING_RATE = 0.05
WARMED_UP = 10**6  # updates, after which the warm-up of every average is over
RESUME_KEYS = ("seed", "images_seen", "optimizer_G", "optimizer_D", "scaler_G", "scaler_D")
ADAM_MOMENTS = ("exp_avg", "exp_avg_sq")
EVALUATION_KEYS = ("eval_last_back", "num_eval_imgs")  # may change between a run and its continuation


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
        self.is_fresh = True  # no weights of another run, or of this one's earlier part
        self.images_seen = 0
        self.num_images: int | None = None  # in the data set, as the checkpoint has it
        self.is_held = False  # to the ball that it started from (training/outward_start.py), beyond the curriculum's floor
        self.hollow_looks = 0  # in a row, at which the shapes were hollow (training/hollow.py)
        self.augment_p = torch.zeros((), device=device)  # how often D sees changed images (training/augmentation.py)
        self.attempt = 0  # raised each time the run goes back to a checkpoint; another attempt draws other numbers
        self.bad_steps = BadSteps()
        self.generator = generator.to(device)
        self.discriminator = discriminator.to(device)
        self.averages = {name: MovingAverage(self.generator, decay) for name, decay in EMA_DECAYS.items()}
        self.optimizer_G = _adam(_generator_groups(self.generator), curriculum, device)
        self.optimizer_D = _adam(self.discriminator.parameters(), curriculum, device)
        self.scaler_G, self.scaler_D = (torch.amp.GradScaler(device.type, enabled=amp_dtype == torch.float16) for _ in range(2))

    def start_outward(self) -> None:
        """Fit the fresh generator, and its averages, to the curriculum's ball, which tri-planes are from the beginning."""
        self.is_held = True
        if self.curriculum.model == "TRIPLANE":
            return
        fit_to_ball(self.generator, self.curriculum.init_ball_radius, self.seed)
        for average in self.averages.values():
            average.generator.load_state_dict(self.generator.state_dict())

    def weights(self) -> Iterator[Tensor]:
        """Those of all networks and averages."""
        for network in (self.generator, self.discriminator, *(average.generator for average in self.averages.values())):
            yield from network.state_dict().values()

    @property
    def draw_seed(self) -> int | tuple[int, int]:
        """What the random inputs of a step are drawn from, beside its number."""
        return (self.seed, self.attempt) if self.attempt else self.seed

    def set_learning_rates(self, step: int) -> None:
        """To those of ``step``."""
        gen_lr, disc_lr = learning_rates_at(self.curriculum, step)
        for group in self.optimizer_G.param_groups:
            group["lr"] = gen_lr * group.get("rate", 1.0)
        for group in self.optimizer_D.param_groups:
            group["lr"] = disc_lr

    # -- saving and resuming ---------------------------------------------------------------------------------------

    def save(self, output_dir: Path, world_size: int) -> Path:
        """Write the training checkpoint. Raises WriteError where it cannot be written, what is there before staying whole."""
        path = output_dir / f"checkpoint_{self.step:07d}.pt"
        state = {
            "curriculum": self.curriculum.to_dict(),
            "step": self.step,
            "seed": self.seed,
            "world_size": world_size,
            "images_seen": self.images_seen,
            "num_images": self.num_images,
            "is_held": int(self.is_held and ball_hold_weight_at(self.curriculum, self.step) > self.curriculum.ball_hold_floor),
            "hollow_looks": self.hollow_looks,
            "augment_p": self.augment_p,
            "attempt": self.attempt,
            "bad_steps": asdict(self.bad_steps),
            "generator": self.generator.state_dict(),
            "discriminator": self.discriminator.state_dict(),
            "optimizer_G": _in_order(self.optimizer_G.state_dict()),
            "optimizer_D": _in_order(self.optimizer_D.state_dict()),
            "scaler_G": self.scaler_G.state_dict(),
            "scaler_D": self.scaler_D.state_dict(),
            **{name: average.generator.state_dict() for name, average in self.averages.items()},
            **{f"{name}_num_updates": average.num_updates for name, average in self.averages.items()},
        }
        save_training_checkpoint(path, state)
        return path

    def save_generator(self, output_dir: Path) -> None:
        """Write the inference file: the averaged generator. Raises WriteError."""
        save_inference(output_dir / "generator.safetensors", self.averages["ema"].generator, self.step)

    def first_not_finite(self) -> str | None:
        """A part of the run that holds a NaN or an infinity, in words; None where there is none. Waits for the device."""
        parts = {
            "the generator": self.generator.parameters(),
            "the discriminator": self.discriminator.parameters(),
            **{f"the average {name}": average.generator.parameters() for name, average in self.averages.items()},
            "optimizer_G": _moments(self.optimizer_G),
            "optimizer_D": _moments(self.optimizer_D),
        }
        return next((name for name, tensors in parts.items() if not are_finite(tensors)), None)

    def num_bytes(self) -> int:
        """About what a checkpoint takes on the disk: weights, moments, averages."""
        size_G, size_D = (
            sum(p.numel() * p.element_size() for p in network.parameters()) for network in (self.generator, self.discriminator)
        )
        return (3 + len(self.averages)) * size_G + 3 * size_D

    def resume(self, path: Path, world_size: int) -> list[str]:
        """Go on where ``path`` stood. Returns the names of settings that differ, but had no say in its steps.

        Raises UserError where one that had a say differs, naming the first.
        """
        state = load_training_checkpoint(path)
        for key in RESUME_KEYS:
            if key not in state:
                raise UserError(f"{path} lacks {key}, so the run cannot go on from it; use --load_dir to start from its weights")
        step, their_curriculum = _count(path, state, "step"), Curriculum.from_dict(state["curriculum"])
        theirs, ours = (_lived_through(curriculum, step) for curriculum in (their_curriculum, self.curriculum))
        differing = [key for key in ours if key in theirs and theirs[key] != ours[key]]
        if differing:
            name, was, asked = _first_difference(differing[0], theirs[differing[0]], ours[differing[0]])
            others = f" (others differ too: {', '.join(differing[1:])})" if differing[1:] else ""
            record = path.parent / "run.json"
            own = f"go on with its own (--curriculum {record})," if record.is_file() else "use its settings,"
            ahead = f"; only stages from step {step} on may change" if differing[0] == "stages" else ""
            raise UserError(
                f"{path} was trained with {name} = {was!r}, this run asks for {asked!r}{others}{ahead}; {own}"
                " choose another --output_dir, or --load_dir to start a new run from its weights"
            )
        if _count(path, state, "seed") != self.seed:
            raise UserError(f"{path} was trained with --seed {state['seed']}, this run asks for {self.seed}; use the same seed")
        _check_world_size(path, _count(path, state, "world_size") or None, world_size, state["step"], self.curriculum)
        self.step = state["step"]
        self.images_seen = _count(path, state, "images_seen")
        self.num_images = _count(path, state, "num_images") or None
        self.is_held = bool(_count(path, state, "is_held"))
        self.hollow_looks = _count(path, state, "hollow_looks")
        self.augment_p = _share(path, state, "augment_p").to(self.device)
        self.attempt = _count(path, state, "attempt")
        self.bad_steps = _bad_steps(path, state.get("bad_steps"))
        self._load_networks(path, state)
        for name in ("optimizer_G", "optimizer_D"):
            if not _load_optimizer(getattr(self, name), state[name]):
                raise UserError(f"{path}: its {name} does not fit its network; use --load_dir to start from its weights")
        for scaler, name in ((self.scaler_G, "scaler_G"), (self.scaler_D, "scaler_D")):
            if scaler.is_enabled() and state[name] != {}:  # a run in another precision has none
                try:
                    scaler.load_state_dict(state[name])
                except (KeyError, TypeError, ValueError, RuntimeError):
                    raise UserError(f"{path}: its {name} is not as it was written; use --load_dir instead") from None
        self.set_learning_rates(max(self.step - 1, 0))  # so that saved again without a step it is the same file
        before = their_curriculum.to_dict()
        return [key for key, value in self.curriculum.to_dict().items() if before.get(key) != value]

    def start_from(self, folder: Path, notes: list[str]) -> None:
        """Take weights, averages and (where they fit) optimizers from another run's folder, ours or a published one.

        The step stays as it is. Raises UserError where the networks' shapes differ.
        """
        newest = latest_checkpoint(folder) if folder.is_dir() else folder
        if newest is not None:
            state = load_training_checkpoint(newest)
            notes.append(f"starting from {newest} (its step {state['step']})")
            self.is_held = bool(_count(newest, state, "is_held"))  # a shape is not to be pressed into a ball again
            self.augment_p = _share(newest, state, "augment_p").to(self.device)
        else:
            state, published_notes = _published_state(folder)
            notes += [f"starting from the published files in {folder}", *published_notes]
        self._load_networks(newest or folder, state)
        for name, optimizer in (("optimizer_G", self.optimizer_G), ("optimizer_D", self.optimizer_D)):
            if state.get(name) is not None and not _load_optimizer(optimizer, state[name]):
                notes.append(f"{name} does not fit this run's parameters; it starts afresh")

    def mirror_depth(self, invert: bool) -> None:
        """Turn a hollow shape outward (training/mirror.py), with Adam's first moments."""
        mirror_pose_readout(self.discriminator, self.curriculum)
        mirror_readout_moments(self.discriminator, self.optimizer_D)
        mirror_moments(self.generator, self.optimizer_G, invert)
        for generator in (self.generator, *(average.generator for average in self.averages.values())):
            mirror_field(generator, invert)

    def _load_networks(self, path: Path, state: dict[str, Any]) -> None:
        self.is_fresh = False
        _load_weights(self.generator, state["generator"], path, "generator")
        if state.get("discriminator") is not None:
            _load_weights(self.discriminator, state["discriminator"], path, "discriminator")
        for name, average in self.averages.items():
            source = next(key for key in (name, "ema", "generator") if state.get(key) is not None)
            _load_weights(average.generator, state[source], path, name)
            average.generator.truncation_mean = None
            average.num_updates = _count(path, state, f"{source}_num_updates")


def _first_difference(name: str, theirs: Any, ours: Any) -> tuple[str, Any, Any]:
    """Where two settings differ, as deep as their lists and dictionaries correspond: a name, and both values there."""
    if isinstance(theirs, list) and isinstance(ours, list):  # a surplus one differs from None
        pairs = [(f"{name}[{i}]", *both) for i, both in enumerate(itertools.zip_longest(theirs, ours))]
    elif isinstance(theirs, dict) and isinstance(ours, dict) and theirs.keys() == ours.keys():
        pairs = [(f"{name}.{key}", theirs[key], ours[key]) for key in ours]
    else:
        return name, theirs, ours
    return next(_first_difference(*pair) for pair in pairs if pair[1] != pair[2])


def _check_world_size(path: Path, theirs: int | None, ours: int, step: int, curriculum: Curriculum) -> None:
    """The batch is per process, so another number of them is another batch: another run. Old files do not say theirs."""
    if theirs not in (None, ours):
        size = curriculum.stage_at(max(step - 1, 0)).batch_size
        raise UserError(
            f"{path} was trained by {theirs} process(es), {theirs} x {size} images a step; this run has {ours}, {ours} x {size}:"
            f" start {theirs} (torchrun --nproc_per_node), or a new run from its weights (--load_dir, another --output_dir)"
        )


def _lived_through(curriculum: Curriculum, step: int) -> dict[str, Any]:
    """The settings that had a say in a run's first ``step`` steps: those of later ones may change when it goes on."""
    settings = {key: value for key, value in curriculum.to_dict().items() if key not in EVALUATION_KEYS}
    settings["stages"] = [stage for stage in settings["stages"] if stage["start_step"] < max(step, 1)]
    if curriculum.lr_decay == "constant":
        del settings["end_step"]
    return settings


def _count(path: Path, state: dict[str, Any], key: str) -> int:
    value = state.get(key)
    if value is not None and (type(value) is not int or value < 0):
        raise UserError(f"{path}: its {key} is not a whole number")
    return value or 0


def _share(path: Path, state: dict[str, Any], key: str) -> Tensor:
    """A number () in [0, 1]; 0 in a file from before it was kept."""
    value = state.get(key, torch.zeros(()))
    if not isinstance(value, Tensor) or value.shape != () or not 0 <= float(value) <= 1:
        raise UserError(f"{path}: its {key} is not a number in [0, 1]")
    return value.detach().float().clone()


def _bad_steps(path: Path, state: Any) -> BadSteps:
    """As saved; none in a file from before they were counted."""
    if state is None:
        return BadSteps()
    expected = {field.name: type(field.default) for field in fields(BadSteps)}
    if not isinstance(state, dict) or {key: type(value) for key, value in state.items()} != expected:
        raise UserError(f"{path}: its bad_steps are not as they were written")
    return BadSteps(**state)


def _in_order(state: dict[str, Any]) -> dict[str, Any]:
    """An optimizer's state with its keys sorted: they come in the order in which parameters first met a step."""
    return {**state, "state": {place: dict(sorted(moments.items())) for place, moments in sorted(state["state"].items())}}


def _moments(optimizer: torch.optim.Adam) -> list[Tensor]:
    found = [state[name] for state in optimizer.state.values() for name in ADAM_MOMENTS if name in state]
    return found or [torch.zeros(())]


def _adam(parameters: Any, curriculum: Curriculum, device: torch.device) -> torch.optim.Adam:
    return torch.optim.Adam(
        parameters, lr=1e-4, betas=curriculum.betas, weight_decay=curriculum.weight_decay, fused=device.type == "cuda"
    )


def _generator_groups(generator: ImplicitGenerator3d) -> list[dict[str, Any]]:
    """One group, or the mapping network apart at a reduced rate where ``unique_lr`` is off."""
    if generator.curriculum.unique_lr:
        return [{"params": list(generator.parameters())}]
    mapping = list(generator.network.mapping_network.parameters())
    known = {id(parameter) for parameter in mapping}
    rest = [parameter for parameter in generator.parameters() if id(parameter) not in known]
    return [{"params": rest}, {"params": mapping, "rate": MAPPING_RATE}]


def _load_weights(network: nn.Module, weights: dict[str, Tensor], path: Path, what: str) -> None:
    own, weights = network.state_dict(), check_state(path, what, weights)
    for name, value in own.items():
        if name not in weights:
            raise UserError(f"{path}: its {what} lacks {name}; it belongs to another model")
        if weights[name].shape != value.shape:
            raise UserError(
                f"{path}: its {what}'s {name} is {tuple(weights[name].shape)}, this curriculum needs {tuple(value.shape)}"
            )
    unknown = [name for name in weights if name not in own]
    if unknown:
        raise UserError(f"{path}: its {what} has {printable(unknown[0])}, which this curriculum's model does not")
    network.load_state_dict(weights)


def _published_state(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """A published run's files in the shape of a training checkpoint of ours, and what was missing, in words."""
    found = load_published_training(folder)
    state: dict[str, Any] = {"generator": found.generator.state, "discriminator": found.discriminator}
    for name in EMA_DECAYS:
        average = getattr(found, name)
        state[name] = average.state if average else None
        # an average that does not say how often it was updated is a finished one: its warm-up is over
        state[f"{name}_num_updates"] = (average.num_updates if average.num_updates is not None else WARMED_UP) if average else 0
    state["optimizer_G"], state["optimizer_D"] = found.optimizer_G, found.optimizer_D
    return state, found.notes


def _load_optimizer(optimizer: torch.optim.Adam, state: Any) -> bool:
    """Take the moments of ``state`` if they have the shapes of the optimizer's parameters; tell whether it was done.

    Rates, betas and the like stay this run's own. Moments of parameters beyond ours are left out: the published
    discriminator ends with a head that nothing uses.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    try:
        indices = [index for group in state["param_groups"] for index in group["params"]][: len(parameters)]
        moments = {place: state["state"][index] for place, index in enumerate(indices) if index in state["state"]}
        fits = len(indices) == len(parameters) and all(
            moment[name].shape == parameters[place].shape for place, moment in moments.items() for name in ADAM_MOMENTS
        )
        moments = {
            place: {**{name: moment[name] for name in ADAM_MOMENTS}, "step": torch.tensor(float(moment["step"]))}
            for place, moment in moments.items()
        }
    except (KeyError, TypeError, AttributeError, IndexError, ValueError, RuntimeError):  # it may hold anything
        return False
    if fits:
        optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
    return fits
