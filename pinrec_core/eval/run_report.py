"""What `pinrec evaluate --report` shows of trained runs: every run measured on the same users of one data set.

Table 1 with the popular lists beside the runs, whom and what they find, Figure 4 of the first run that is conditioned
on outcomes and Figure 5 of the first run that emits several embeddings a step.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from pinrec_core.config import Config, GenerateConfig
from pinrec_core.data.dataset import Dataset
from pinrec_core.errors import InvalidConfig
from pinrec_core.eval.evaluate import PAST_OUTCOMES, TRUE_OUTCOMES, Reading, Requests, evaluate_users
from pinrec_core.eval.heldout import Corpus, HeldOut, train_frequency
from pinrec_core.eval.measure import measure_users
from pinrec_core.eval.protocols import Parts
from pinrec_core.eval.report import Section
from pinrec_core.eval.results import UserResults
from pinrec_core.eval.sections import Arm, Breakdown, Comparison, OutcomeMatrix, StepSweep, SweepPoint
from pinrec_core.model.pinrec import PinRec

LATENCY_REPEATS = 20


@dataclass(frozen=True)
class TrainedRun:
    """A model, and the data set as it reads it."""

    label: str
    model: PinRec
    dataset: Dataset
    parts: Parts
    """Validation and test users of all runs must be the same."""

    @property
    def config(self) -> Config:
        """The run's own."""
        return self.model.config

    def measured(self, reading: Reading, progress: bool = False) -> UserResults:
        """On the test users."""
        training = self.parts.training_data(self.dataset)
        return evaluate_users(self.model, self.dataset, self.parts.test, reading, training, progress)


def run_sections(
    runs: Sequence[TrainedRun], reading: Reading, first: UserResults | None = None, progress: bool = False
) -> list[Section]:
    """The sections of a report of `runs`, the first of which it is about; `first`: its results, if there are any yet.

    Raises InvalidConfig for a run that was trained or would be measured on other users.
    """
    _check_users(runs)
    arms = [Arm(runs[0].label, (runs[0].measured(reading, progress) if first is None else first,))]
    arms += [Arm(run.label, (run.measured(reading, progress),)) for run in runs[1:]]
    past = [
        Arm(f"{run.label}, budget of the past", (run.measured(replace(reading, conditioning=PAST_OUTCOMES), progress),))
        for run in runs
        if reading.conditioning == TRUE_OUTCOMES and run.config.model.variant != "uc"
    ]
    reference = next((arm for run, arm in zip(runs, arms, strict=True) if run.config.model.variant == "uc"), None)
    lists = [_popular(runs[0], reading, length) for length in (reading.k, reading.k * reading.num_targets)]
    name, note = runs[0].dataset.name, _note(runs[0], reading)
    against = arms[0].label if reference is None else reference.label
    sections: list[Section] = [
        Comparison("Models beside each other (Table 1)", name, (*arms, *past, *lists), against, note),
        Breakdown("Whom and what they find", name, tuple(arms)),
    ]
    if (conditioned := _first(runs, ("oc", "mt_oc"))) is not None:
        sections.append(_outcome_matrix(conditioned, reading, reference, progress))
    if (stepped := _first(runs, ("mt_oc",))) is not None:
        sections.append(_step_sweep(stepped, reading, progress))
    return sections


def _check_users(runs: Sequence[TrainedRun]) -> None:
    for run in runs[1:]:
        same = np.array_equal(run.parts.train_rows, runs[0].parts.train_rows)
        same &= _targets(run) == _targets(runs[0])
        if not same:
            raise InvalidConfig(
                f"run {run.label} was trained on other users or other outcomes than {runs[0].label}; allowed: runs of "
                "one data set with the same outcomes, split_seed, shares and min_history in [data]"
            )


def _targets(run: TrainedRun) -> list[list[int]]:
    return [user.targets.tolist() for user in run.parts.test]


def _first(runs: Sequence[TrainedRun], variants: tuple[str, ...]) -> TrainedRun | None:
    return next((run for run in runs if run.config.model.variant in variants), None)


