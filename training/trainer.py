"""The training loop: read :meth:`Trainer.run`, then :meth:`Trainer._step`."""

from __future__ import annotations

import signal
import time
from typing import NamedTuple

import torch
from torch import Tensor, nn

from common.errors import UserError
from distributed.processes import Processes
from settings import schedules
from settings.curriculum import Curriculum, Stage
from training.augmentation import GENERATED, adapted
from training.batches import StageBatches
from training.cuda_graphs import StepGraphs, can_use_graphs, step_kind
from training.evaluation import Evaluator
from training.hollow import MIN_MIRROR_PSNR_DB, PATIENCE, measure_bulge
from training.inputs import draw_inputs
from training.losses import topk_image_weights
from training.mirror import best_mirroring
from training.options import RunOptions
from training.run.checkpoint_manager import CheckpointManager
from training.run.nonfinite import BadSteps, Diverged, Guard, are_finite, nan_unless_finite, step_if_finite
from training.run.recorder import Recorder
from training.run.recovery import Recovery
from training.run.run_state import RunState
from training.run.stop_signals import StopSignals
from training.steps import (
    Generated,
    GeneratorInputs,
    Schedule,
    StepInputs,
    StepSettings,
    discriminator_losses,
    generate,
    generator_losses,
    judge,
    over_backgrounds,
)

CHECK_STOP_EVERY = 10  # steps, with several GPUs, which must synchronize to agree on it


class Stop(NamedTuple):
    """Why training stops. ``is_interrupted``: by a signal to this or another process, so there may be little time left."""

    reason: str
    is_interrupted: bool = False


def _set_rates(optimizer: torch.optim.Adam, rates: list[float | Tensor]) -> None:
    """Set the learning rates of the optimizer's groups."""
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


