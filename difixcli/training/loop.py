"""The loop that every training runs: steps, validation, checkpoints, the end, and going on where it was stopped.

A task gives its losses, its validation and what of it a checkpoint must hold; all else is here. What is drawn at a step
must follow from the step and the seed, so that a training that was stopped goes on as if nothing had happened.
"""

from __future__ import annotations

import json
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from difixcli import interrupts
from difixcli.errors import InputError
from difixcli.runs import make_folder
from difixcli.training.averaging import follow
from difixcli.training.checkpoints import Pace, check_identity, read_checkpoint, write_checkpoint
from difixcli.training.journal import Journal
from difixcli.training.options import (
    CommonOptions,
    StagedOptions,
    SuperResolutionOptions,
    TrainingOptions,
    learning_rate,
)

Report = Callable[[Mapping[str, Any]], None]
Progress = Callable[[int], None]
Parts = Mapping[str, Any]
"""Of a step the sums of its rounds' `loss` and terms, and the norm of the `gradient`: tensors (), or numbers."""


class Training(ABC):
    """The state of one training, of one stage or of several, one after another, in each of which other weights train.

    A subclass sets `weights`, `optimiser` and `average`, and calls `take_up` once its data are found.
    """

    STAGES: ClassVar[tuple[str, ...]] = ("step",)
    """Their names, which are the events of the log's records."""
    DATA: ClassVar[str]
    """What it trains on, in a word."""
    ENTRIES: ClassVar[tuple[str, ...]]
    """What every checkpoint of its kind holds, beside others."""
    TOLD: ClassVar[Collection[str]] = ("validation",)
    """Events whose records count a step that is done, rather than one that begins."""
    MAPPED: ClassVar[bool] = False
    """Whether a checkpoint's tensors are read from the disk only where they are used."""

    weights: Sequence[Tensor]
    optimiser: torch.optim.Optimizer
    average: list[Tensor] | None

    def __init__(self, options: CommonOptions, output: Path, device: str, journal: Journal) -> None:
        self.common, self.device, self.journal = options, device, journal
        self.output = make_folder(output)
        self.checkpoint = make_folder(output / "checkpoints") / "last.pt"
        self.pace = Pace()
        self.stage = self.step = self.saved_step = 0
        self.done = 0.0  # share of the stage
        self.steps = dict.fromkeys(self.STAGES, 0)  # of stages that are over
        self.seconds = dict.fromkeys(self.STAGES, 0.0)
        self.validate_every = 0  # never
        self.identity = ""

    # What a task gives

    @abstractmethod
    def iterations(self, stage: str) -> int:
        """How many steps a stage takes."""

    @abstractmethod
    def rates(self) -> Sequence[float]:
        """The learning rates of this step, of each of the optimiser's groups."""

    @abstractmethod
    def rounds(self) -> Iterator[tuple[Tensor, Mapping[str, Tensor]]]:
        """The loss () of each round of this step, and the terms that make it, divided by the number of rounds.

        The gradient of a loss is added up before the next one is asked for.
        """

    @abstractmethod
    def told(self, parts: Parts, over: bool) -> None:
        """Log what the last step has done, where it is time to or the stage is `over`; `step` counts it already."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """What a checkpoint holds, beside what every one does."""

    @abstractmethod
    def restore(self, state: Mapping[str, Any]) -> None:
        """Be as a checkpoint's state was; its optimiser and average are taken up afterwards."""

    def check(self, parts: Parts) -> None:  # noqa: B027
        """Raise InputError where a step's gradients are of no use; the weights are still those before it."""

    def validate(self) -> None:  # noqa: B027
        """Look at the weights, every `validate_every` steps and at the end of a stage."""

    def stopped_early(self) -> bool:
        """Whether there is no point in going on."""
        return False

    def end_stage(self) -> None:
        """Keep what a stage has learnt, and begin the next one if there is one."""
        if self.saved_step != self.step:
            self.save()
        self.stage += 1

    # What is otherwise where several processes train

    def backward(self, loss: Tensor) -> None:
        """Add up the gradient of a round's loss; a sample may have nothing to teach."""
        if loss.requires_grad:
            loss.backward()

    def clipped(self) -> Tensor:
        """The norm () of the gradient, which is clipped."""
        return torch.nn.utils.clip_grad_norm_(self.weights, self.common.clip)

    def agreed(self, parts: Parts) -> Parts:
        """What all processes together have found at a step."""
        return parts

    def follow(self) -> None:
        """Move the average towards the weights."""
        follow(self.average, self.weights, self.common.ema, self.step)

    def asked(self) -> tuple[bool, bool]:
        """Whether it is time to save after this step, and whether to end then."""
        return self.pace.due(), interrupts.asked()

    # The loop

    def checkpointed(self) -> dict[str, Any] | None:
        """What the last checkpoint holds, if there is one."""
        if not self.checkpoint.is_file():
            return None
        device = "cpu" if self.MAPPED else self.device
        return read_checkpoint(self.checkpoint, self.output, ("identity", *self.ENTRIES), device, self.MAPPED)

    def take_up(self, state: Mapping[str, Any] | None, identity: Mapping[str, Any], about: Mapping[str, Any]) -> None:
        """Go on from a checkpoint's state, or begin where there is none with a record that says what it is `about`.

        InputError for a checkpoint of another `identity`.
        """
        self.sweep()
        self.identity = json.dumps(identity, sort_keys=True)
        if state is None:
            self.journal.begin()
            self.journal({"event": "start", **about, "options": asdict(self.common)})
            return
        check_identity(state, self.identity, self.output, self.DATA)
        self.step = state["step"]
        self.restore(state)
        self.saved_step = self.total
        if self.stage < len(self.STAGES):
            self.optimiser.load_state_dict(state["optimiser"])
            if self.average is not None:
                self.restore_average(state["average"])
        self.journal.go_on(self.total, self.TOLD)

    def restore_average(self, held: Any) -> None:
        """The average as a checkpoint holds it."""
        assert self.average is not None
        torch._foreach_copy_(self.average, held)

    def sweep(self) -> None:
        """Remove what a process was writing that was killed."""
        for leftover in self.output.rglob(".*.part"):
            leftover.unlink(missing_ok=True)

    @property
    def total(self) -> int:
        """Steps that are done, of all stages."""
        return sum(self.steps.values()) + self.step

    def train(self, progress: Progress | None) -> None:
        """All stages to their end; where the process is asked to end it saves and raises KeyboardInterrupt."""
        self.pace = Pace()
        while self.stage < len(self.STAGES):
            with interrupts.saving():
                over = self._run_stage(progress)
                if over:
                    self.journal.keep()
                    self.end_stage()
            if not over:  # another process was asked
                raise interrupts.Terminated

    def _run_stage(self, progress: Progress | None) -> bool:
        """Whether the stage came to its end; it does not where the process was asked to."""
        name = self.STAGES[self.stage]
        total, budget = self.iterations(name), self.budget(name)
        began, earlier = time.monotonic(), self.seconds[name]
        self.done = self.step / total if total else 1.0
        while self.done < 1 and not self.stopped_early():
            parts = self.take_step()
            self.journal.keep()
            self.seconds[name] = earlier + time.monotonic() - began
            self.step += 1
            self.done = max(self.step / total, self.seconds[name] / budget if budget else 0)
            self.told(parts, self.done >= 1)
            if self.validate_every and (self.step % self.validate_every == 0 or self.done >= 1):
                self.validate()
            over = self.done >= 1 or self.stopped_early()
            due, ending = self.asked()
            due = due or ending or self.step % self.common.checkpoint_every == 0
            if due and not over:  # at the end, `end_stage` does
                self.seconds[name] = earlier + time.monotonic() - began
                self.save()
            if progress is not None:
                progress(self.total)
            if ending and not over:
                return False
        return True

    def budget(self, stage: str) -> float:
        """Seconds after which a stage ends though steps are left; 0 for any number."""
        return 0.0

    def take_step(self) -> Parts:
        """One step: the rounds' losses, clipped update, average."""
        for group, rate in zip(self.optimiser.param_groups, self.rates(), strict=True):
            group["lr"] = rate
        self.optimiser.zero_grad(set_to_none=True)
        parts: dict[str, Tensor] = {}
        for loss, terms in self.rounds():
            self.backward(loss)
            for label, value in {"loss": loss, **terms}.items():
                parts[label] = parts[label] + value.detach() if label in parts else value.detach()
        parts["gradient"] = self.clipped()
        together = self.agreed(parts)
        self.check(together)
        self.optimiser.step()
        self.follow()
        return together

    def save(self) -> None:
        """Write the checkpoint, whole or not at all."""
        state = {
            "identity": self.identity,
            "step": self.step,
            "average": self.average,
            "optimiser": self.optimiser.state_dict(),
            **self.state(),
        }
        self.pace.saved(write_checkpoint(self.checkpoint, state, self.total, self.kept()))
        self.saved_step = self.total

    def kept(self) -> str:
        """Which checkpoint there is, in words."""
        if not self.saved_step:
            return "no checkpoint was written yet"
        return f"the checkpoint of step {self.saved_step} is kept in {self.checkpoint}"