def _note(run: TrainedRun, reading: Reading) -> str:
    seen = "left out" if reading.drop_seen else "kept"
    return (
        f"Test users, none of whom was trained on; a user's last {reading.num_targets} target events are the targets. "
        f"As many embeddings as targets, divided over outcomes by `{reading.conditioning}`; each retrieves its top "
        f"{reading.k} of {len(Corpus.of(run.dataset).ids):,} pins, those the user has seen {seen}."
    )


def _popular(run: TrainedRun, reading: Reading, length: int) -> Arm:
    """One list of the most engaged pins for everybody."""
    corpus = Corpus.of(run.dataset)
    counts = train_frequency(run.dataset, corpus, run.parts.train_rows)
    scores = torch.from_numpy(counts.astype(np.float32))

    def score(users: list[HeldOut]) -> torch.Tensor:
        return scores.expand(len(users), 1, -1).clone()

    found = measure_users(
        score, run.dataset, corpus, run.parts.test, length, reading.num_targets, reading.drop_seen, train_counts=counts
    )
    return Arm(f"popularity@{length}", (found,))


def _outcome_matrix(run: TrainedRun, reading: Reading, reference: Arm | None, progress: bool) -> OutcomeMatrix:
    desired = {
        outcome: Arm(run.label, (run.measured(replace(reading, conditioning=outcome), progress),))
        for outcome in run.dataset.vocabulary.outcomes
    }
    note = "All embeddings are on the desired outcome; recall is of the targets of the actual one."
    if reference is None:
        note += " No `uc` run stands beside this one, so recalls are shown instead of lifts."
    title = f"Conditioning on another outcome (Figure 4): {run.label}"
    return OutcomeMatrix(title, run.dataset.name, desired, reference, note=note)


def _step_sweep(run: TrainedRun, reading: Reading, progress: bool) -> StepSweep:
    """Powers of two up to what was trained, each making `num_targets` embeddings or a step more."""
    targets = run.config.targets
    trained = targets.window_size if targets.window_pick == "one_to_one" else targets.max_offset
    plans = []
    offsets = 1
    while offsets <= min(trained, reading.num_targets):
        steps = -(-reading.num_targets // offsets)
        plans.append(replace(run.config.generate, offsets_per_step=offsets, num_steps=steps))
        offsets *= 2
    points = [
        SweepPoint(plan.offsets_per_step, plan.num_steps, times, _read_with(run, reading, plan, progress))
        for plan, times in zip(plans, _latencies_ms(run, plans), strict=True)
    ]
    note = (
        f"{reading.num_targets} embeddings for a user, few or many a step. Latency: a request with one outcome and the "
        f"longest history among the test users, prefill included, {LATENCY_REPEATS} times, plans in turn."
    )
    title = f"Embeddings a step (Figure 5): {run.label}"
    return StepSweep(title, run.dataset.name, tuple(points), note)


def _read_with(run: TrainedRun, reading: Reading, plan: GenerateConfig, progress: bool) -> Arm:
    configured = run.model.config
    run.model.config = replace(configured, generate=plan)
    try:
        results = run.measured(reading, progress)
    finally:
        run.model.config = configured
    return Arm(f"{plan.num_steps} x {plan.offsets_per_step}", (results,))


@torch.inference_mode()
def _latencies_ms(run: TrainedRun, plans: list[GenerateConfig]) -> NDArray[np.float64]:
    """Of one user's rollout on one outcome, after a first that does not count: float64 [plans, LATENCY_REPEATS].

    Plans take turns, so that what else the machine does meets all of them.
    """
    requests = Requests(run.model.eval(), run.dataset, run.dataset.vocabulary.outcomes[0])
    user = max(run.parts.test, key=lambda user: user.stop - user.start)
    times = np.zeros((len(plans), LATENCY_REPEATS + 1))
    for turn in range(LATENCY_REPEATS + 1):
        for row, plan in enumerate(plans):
            started = time.perf_counter()
            requests.roll_out([user], plan)
            times[row, turn] = 1_000 * (time.perf_counter() - started)
    return times[:, 1:]
