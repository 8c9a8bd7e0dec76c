"""The training loop: read :meth:`Trainer.run`, then :meth:`Trainer._step`."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from common.errors import UserError
from distributed.collectives import all_or_none
from distributed.processes import Processes
from settings import schedules
from settings.curriculum import Curriculum, Stage
from training.augmentation import GENERATED, adapted
from training.batches import StageBatches
from training.evaluation import EvaluationOptions, Evaluator
from training.hollow import MIN_TURN_PSNR_DB, PATIENCE, measure_bulge
from training.inputs import draw_inputs
from training.losses import topk_image_weights
from training.mirror import best_turn
from training.run.checkpoint_manager import Keeper
from training.run.nonfinite import BadSteps, Diverged, Guard, are_finite, nan_unless_finite, step_if_finite
from training.run.recorder import Recorder
from training.run.recovery import Setbacks
from training.run.run_state import RunState
from training.steps import (
    Generated,
    GeneratorInputs,
    StepSettings,
    augmented,
    discriminator_losses,
    generate,
    generator_losses,
)

# SIGUSR1: what Slurm can send before the time is up; SIGHUP: the terminal closed
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
CHECK_STOP_EVERY = 10  # steps, where several GPUs must agree and would wait for each other
LAUNCHER_ECHO = 2.0  # seconds within which torchrun passes on a signal that its processes got themselves


@dataclass(frozen=True)
class RunOptions:
    """What the command line decides; the curriculum decides the rest. None: no limit; intervals of 0: never."""

    output_dir: Path
    dataset_path: str
    dataset_preset: str
    max_steps: int | None = None
    max_minutes: float | None = None
    num_epochs: int | None = None
    sample_interval: int = 500
    save_interval: int = 1000
    milestone_interval: int = 10_000
    num_kept: int = 3
    max_bad_steps: int = 20
    eval_interval: int = 0
    eval_images: int = 0
    eval_weights: Path | None = None
    log_interval: int = 20
    use_tensorboard: bool = True
    use_cache: bool = True
    started: float = field(default_factory=time.monotonic)


class Trainer:
    """Trains ``state`` until the curriculum ends, a limit is reached, or a signal asks to stop."""

    def __init__(self, state: RunState, options: RunOptions, processes: Processes, amp_dtype: torch.dtype | None = None) -> None:
        self.state = state
        self.curriculum: Curriculum = state.curriculum
        self.options = options
        self.processes = processes
        self.amp_dtype = amp_dtype
        self.guard = Guard(processes.device, state.bad_steps)
        self.keeper = Keeper(
            *(state, options.output_dir, options.save_interval, options.milestone_interval, options.num_kept),
            processes.world_size,
        )
        where = (options.dataset_path, options.dataset_preset, options.eval_images, options.eval_weights, options.use_cache)
        self.evaluator = Evaluator(EvaluationOptions(*where), processes)
        past_after = max(options.save_interval, 10 * options.max_bad_steps)
        self.setbacks = Setbacks(self.curriculum, options.output_dir, processes, past_after)
        self._batches: StageBatches | None = None
        self._signal: int | None = None
        self._signal_time = 0.0

    def run(self, recorder: Recorder | None) -> str:
        """Train; returns why it stopped, in words. A checkpoint of the last step is written before.

        Raises NotSaved where that one could not be, Diverged where the numbers are beyond repair, and UserError where the
        images are gone (after a checkpoint).
        """
        first_step = self.state.step
        with self._handled_signals():
            try:
                while (reason := self._why_stop(first_step)) is None:
                    stage, real = self._next_batch(recorder)
                    scalars = self._step(real, stage)
                    self.state.step += 1
                    self.state.images_seen += stage.batch_size * self.processes.world_size
                    if self._is_sound(recorder):
                        self._turn_outward(recorder, stage)
                        self._record(recorder, scalars, stage)
                self._save_last(recorder)  # first: whoever asked to stop may not wait for an image
                if recorder is not None:
                    self._sample(recorder)
            finally:
                if self._batches is not None:
                    self._batches.close()
        return reason

    def open_images(self, is_under_way: bool = False) -> None:
        """Read the images of the stage where the run stands; ``run`` does it where it was not done."""
        c, options, state = self.curriculum, self.options, self.state
        if state.step < c.end_step:
            where = (options.dataset_path, options.dataset_preset, options.use_cache)
            self._batches = StageBatches(*where, c.stage_at(state.step), state, self.processes, is_under_way)

    def _next_batch(self, recorder: Recorder | None) -> tuple[Stage, Tensor]:
        """The stage, its learning rates set, and its next batch."""
        stage, is_first = self.curriculum.stage_at(self.state.step), self._batches is None
        try:
            if is_first or self._batches.stage is not stage:
                if self._batches is not None:
                    self._batches.close()
                self.open_images(is_under_way=not is_first)
            real = self._batches.next()
        except UserError:
            if not is_first:  # the state stands between two steps, and is worth keeping
                self._save_last(recorder)
            raise
        self.state.set_learning_rates(self.state.step)
        return stage, real

    @property
    def stopped_by_signal(self) -> int | None:
        return self._signal

    # -- one step --------------------------------------------------------------------------------------------------

    def _step(self, real: Tensor, stage: Stage) -> dict[str, Tensor]:
        """One step of D, then one of G, on ``real`` (B, 3, H, W). Returns scalars for the log, on the device."""
        c, state, num_parts = self.curriculum, self.state, stage.batch_split
        settings = self._settings()
        inputs_G = self._draw_inputs(settings, stage, "G")
        inputs_D = inputs_G if c.share_images else self._draw_inputs(settings, stage, "D")
        # Shared images are generated once, and their graph waits for G while D learns. Those of a batch in parts are
        # generated twice all the same: D learns from all parts before it judges the first.
        shared = generate(state.generator, inputs_G, settings) if c.share_images and num_parts == 1 else None
        terms_D = self._train_discriminator(real, inputs_D, settings, num_parts, shared)
        terms_G = self._train_generator(real, inputs_G, settings, num_parts, shared)
        if c.augment_target:
            sureness = self.processes.mean({"sureness": terms_D["sureness"]})["sureness"]
            state.augment_p = adapted(state.augment_p, sureness, c.augment_target, len(real) * self.processes.world_size)
            terms_D["augment_p"] = state.augment_p
        is_finite = are_finite(state.generator.parameters())
        for average in state.averages.values():
            average.update(state.generator, is_finite)
        scalars = {**{f"D/{k}": v for k, v in terms_D.items()}, **{f"G/{k}": v for k, v in terms_G.items()}}
        self.guard.watch(state.step, scalars)
        return scalars

    def _settings(self) -> StepSettings:
        settings = StepSettings.at(self.curriculum, self.state.step)
        if self.curriculum.augment_target:
            settings = replace(settings, augment_p=self.state.augment_p)
        if self.state.is_held or not settings.lambda_ball_hold:
            return settings
        return replace(settings, lambda_ball_hold=self.curriculum.ball_hold_floor)

    def _draw_inputs(self, settings: StepSettings, stage: Stage, purpose: str) -> GeneratorInputs:
        seed, step = self.state.draw_seed, self.state.step
        return draw_inputs(self.curriculum, settings, stage.batch_size, self.processes, seed=seed, step=step, purpose=purpose)

    def _train_discriminator(
        self, real: Tensor, inputs: GeneratorInputs, settings: StepSettings, num_parts: int, shared: Generated | None
    ) -> dict[str, Tensor]:
        """A step of D on ``real`` images and on ``shared`` ones; None: they are generated here, part by part."""
        state, D = self.state, self.state.discriminator
        state.optimizer_D.zero_grad(set_to_none=True)
        results = []
        for part, real_part in zip(inputs.split(num_parts), real.chunk(num_parts), strict=True):
            fake = shared.images if shared else self._generate_images(part, settings)
            result = discriminator_losses(D, self.curriculum, real_part, fake, part, settings, self.amp_dtype)
            state.scaler_D.scale(nan_unless_finite(result.total) / num_parts).backward()
            results.append(result.terms)
        self.processes.average_gradients(D.parameters())
        return self._finish(state.optimizer_D, state.scaler_D, D, results)

    def _train_generator(
        self, real: Tensor, inputs: GeneratorInputs, settings: StepSettings, num_parts: int, shared: Generated | None
    ) -> dict[str, Tensor]:
        """A step of G on the ``shared`` images; None: they are generated here, part by part."""
        state, D = self.state, self.state.discriminator
        state.optimizer_G.zero_grad(set_to_none=True)
        D.requires_grad_(False)
        image_weights = self._topk_over_parts(inputs, settings, num_parts)
        results = []
        for i, (part, real_part) in enumerate(zip(inputs.split(num_parts), real.chunk(num_parts), strict=True)):
            generated = shared or generate(state.generator, part, settings)
            weights = None if image_weights is None else image_weights.chunk(num_parts)[i]
            result = generator_losses(generated, D, self.curriculum, real_part, part, settings, self.amp_dtype, weights)
            state.scaler_G.scale(nan_unless_finite(result.total) / num_parts).backward()
            results.append(result.terms)
        D.requires_grad_(True)
        self.processes.average_gradients(state.generator.parameters())
        return self._finish(state.optimizer_G, state.scaler_G, state.generator, results)

    @torch.no_grad()
    def _generate_images(self, inputs: GeneratorInputs, settings: StepSettings) -> Tensor:
        return generate(self.state.generator, inputs, settings).images

    @torch.no_grad()
    def _topk_over_parts(self, inputs: GeneratorInputs, settings: StepSettings, num_parts: int) -> Tensor | None:
        """The top-k choice of a batch that is judged in parts: it needs every score before the first gradient."""
        if num_parts == 1 or settings.topk_fraction >= 1:
            return None
        scores = []
        for part in inputs.split(num_parts):
            images = augmented(self._generate_images(part, settings), part, settings, GENERATED)
            with torch.autocast(self.processes.device.type, self.amp_dtype, enabled=self.amp_dtype is not None):
                scores.append(self.state.discriminator(images, settings.fade_alpha).score)
        return topk_image_weights(torch.cat(scores), settings.topk_fraction)

    def _finish(self, optimizer, scaler, network: nn.Module, results: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Clip, step where the gradient is finite, and average the parts' terms."""
        scaler.unscale_(optimizer)
        terms = {name: torch.stack([terms[name] for terms in results]).mean() for name in results[0]}
        terms["grad_norm"] = nn.utils.clip_grad_norm_(network.parameters(), self.curriculum.grad_clip)
        step_if_finite(optimizer, scaler, terms["grad_norm"])
        return terms

    # -- when the numbers go bad -----------------------------------------------------------------------------------

    def _is_sound(self, recorder: Recorder | None) -> bool:
        """False where the run was sent back to an earlier checkpoint. The counts are looked at where that costs nothing."""
        state, limit = self.state, self.options.max_bad_steps
        if self.processes.device.type != "cpu" and state.step % self.options.log_interval:
            return True
        state.bad_steps = self.guard.look()
        if state.bad_steps.in_a_row >= limit:
            self._go_back(recorder, state.bad_steps)
            return False
        self.setbacks.note_good_step(state.step)
        return True

    def _go_back(self, recorder: Recorder | None, bad: BadSteps) -> None:
        """To an earlier checkpoint, drawing other numbers from there. Raises Diverged where that does not help.

        The other numbers follow from the seed and ``attempt``, which is saved, so the run can still be repeated.
        """
        state, from_step, what = self.state, self.state.step, self.setbacks.diagnosis(bad)
        try:
            path = self.setbacks.where_to(bad, from_step)
        except Diverged as verdict:
            if recorder is not None:
                recorder.event(from_step, "diverged", reason=str(verdict), skipped_steps=bad.skipped)
            raise
        attempt = state.attempt + 1
        all_or_none(self.processes, lambda: state.resume(path, self.processes.world_size))
        state.attempt, state.bad_steps = attempt, BadSteps(skipped=bad.skipped)
        self.guard = Guard(self.processes.device, state.bad_steps)
        self.keeper.forget()
        if self._batches is not None and self._batches.stage is self.curriculum.stage_at(state.step):
            self._batches.restart()
        if recorder is not None:
            recorder.go_back(state.step)
            recorder.event(state.step, "went back", reason=what, from_step=from_step, attempt=attempt, skipped_steps=bad.skipped)
            recorder.warn(f"{what}: going back to {path}, with other random numbers (attempt {attempt})")

    # -- which way the shapes bulge --------------------------------------------------------------------------------

    def _turn_outward(self, recorder: Recorder | None, stage: Stage) -> None:
        """Mirror the run in depth where its shapes stay hollow. The main process looks, and all do as it finds."""
        c, state = self.curriculum, self.state
        if not c.hollow_check_interval or state.step % c.hollow_check_interval:
            return
        average = state.averages["ema"].generator
        bulge = measure_bulge(average, stage.img_size) if self.processes.is_main else None
        is_hollow = self.processes.any(bulge is not None and bulge.is_hollow(c.ray_end - c.ray_start))
        state.hollow_looks = state.hollow_looks + 1 if is_hollow else 0
        if state.hollow_looks == PATIENCE:
            state.hollow_looks = 0
            turn = best_turn(average, stage.img_size) if self.processes.is_main else None
            is_mold = self.processes.any(turn is not None and turn.psnr_db >= MIN_TURN_PSNR_DB)
            if is_mold:
                state.mirror_depth(self.processes.any(turn is not None and turn.invert))
            if recorder is not None:
                recorder.log_turn(state.step, bulge.mean, turn, is_mold)

    # -- around the steps ------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _handled_signals(self) -> Iterator[None]:
        is_ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN  # by nohup: the run is to outlive its terminal
        heeded = [number for number in STOP_SIGNALS if number != signal.SIGHUP or not is_ignored]
        previous = {number: signal.signal(number, self._on_signal) for number in heeded}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, frame: object) -> None:
        now = time.monotonic()
        if self._signal is not None:
            if "TORCHELASTIC_RUN_ID" in os.environ and now - self._signal_time < LAUNCHER_ECHO:
                return
            signal.signal(number, signal.SIG_DFL)  # the second one leaves at once
            signal.raise_signal(number)
        self._signal, self._signal_time = number, now

    def _why_stop(self, first_step: int) -> str | None:
        options, step = self.options, self.state.step
        if step >= self.curriculum.end_step:
            return f"the curriculum ends at step {self.curriculum.end_step}"
        if options.max_steps is not None and step >= options.max_steps:
            return f"--max_steps {options.max_steps}"
        seen, batches = self.state.images_seen, self._batches
        if options.num_epochs is not None and batches and seen >= options.num_epochs * len(batches.dataset):
            return f"--n_epochs {options.num_epochs}"
        several_gpus = self.processes.world_size > 1 and self.processes.device.type == "cuda"
        if several_gpus and (step - first_step) % CHECK_STOP_EVERY:
            return None
        minutes = (time.monotonic() - options.started) / 60
        if self.processes.any(options.max_minutes is not None and minutes >= options.max_minutes):
            return f"--max_minutes {options.max_minutes}"
        if self.processes.any(self._signal is not None):
            return f"signal {signal.Signals(self._signal).name if self._signal else 'in another process'}"
        return None

    def _record(self, recorder: Recorder | None, scalars: dict[str, Tensor], stage: Stage) -> None:
        """Saving comes last: what a checkpoint's step has to show has been shown when the checkpoint is there."""
        step, options = self.state.step, self.options
        is_logged = step % options.log_interval == 0
        if is_logged:
            scalars = self.processes.mean(scalars)
        if recorder is not None:
            recorder.advance(stage.batch_size * self.processes.world_size)
            if is_logged:
                recorder.log(step, self._readable(scalars))
            if options.sample_interval and step % options.sample_interval == 0:
                self._sample(recorder)
        if options.eval_interval and step % options.eval_interval == 0:
            self._evaluate(recorder, stage)
        if recorder is not None and self.keeper.is_due():
            self.state.bad_steps = self.guard.look()
            self.keeper.save(recorder.warn)

    def _evaluate(self, recorder: Recorder | None, stage: Stage) -> None:
        """Measure the averaged generator, in the course of training. Every process comes here; the main one records."""
        step = self.state.step
        parts = self.evaluator.parts(self.state.averages["ema"].generator, stage.img_size, step)
        if recorder is not None:
            recorder.log_evaluation(step, parts)

    def _readable(self, scalars: dict[str, Tensor]) -> dict[str, float]:
        """The one place where the log waits for the device."""
        values = torch.stack([value.float() for value in scalars.values()]).tolist()
        settings = self._settings()
        return {
            **dict(zip(scalars, values, strict=True)),
            "schedule/interval": settings.render.interval,
            "schedule/fade_alpha": settings.fade_alpha,
            "schedule/topk_fraction": settings.topk_fraction,
            "schedule/lambda_opacity_prior": settings.lambda_opacity_prior,
            "schedule/lambda_ball_hold": settings.lambda_ball_hold,
            "schedule/gen_lr": self.state.optimizer_G.param_groups[0]["lr"],
            "schedule/disc_lr": self.state.optimizer_D.param_groups[0]["lr"],
            "images_seen": self.state.images_seen,
            "skipped_steps": self.state.bad_steps.skipped,
        }

    def _sample(self, recorder: Recorder) -> None:
        state = self.state
        interval = schedules.interval_at(self.curriculum, state.step)
        stage = self.curriculum.stage_at(min(state.step, self.curriculum.end_step - 1))
        recorder.sample(state.step, state.averages["ema"].generator, max(32, stage.img_size), interval)

    def _save_last(self, recorder: Recorder | None) -> None:
        if recorder is not None:
            self.state.bad_steps = self.guard.look()
            self.keeper.save_last(recorder.warn)
