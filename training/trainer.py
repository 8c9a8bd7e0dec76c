"""The training loop: read :meth:`Trainer.run`, then :meth:`Trainer._step`."""

from __future__ import annotations

import contextlib
import math
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from cli import UserError
from curriculums import Curriculum, Stage
from training import schedules
from training.batches import StageBatches
from training.distributed import Processes
from training.inputs import draw_inputs
from training.losses import topk_image_weights
from training.recorder import Recorder
from training.run_state import RunState
from training.steps import DiscriminatorStep, GeneratorInputs, GeneratorStep, StepSettings, generate, to_images

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
CHECK_STOP_EVERY = 10  # steps, where several processes must agree


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
    eval_interval: int = 0
    log_interval: int = 20
    use_tensorboard: bool = True
    use_cache: bool = True


class Trainer:
    """Trains ``state`` until the curriculum ends, a limit is reached, or a signal asks to stop."""

    def __init__(self, state: RunState, options: RunOptions, processes: Processes, amp_dtype: torch.dtype | None = None) -> None:
        self.state = state
        self.curriculum: Curriculum = state.curriculum
        self.options = options
        self.processes = processes
        self.amp_dtype = amp_dtype
        self.generator_step = processes.wrap(GeneratorStep(state.generator), uses_all_parameters=True)
        # D's blocks for other image sizes take no part in a step.
        step_D = DiscriminatorStep(state.discriminator, self.curriculum)
        self.discriminator_step = processes.wrap(step_D, uses_all_parameters=False)
        self._batches: StageBatches | None = None
        self._signal: int | None = None

    def run(self, recorder: Recorder | None) -> str:
        """Train; returns why it stopped, in words. A checkpoint of the last step is written before."""
        started, first_step = time.monotonic(), self.state.step
        previous_handlers = {number: signal.signal(number, self._on_signal) for number in STOP_SIGNALS}
        try:
            while (reason := self._why_stop(started, first_step)) is None:
                stage = self._enter_stage()
                scalars = self._step(next(self._batches.stream), stage)
                self.state.step += 1
                self.state.images_seen += stage.batch_size * self.processes.world_size
                self._record(recorder, scalars, stage)
            self._save_and_sample(recorder, sample=recorder is not None)
        finally:
            for number, handler in previous_handlers.items():
                signal.signal(number, handler)
            if self._batches is not None:
                self._batches.stream.close()
        return reason

    def open_images(self) -> None:
        """Read the images of the stage where the run stands; ``run`` does it where it was not done."""
        c, options, state = self.curriculum, self.options, self.state
        if state.step < c.end_step:
            where = (options.dataset_path, options.dataset_preset, options.use_cache)
            self._batches = StageBatches(*where, c.stage_at(state.step), state, self.processes)

    def _enter_stage(self) -> Stage:
        stage = self.curriculum.stage_at(self.state.step)
        if self._batches is None or self._batches.stage is not stage:
            if self._batches is not None:
                self._batches.stream.close()
            self.open_images()
        self.state.set_learning_rates(stage.gen_lr, stage.disc_lr)
        return stage

    @property
    def stopped_by_signal(self) -> int | None:
        return self._signal

    # -- one step --------------------------------------------------------------------------------------------------

    def _step(self, real: Tensor, stage: Stage) -> dict[str, Tensor]:
        """One step of D, then of G. Returns scalars for the log, on the device."""
        c, state = self.curriculum, self.state
        settings = StepSettings.at(c, state.step)
        draw = {"seed": state.seed, "step": state.step}
        inputs_D = draw_inputs(c, settings, stage.batch_size, self.processes, **draw, purpose="D")
        inputs_G = draw_inputs(c, settings, stage.batch_size, self.processes, **draw, purpose="G")
        terms_D = self._train_discriminator(real, inputs_D, settings, stage.batch_split)
        terms_G = self._train_generator(inputs_G, settings, stage.batch_split)
        for average in state.averages.values():
            average.update(state.generator)
        return {**{f"D/{k}": v for k, v in terms_D.items()}, **{f"G/{k}": v for k, v in terms_G.items()}}

    def _train_discriminator(
        self, real: Tensor, inputs: GeneratorInputs, settings: StepSettings, num_parts: int
    ) -> dict[str, Tensor]:
        state = self.state
        state.optimizer_D.zero_grad(set_to_none=True)
        results = []
        for i, (part, real_part) in enumerate(zip(inputs.split(num_parts), real.chunk(num_parts), strict=True)):
            with torch.no_grad():
                output = generate(state.generator, part, settings, self.curriculum.fov)[2]
                fake = to_images(output, settings.image_size)
            with self._sync_on_last(self.discriminator_step, i, num_parts):
                result = self.discriminator_step(real_part, fake, part, settings, self.amp_dtype)
                state.scaler_D.scale(result.total / num_parts).backward()
            results.append(result.terms)
        return self._finish(state.optimizer_D, state.scaler_D, state.discriminator, results)

    def _train_generator(self, inputs: GeneratorInputs, settings: StepSettings, num_parts: int) -> dict[str, Tensor]:
        state = self.state
        state.optimizer_G.zero_grad(set_to_none=True)
        state.discriminator.requires_grad_(False)
        image_weights = self._topk_over_parts(inputs, settings, num_parts)
        results = []
        for i, part in enumerate(inputs.split(num_parts)):
            weights = None if image_weights is None else image_weights.chunk(num_parts)[i]
            with self._sync_on_last(self.generator_step, i, num_parts):
                result = self.generator_step(part, state.discriminator, settings, self.amp_dtype, weights)
                state.scaler_G.scale(result.total / num_parts).backward()
            results.append(result.terms)
        state.discriminator.requires_grad_(True)
        return self._finish(state.optimizer_G, state.scaler_G, state.generator, results)

    @torch.no_grad()
    def _topk_over_parts(self, inputs: GeneratorInputs, settings: StepSettings, num_parts: int) -> Tensor | None:
        """The top-k choice of a batch that is judged in parts: it needs every score before the first gradient."""
        if num_parts == 1 or settings.topk_fraction >= 1:
            return None
        scores = []
        for part in inputs.split(num_parts):
            output = generate(self.state.generator, part, settings, self.curriculum.fov)[2]
            with torch.autocast(self.processes.device.type, self.amp_dtype, enabled=self.amp_dtype is not None):
                scores.append(self.state.discriminator(to_images(output, settings.image_size), settings.fade_alpha).score)
        return topk_image_weights(torch.cat(scores), settings.topk_fraction)

    def _finish(self, optimizer, scaler, network: nn.Module, results: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Clip, step, and average the parts' terms."""
        scaler.unscale_(optimizer)
        terms = {name: torch.stack([terms[name] for terms in results]).mean() for name in results[0]}
        terms["grad_norm"] = nn.utils.clip_grad_norm_(network.parameters(), self.curriculum.grad_clip)
        scaler.step(optimizer)
        scaler.update()
        return terms

    def _sync_on_last(self, step: nn.Module, part: int, num_parts: int) -> contextlib.AbstractContextManager:
        """Gradients travel between processes once per batch, with its last part."""
        if self.processes.world_size > 1 and part < num_parts - 1:
            return step.no_sync()
        return contextlib.nullcontext()

    # -- around the steps ------------------------------------------------------------------------------------------

    def _on_signal(self, number: int, frame: object) -> None:
        if self._signal is not None:  # the second one leaves at once
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self._signal = number

    def _why_stop(self, started: float, first_step: int) -> str | None:
        options, step = self.options, self.state.step
        if step >= self.curriculum.end_step:
            return f"the curriculum ends at step {self.curriculum.end_step}"
        if options.max_steps is not None and step >= options.max_steps:
            return f"--max_steps {options.max_steps}"
        seen, batches = self.state.images_seen, self._batches
        if options.num_epochs is not None and batches and seen >= options.num_epochs * len(batches.dataset):
            return f"--n_epochs {options.num_epochs}"
        if self.processes.world_size > 1 and (step - first_step) % CHECK_STOP_EVERY:
            return None
        minutes = (time.monotonic() - started) / 60
        if self.processes.any(options.max_minutes is not None and minutes >= options.max_minutes):
            return f"--max_minutes {options.max_minutes}"
        if self.processes.any(self._signal is not None):
            return f"signal {signal.Signals(self._signal).name if self._signal else 'in another process'}"
        return None

    def _record(self, recorder: Recorder | None, scalars: dict[str, Tensor], stage: Stage) -> None:
        step, options = self.state.step, self.options
        if recorder is None:
            return
        recorder.advance(stage.batch_size * self.processes.world_size)
        if step % options.log_interval == 0:
            recorder.log(step, self._readable(scalars, stage))
        save = options.save_interval and step % options.save_interval == 0
        sample = options.sample_interval and step % options.sample_interval == 0
        if save or sample:
            self._save_and_sample(recorder, sample=bool(sample), save=bool(save))
        if options.eval_interval and step % options.eval_interval == 0:
            recorder.log_evaluation(step, self.state.averages["ema"].generator, stage.img_size)

    def _readable(self, scalars: dict[str, Tensor], stage: Stage) -> dict[str, float]:
        """The one place where the log waits for the device."""
        names, values = list(scalars), torch.stack([value.float() for value in scalars.values()]).tolist()
        bad = [name for name, value in zip(names, values, strict=True) if not math.isfinite(value)]
        if bad and self.amp_dtype != torch.float16:  # with fp16 the scaler skips such steps
            raise UserError(
                f"{bad[0]} is not finite at step {self.state.step}: the run diverged; resume from the last checkpoint in"
                f" {self.options.output_dir} with lower learning rates (--load_dir, --set gen_lr=... disc_lr=...)"
            )
        settings = StepSettings.at(self.curriculum, self.state.step)
        return {
            **dict(zip(names, values, strict=True)),
            "schedule/interval": settings.render.interval,
            "schedule/fade_alpha": settings.fade_alpha,
            "schedule/topk_fraction": settings.topk_fraction,
            "schedule/lambda_opacity_prior": settings.lambda_opacity_prior,
            "schedule/gen_lr": stage.gen_lr,
            "schedule/disc_lr": stage.disc_lr,
            "images_seen": self.state.images_seen,
        }

    def _save_and_sample(self, recorder: Recorder | None, sample: bool, save: bool = True) -> None:
        if recorder is None:
            return
        state = self.state
        if save:
            state.save(self.options.output_dir)
        if sample:
            interval = schedules.interval_at(self.curriculum, state.step)
            stage = self.curriculum.stage_at(min(state.step, self.curriculum.end_step - 1))
            recorder.sample(state.step, state.averages["ema"].generator, max(32, stage.img_size), interval)