class Best:
    """The weights that were best by validation so far.

    `found` is their step, score and figures (None before the first), `waited` how many validations in a row have found
    none that were better.
    """

    def __init__(self) -> None:
        self.found: dict[str, Any] | None = None
        self.waited = 0

    def offer(self, step: int, score: float, figures: Mapping[str, Any]) -> bool:
        """Whether the weights of a step are better than all before them."""
        better = self.found is None or score > self.found["score"]
        self.waited = 0 if better else self.waited + 1
        if better:
            self.found = {"step": step, "score": score, "figures": figures}
        return better


class ValidatedTraining(Training):
    """A training of one stage that keeps the weights which are best by validation."""

    options: TrainingOptions | SuperResolutionOptions

    def __init__(
        self, options: TrainingOptions | SuperResolutionOptions, output: Path, device: str, journal: Journal
    ) -> None:
        super().__init__(options, output, device, journal)
        self.options = options
        self.losses: list[float] = []  # of the last steps
        self.baselines: dict[str, dict[str, float]] | None = None
        self.best = Best()

    @abstractmethod
    def save_weights(self) -> None:
        """Write the weights as they are now, whole or not at all; InputError where that cannot be done."""

    def keep_weights(self) -> None:
        """Write the weights as they are now; InputError says how far the training is where that cannot be done."""
        try:
            self.save_weights()
        except InputError as error:
            raise InputError(f"Training stopped at step {self.step} ({self.kept()}): {error}") from error

    def iterations(self, stage: str) -> int:
        return self.options.iterations

    def rates(self) -> list[float]:
        return [learning_rate(self.step, self.options)]

    def check(self, parts: Parts) -> None:
        for name in ("loss",) if self.overflows() else ("loss", "gradient"):
            if not math.isfinite(float(parts[name])):
                raise InputError(
                    f"The {name} at step {self.step} is not a number ({self.kept()}); lower the learning rate "
                    f"({self.options.learning_rate:g}) and start in another output folder."
                )

    def overflows(self) -> bool:
        """Whether a gradient that is no number may be: half precision's scaler heeds it."""
        return False

    def told(self, parts: Parts, over: bool) -> None:
        told = {name: float(value) for name, value in parts.items()}
        self.losses = [*self.losses[-99:], told["loss"]]
        if (self.step - 1) % self.common.log_every == 0:
            told |= {"mean_loss": self.loss_of_late(), "rate": self.optimiser.param_groups[0]["lr"]}
            self.journal({"event": "step", "step": self.step - 1, **told})

    def loss_of_late(self) -> float:
        """The mean loss of the last steps."""
        return float(np.mean(self.losses)) if self.losses else math.nan

    def stopped_early(self) -> bool:
        return bool(self.options.patience) and self.best.waited >= self.options.patience

    def results(self) -> dict[str, Any]:
        """What every such training has to tell at its end."""
        return {
            "steps": self.step,
            "best_step": self.step if self.best.found is None else self.best.found["step"],
            "stopped_early": self.step < self.options.iterations,
            "seconds": round(self.seconds["step"], 1),
            "loss": self.loss_of_late(),
            "perceptual": self.options.perceptual if self.options.perceptual_weight else "none",
        }

    def state(self) -> dict[str, Any]:
        return {
            "seconds": self.seconds["step"],
            "losses": self.losses,
            "waited": self.best.waited,
            "baselines": self.baselines,
            "best": self.best.found,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        self.seconds = {"step": state["seconds"]}
        self.losses, self.baselines = state["losses"], state["baselines"]
        self.best.found, self.best.waited = state["best"], state["waited"]


class StagedTraining(Training):
    """A training of several stages; a subclass chooses in `begin_stage` what trains, by `train_weights`.

    Each ends with the average of its weights, after its iterations or its share of the seconds.
    """

    FIRST: ClassVar[int]
    """The number by which the log calls the first step."""

    def __init__(self, options: StagedOptions, output: Path, device: str, journal: Journal) -> None:
        super().__init__(options, output, device, journal)
        self._seconds = options.seconds
        self.losses = dict.fromkeys(self.STAGES, math.nan)  # running means
        self._last: Parts = {}

    @abstractmethod
    def begin_stage(self) -> None:
        """A new optimiser and average for the weights of the present stage."""

    @abstractmethod
    def model(self) -> torch.nn.Module:
        """All that is trained, in any stage."""

    @abstractmethod
    def ended(self, stage: str) -> None:
        """A stage is over, and its weights are those that are kept."""

    def train_weights(self, groups: Sequence[tuple[Sequence[Tensor], float, dict[str, Any]]], **settings: Any) -> None:
        """Train weights, each group with its learning rate and its own settings of AdamW."""
        self.peaks = [peak for _, peak, _ in groups]
        given = [{"params": list(weights), **own} for weights, _, own in groups]
        self.optimiser = torch.optim.AdamW(
            given, lr=self.peaks[0], **{"weight_decay": self.common.weight_decay, **settings}
        )
        self.weights = [weight for weights, _, _ in groups for weight in weights]
        for weight in self.weights:
            weight.requires_grad_(True)
        self.average = [weight.detach().clone() for weight in self.weights] if self.common.ema else None

    def rates(self) -> Sequence[float]:
        share = rate_at(self.step, self.done, self.common.warm_up)
        return [peak * share for peak in self.peaks]

    @abstractmethod
    def share(self, stage: str) -> float:
        """Of the seconds, what a stage has."""

    def budget(self, stage: str) -> float:
        return self._seconds * self.share(stage)

    def end_stage(self) -> None:
        with torch.no_grad():
            if self.average is not None:
                torch._foreach_copy_([weight.detach() for weight in self.weights], self.average)
        name = self.STAGES[self.stage]
        self.steps[name], self.step, self.stage = self.step, 0, self.stage + 1
        self._last = {}
        self.ended(name)
        if self.stage < len(self.STAGES):
            self.begin_stage()
        self.save()

    def save(self) -> None:
        if self._last:
            self._numbers(self._last)
        super().save()

    def _numbers(self, parts: Parts) -> dict[str, float]:
        """The terms and the gradient of the last step; InputError where they are none.

        It makes a GPU wait, so it is asked only where figures are logged and before weights are kept.
        """
        numbers = {label: float(value) for label, value in parts.items() if label != "loss"}
        if not all(map(math.isfinite, numbers.values())):
            name, step = self.STAGES[self.stage], self.total - 1 + self.FIRST
            rates = " or ".join(f"{peak:g}" for peak in self.peaks)
            raise InputError(
                f"The loss or gradient at step {step} ({name}) is not a number ({self.kept()}); lower the learning "
                f"rate ({rates}) and start in another output folder."
            )
        return numbers

    def told(self, parts: Parts, over: bool) -> None:
        self._last = parts
        if (self.step - 1) % self.common.log_every and not over:
            return
        name, step = self.STAGES[self.stage], self.total - 1 + self.FIRST
        told = self._numbers(parts)
        loss = sum(value for label, value in told.items() if label != "gradient")
        old = self.losses[name]
        self.losses[name] = loss if math.isnan(old) else 0.8 * old + 0.2 * loss
        self.journal({"event": name, "step": step, "loss": loss, **told, "seconds": round(self.seconds[name], 1)})

    def state(self) -> dict[str, Any]:
        return {
            "stage": self.stage,
            "steps": self.steps,
            "seconds": self.seconds,
            "model": self.model().state_dict(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        self.stage, self.steps, self.seconds = state["stage"], state["steps"], state["seconds"]
        self.model().load_state_dict(state["model"])
        if self.stage < len(self.STAGES):
            self.begin_stage()


def rate_at(step: int, done: float, warm_up: int) -> float:
    """The share of the full learning rate: a linear rise, and half a cosine down to 2 % over the stage."""
    return min(1.0, (step + 1) / max(warm_up, 1)) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(done, 1.0))))