class Trainer:
    """Train ``state`` until the curriculum ends, a limit is reached, or a stop signal arrives."""

    def __init__(self, state: RunState, options: RunOptions, processes: Processes) -> None:
        self.state = state
        self.curriculum: Curriculum = state.curriculum
        self.options = options
        self.processes = processes
        self.amp_dtype = state.amp_dtype
        self.guard = Guard(processes.device, state.bad_steps)
        self.checkpoint_manager = CheckpointManager(
            state,
            options.output_dir,
            options.save_interval,
            options.milestone_interval,
            options.num_kept,
            processes.world_size,
        )
        self.evaluator = Evaluator(options, processes)
        reset_after = max(options.save_interval, 10 * options.max_bad_steps)
        self.recovery = Recovery(state, options.output_dir, processes, reset_after)
        self.recorder: Recorder | None = None  # in the main process, while it trains
        self._batches: StageBatches | None = None
        self._graphs: StepGraphs | None = None
        if options.use_graphs and can_use_graphs(state, processes):
            self._graphs = StepGraphs(processes.device, (state.optimizer_D, state.optimizer_G))
        self.stop_signals = StopSignals()

    def run(self, recorder: Recorder | None) -> str:
        """Train, write a checkpoint of the last step, and return the reason why training stopped, for printing.

        Raises NotSaved if that checkpoint cannot be written, Diverged if recovery fails, and UserError if the images
        disappear. In the last case, a checkpoint is written first. ``recorder``: None in all processes but the main one.
        """
        self.recorder = recorder
        first_step = self.state.step
        with self.stop_signals:
            try:
                while (stop := self._stop(first_step)) is None:
                    stage, real = self._next_batch()
                    scalars = self._step(real, stage)
                    self.state.step += 1
                    self.state.images_seen += stage.batch_size * self.processes.world_size
                    if not self._recover_if_bad():
                        self._turn_outward(stage)
                        self._record(scalars, stage)
                self._save_last()  # before the sample grid, as the process may be killed soon after a stop signal
                if self.processes.is_main:
                    self._sample()
                if not stop.is_interrupted:
                    self._evaluate_last(first_step)
            finally:
                if self._batches is not None:
                    self._batches.close()
        return stop.reason

    def open_images(self) -> None:
        """Open the images of the current stage, and close those of the previous one.

        ``run`` calls this at the start, if it was not called before, and at each new stage. Raises UserError.
        """
        c, options, state = self.curriculum, self.options, self.state
        is_under_way = self._batches is not None
        if is_under_way:
            self._batches.close()
        if self._graphs:
            self._graphs.clear()  # those of the previous stage, with their memory
        if state.step < c.end_step:
            self._batches = StageBatches(options, c.stage_at(state.step), state, self.processes, is_under_way)

    def _next_batch(self) -> tuple[Stage, Tensor]:
        """Return the current stage and its next batch. Also set the learning rates."""
        stage, is_first = self.curriculum.stage_at(self.state.step), self._batches is None
        try:
            if is_first or self._batches.stage is not stage:
                self.open_images()
            real = self._batches.next()
        except UserError:
            if not is_first:  # the state is consistent between steps
                self._save_last()
            raise
        self.state.set_learning_rates(self.state.step)
        return stage, real

    # -- one step --------------------------------------------------------------------------------------------------

    def _step(self, real: Tensor, stage: Stage) -> dict[str, Tensor]:
        """Take one step of D, then one of G, on ``real`` (B, 3, H, W), or 4 channels if the background is random.

        Returns scalars for the log, on the device.
        """
        state, settings = self.state, self._settings()
        inputs_D = None if self.curriculum.share_images else self._draw_inputs(settings, stage, "D")
        inputs_G = self._draw_inputs(settings, stage, "G")
        rates_G, rates_D = ([group["lr"] for group in o.param_groups] for o in (state.optimizer_G, state.optimizer_D))
        schedule = Schedule(
            interval=settings.render.interval,
            density_noise=settings.render.density_noise,
            fade_alpha=settings.fade_alpha,
            lambda_opacity_prior=settings.lambda_opacity_prior,
            lambda_ball_hold=settings.lambda_ball_hold,
            augment_p=state.augment_p if self.curriculum.augment_target else None,
            rates_G=rates_G,
            rates_D=rates_D,
            average_rates=[average.next_rate() for average in state.averages.values()],
        )
        inputs = StepInputs(real, inputs_D, inputs_G, schedule)
        if self._graphs is None:
            scalars = self._update(inputs, settings, stage.batch_split)
        else:
            kind = step_kind(settings, stage)
            scalars = self._graphs.run(kind, lambda given: self._update(given, settings, stage.batch_split), inputs)
            _set_rates(state.optimizer_G, rates_G)  # numbers again, not the graph's tensors
            _set_rates(state.optimizer_D, rates_D)
        if self.curriculum.augment_target:
            state.augment_p = scalars["D/augment_p"]
        self.guard.watch(state.step, scalars)
        return scalars

    def _update(self, given: StepInputs, settings: StepSettings, num_parts: int) -> dict[str, Tensor]:
        """Take the step of D and G that ``given`` determines, and average G. Returns scalars for the log, on the device.

        This method can be recorded as a CUDA graph: all that differs between steps of a kind is in ``given``.
        """
        c, state, schedule = self.curriculum, self.state, given.schedule
        settings = settings.with_values_of(schedule)
        _set_rates(state.optimizer_G, schedule.rates_G)
        _set_rates(state.optimizer_D, schedule.rates_D)
        inputs_G = given.inputs_G
        inputs_D = given.inputs_D or inputs_G
        real = over_backgrounds(given.real, inputs_D)
        # Shared images are generated once, and their graph is kept for G during D's step. A batch in parts is generated
        # twice, because D's step must finish on all parts before G's step starts on the first.
        shared = generate(state.generator, inputs_G, settings) if c.share_images and num_parts == 1 else None
        terms_D = self._train_discriminator(real, inputs_D, settings, num_parts, shared)
        terms_G = self._train_generator(real, inputs_G, settings, num_parts, shared)
        if c.augment_target:
            mean_sign = self.processes.mean({"real_sign": terms_D["real_sign"]})["real_sign"]
            num_images = len(real) * self.processes.world_size
            terms_D["augment_p"] = adapted(schedule.augment_p, mean_sign, c.augment_target, num_images)
        is_finite = are_finite(state.generator.parameters())
        for average, rate in zip(state.averages.values(), schedule.average_rates, strict=True):
            average.update(state.generator, is_finite, rate)
        return {**{f"D/{k}": v for k, v in terms_D.items()}, **{f"G/{k}": v for k, v in terms_G.items()}}

    def _settings(self) -> StepSettings:
        return StepSettings.at(self.curriculum, self.state.step, is_held=self.state.is_held)

    def _draw_inputs(self, settings: StepSettings, stage: Stage, purpose: str) -> GeneratorInputs:
        seed, step = self.state.draw_seed, self.state.step
        return draw_inputs(self.curriculum, settings, stage.batch_size, self.processes, seed=seed, step=step, purpose=purpose)

    def _train_discriminator(
        self, real: Tensor, inputs: GeneratorInputs, settings: StepSettings, num_parts: int, shared: Generated | None
    ) -> dict[str, Tensor]:
        """Take a step of D on ``real`` and ``shared`` images. If ``shared`` is None, generate images part by part."""
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
        """Take a step of G on the ``shared`` images. If ``shared`` is None, generate images part by part."""
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
        """Top-k weights of a batch in parts, computed from all scores before the first gradient. None if not needed."""
        if num_parts == 1 or settings.topk_fraction >= 1:
            return None
        scores = []
        for part in inputs.split(num_parts):
            images = self._generate_images(part, settings)
            scores.append(judge(self.state.discriminator, images, GENERATED, part, settings, self.amp_dtype).score)
        return topk_image_weights(torch.cat(scores), settings.topk_fraction)

    def _finish(self, optimizer, scaler, network: nn.Module, results: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Clip the gradient, step if it is finite, and return the mean terms of the parts."""
        scaler.unscale_(optimizer)
        terms = {name: torch.stack([result[name] for result in results]).mean() for name in results[0]}
        terms["grad_norm"] = nn.utils.clip_grad_norm_(network.parameters(), self.curriculum.grad_clip)
        step_if_finite(optimizer, scaler, terms["grad_norm"])
        return terms

    # -- recovery --------------------------------------------------------------------------------------------------

    def _recover_if_bad(self) -> bool:
        """Go back to a checkpoint after too many bad steps. Returns whether it did.

        On a GPU, the counts are read only when the log synchronizes with the device anyway.
        """
        state = self.state
        if self.processes.device.type != "cpu" and state.step % self.options.log_interval:
            return False
        state.bad_steps = self.guard.read()
        if state.bad_steps.in_a_row >= self.options.max_bad_steps:
            self._go_back(state.bad_steps)
            return True
        self.recovery.note_good_step()
        return False

    def _go_back(self, bad: BadSteps) -> None:
        """Recover from ``bad`` steps. Raises Diverged if recovery fails."""
        state, from_step, diagnosis = self.state, self.state.step, self.recovery.diagnosis(bad)
        try:
            path = self.recovery.go_back(bad)
        except Diverged as error:
            if self.processes.is_main:
                self.recorder.event(from_step, "diverged", reason=str(error), skipped_steps=bad.skipped)
            raise
        self.guard = Guard(self.processes.device, state.bad_steps)
        if self._graphs:
            self._graphs.clear()  # the optimizers' states are in other tensors now
        self.checkpoint_manager.forget()
        if self._batches.stage is self.curriculum.stage_at(state.step):
            self._batches.restart()
        if self.processes.is_main:
            self.recorder.go_back(state.step)
            attempt, skipped = state.attempt, bad.skipped
            self.recorder.event(
                state.step, "went back", reason=diagnosis, from_step=from_step, attempt=attempt, skipped_steps=skipped
            )
            self.recorder.warn(f"{diagnosis}: going back to {path} with different random numbers (attempt {attempt})")

    # -- hollow shapes ---------------------------------------------------------------------------------------------

    def _turn_outward(self, stage: Stage) -> None:
        """Mirror the networks in depth if the shapes stay hollow. The main process decides for all."""
        c, state = self.curriculum, self.state
        if not c.hollow_check_interval or state.step % c.hollow_check_interval:
            return
        average = state.averages["ema"].generator
        bulge = measure_bulge(average, stage.img_size) if self.processes.is_main else None
        is_hollow = self.processes.any(bulge is not None and bulge.is_hollow(c.ray_end - c.ray_start))
        state.hollow_looks = state.hollow_looks + 1 if is_hollow else 0
        if state.hollow_looks == PATIENCE:
            state.hollow_looks = 0
            mirroring = best_mirroring(average, stage.img_size) if self.processes.is_main else None
            is_mold = self.processes.any(mirroring is not None and mirroring.psnr_db >= MIN_MIRROR_PSNR_DB)
            if is_mold:
                state.mirror_depth(self.processes.any(mirroring is not None and mirroring.invert))
            if self.processes.is_main:
                self.recorder.log_mirroring(state.step, bulge.mean, mirroring, is_mold)

    # -- stopping, logging and saving -----------------------------------------------------------------------------

    def _stop(self, first_step: int) -> Stop | None:
        options, step = self.options, self.state.step
        if step >= self.curriculum.end_step:
            return Stop(f"the curriculum ends at step {self.curriculum.end_step}")
        if options.max_steps is not None and step >= options.max_steps:
            return Stop(f"--max_steps {options.max_steps}")
        seen, batches = self.state.images_seen, self._batches
        if options.num_epochs is not None and batches and seen >= options.num_epochs * len(batches.dataset):
            return Stop(f"--n_epochs {options.num_epochs}")
        several_gpus = self.processes.world_size > 1 and self.processes.device.type == "cuda"
        if several_gpus and (step - first_step) % CHECK_STOP_EVERY:
            return None
        is_late = options.max_minutes is not None and time.monotonic() - options.started >= 60 * options.max_minutes
        number = self.stop_signals.number
        if not self.processes.any(is_late or number is not None):
            return None
        # Clocks and signals differ between processes, which must agree on the kind of stop: only a late run is evaluated.
        if not self.processes.any(number is not None):
            return Stop(f"--max_minutes {options.max_minutes}")
        received = f"signal {signal.Signals(number).name}" if number is not None else "another process received a stop signal"
        return Stop(received, is_interrupted=True)

    def _record(self, scalars: dict[str, Tensor], stage: Stage) -> None:
        """Log, sample, evaluate, and save. Saving comes last, so that every checkpoint's step has been recorded."""
        step, options = self.state.step, self.options
        is_logged = step % options.log_interval == 0
        if is_logged:
            scalars = self.processes.mean(scalars)
        if self.processes.is_main:
            self.recorder.advance(stage.batch_size * self.processes.world_size)
            if is_logged:
                self.recorder.log(step, self._readable(scalars))
            if options.sample_interval and step % options.sample_interval == 0:
                self._sample()
        if options.eval_interval and step % options.eval_interval == 0:
            self._evaluate(stage)
        if self.processes.is_main and self.checkpoint_manager.is_due():
            self.state.bad_steps = self.guard.read()
            self.checkpoint_manager.save(self.recorder.warn)

    def _evaluate(self, stage: Stage) -> None:
        """Evaluate the averaged generator. Every process takes part. The main one logs the results."""
        step = self.state.step
        scores = self.evaluator.evaluate(self.state.averages["ema"].generator, stage.img_size, step, self.recorder)
        if self.processes.is_main:
            self.recorder.log_evaluation(step, scores)

    def _evaluate_last(self, first_step: int) -> None:
        """Evaluate the run's last step, unless it has been evaluated or is not new."""
        step, interval = self.state.step, self.options.eval_interval
        if interval and step % interval and step > first_step:
            self._evaluate(self.curriculum.stage_at(step - 1))

    def _readable(self, scalars: dict[str, Tensor]) -> dict[str, float]:
        """Return the scalars as numbers. This is the only place where the log synchronizes with the device."""
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

    def _sample(self) -> None:
        state = self.state
        interval = schedules.interval_at(self.curriculum, state.step)
        stage = self.curriculum.stage_at(min(state.step, self.curriculum.end_step - 1))
        self.recorder.sample(state.step, state.averages["ema"].generator, max(32, stage.img_size), interval)

    def _save_last(self) -> None:
        if self.processes.is_main:
            self.state.bad_steps = self.guard.read()
            self.checkpoint_manager.save_last(self.recorder.warn)
