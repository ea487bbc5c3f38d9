"""Sections of a report: the paper's Table 1, Figures 4 and 5, ablations, who and what is found, claims, other tables.

All take results user by user (`UserResults`), one a seed, of the same users in the same order. Tables and plots follow.
Letters: S seeds, U users.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pinrec_core.eval.bootstrap import Interval, Values, interval, ratio_interval
from pinrec_core.eval.report import CONFIDENCE, Cell, Gain, Sample, Table, shown
from pinrec_core.eval.results import UserResults

MIN_USERS = 100
"""Users of a surface that has a column of its own."""
MIN_TARGETS = 300
"""Targets of an outcome that Figure 4 shows."""


@dataclass(frozen=True)
class Arm:
    """One model in a comparison: `results` one a seed. Raises ValueError unless all are of the same users."""

    label: str
    results: tuple[UserResults, ...]
    models: tuple[str, ...] = ()
    """Names of the trained models, one a seed; arms that read the same ones in other ways are compared seed by seed."""
    seeds: tuple[int, ...] = ()
    """Of the results, where it is known."""
    commits: tuple[str, ...] = ()
    """That trained the models, where it is known."""

    def __post_init__(self) -> None:
        first = self.results[0].user_ids
        for other in self.results[1:]:
            if not np.array_equal(first, other.user_ids):
                raise ValueError(f"{self.label}: results are of other users; allowed: the same ones for every seed")

    @property
    def users(self) -> int:
        """U."""
        return self.results[0].num_users

    def with_seeds_of(self, other: Arm) -> Arm:
        """The results whose seeds the other arm has too; itself where that is not known."""
        places = [place for place, seed in enumerate(self.seeds) if seed in other.seeds]
        if not places:
            return self
        models = tuple(self.models[place] for place in places) if self.models else ()
        results, seeds = tuple(self.results[place] for place in places), tuple(self.seeds[place] for place in places)
        return replace(self, results=results, models=models, seeds=seeds)

    def values(self, name: str) -> NDArray[np.float64]:
        """A field of the results, float64 [S, U]."""
        return np.stack([np.asarray(getattr(result, name), dtype=np.float64) for result in self.results])

    def on(self, name: str, chosen: NDArray[np.bool_] | None = None) -> Interval:
        """Mean of a field over the chosen users, bool [U], or all."""
        return interval(self.values(name), chosen, CONFIDENCE)

    def ratio(self, over: Arm, name: str, chosen: NDArray[np.bool_] | None = None) -> Interval:
        """A field's mean / that of another arm, on the same users: all, or the chosen, bool [U]."""
        return self.ratio_of(over, self.values(name), over.values(name), chosen, chosen)

    def gain(self, over: Arm, name: str, chosen: NDArray[np.bool_] | None = None) -> Gain:
        """`ratio` as a relative change."""
        return Gain(self.ratio(over, name, chosen).minus(1))

    def targets(self, masks: Sequence[NDArray[np.bool_]]) -> tuple[Values, Values]:
        """Each user's share of hits among the chosen targets (a mask a seed), and their number: [S, U] each."""
        pairs = [result.per_user(mask) for result, mask in zip(self.results, masks, strict=True)]
        return np.stack([share for share, _ in pairs]), np.stack([number for _, number in pairs])

    def on_surface(self, surface: str) -> tuple[Values, Values]:
        """Eq. 6 among the targets on a surface, and which users have any: bool [S, U] each."""
        pairs = [r.any_hit_of(r.target_surface == r.surfaces.index(surface) + 1) for r in self.results]
        return np.stack([hit for hit, _ in pairs]), np.stack([has for _, has in pairs])

    def surface_ratio(self, over: Arm, surface: str) -> Interval:
        """Mean of `on_surface` / that of another arm, over the users who have any."""
        (hit, has), (other, others) = self.on_surface(surface), over.on_surface(surface)
        return self.ratio_of(over, hit, other, has, others)

    def surface_gain(self, over: Arm, surface: str) -> Gain:
        """`surface_ratio` as a relative change."""
        return Gain(self.surface_ratio(over, surface).minus(1))

    def ratio_of(
        self, over: Arm, own: Values, other: Values, weights: Values | None, other_weights: Values | None
    ) -> Interval:
        """Mean of this arm's values / that of another arm's, on the same users: [S, U] each, weighted."""
        same = bool(self.models) and self.models == over.models
        return ratio_interval(own, other, weights, other_weights, same_models=same, confidence=CONFIDENCE)

    def of_outcome(self, outcome: str) -> tuple[Values, Values]:
        """`targets` that were engaged with `outcome`."""
        return self.targets([r.target_outcome == r.outcomes.index(outcome) for r in self.results])


@dataclass(frozen=True)
class Comparison:
    """Table 1: models beside each other, overall and by surface."""

    title: str
    dataset: str
    arms: tuple[Arm, ...]
    reference: str = ""
    """Label of the arm that the others are divided by; empty = none."""
    note: str = ""
    command: str = ""

    def sample(self) -> Sample:
        """Of the arm with the most seeds."""
        return sample_of(self.dataset, self.arms, self.command)

    def tables(self) -> list[Table]:
        """Eq. 6, its ratios, and the other readings."""
        first = self.arms[0].results[0]
        groups = {f"all ({first.num_users:,})": None, **_surfaces(first)}
        header = ("model", *groups)
        hits = tuple(_row(arm, (arm.on("any_hit", of) for of in groups.values())) for arm in self.arms)
        tables = [Table("Any target within the top k of any embedding (Eq. 6), users by their first target's surface",
                        header, hits)]  # fmt: skip
        if base := next((arm for arm in self.arms if arm.label == self.reference), None):
            gains = tuple(
                _row(arm, (arm.gain(base, "any_hit", of) for of in groups.values()))
                for arm in self.arms
                if arm is not base
            )
            tables.append(Table(f"The same, against {base.label}", header, gains))
        return [*tables, self._readings(), *self._target_surfaces()]

    def _target_surfaces(self) -> list[Table]:
        """Eq. 6 among the targets of one surface: a user's may lie on several, the first on an unknown one."""
        first = self.arms[0].results[0]
        counts = {name: int(first.any_hit_of(of)[1].sum()) for name, of in first.by_target_surface().items()}
        names = sorted((name for name in counts if counts[name] >= MIN_USERS), key=lambda name: -counts[name])
        if not names or not all(len(result.target_surface) for arm in self.arms for result in arm.results):
            return []
        header = ("model", *(f"{name} ({counts[name]:,})" for name in names))
        title = "Any target of a surface within the top k (Eq. 6), users with a target there"
        rows = tuple(_row(arm, (interval(*arm.on_surface(name), CONFIDENCE) for name in names)) for arm in self.arms)
        tables = [Table(title, header, rows)]
        if base := next((arm for arm in self.arms if arm.label == self.reference), None):
            others = [arm for arm in self.arms if arm is not base]
            gains = tuple(_row(arm, (arm.surface_gain(base, name) for name in names)) for arm in others)
            tables.append(Table(f"The same, against {base.label}", header, gains))
        return tables

    def _readings(self) -> Table:
        header = ("model", "seeds", "share of targets", "distinct within a user", "distinct over all", "coverage")
        rows: list[tuple[Cell, ...]] = []
        for arm in self.arms:
            over_all, coverage = (
                float(np.mean([getattr(result, name) for result in arm.results]))
                for name in ("proportion_unique", "coverage")
            )
            within = arm.on("unique_within")
            rows.append((arm.label, len(arm.results), arm.on("target_share"), within, over_all, coverage))
        return Table("Other readings", header, tuple(rows))

    def draw(self, stem: Path) -> list[Path]:
        """Both recalls."""
        from pinrec_core.eval.figures import point_ranges

        panels = [
            (title, [(arm.label, arm.on(name)) for arm in self.arms])
            for title, name in (("any target hit (Eq. 6)", "any_hit"), ("share of targets", "target_share"))
        ]
        return [point_ranges(stem.with_suffix(".png"), panels)]


@dataclass(frozen=True)
class Breakdown:
    """Whom and what each model finds: by outcome, by length of the history, by how often an item was trained on."""

    title: str
    dataset: str
    arms: tuple[Arm, ...]
    note: str = ""
    command: str = ""

    def sample(self) -> Sample:
        """Of the arm with the most seeds."""
        return sample_of(self.dataset, self.arms, self.command)

    def tables(self) -> list[Table]:
        """One a way of looking; the last only where training counts are known."""
        first = self.arms[0].results[0]
        history = {f"{name} ({of.sum():,})": of for name, of in first.by_history().items()}
        users = tuple(_row(arm, (arm.on("any_hit", of) for of in history.values())) for arm in self.arms)
        found = [
            self._of_targets("Share of targets, by outcome", first.by_outcome(), "by_outcome"),
            Table("Any target hit, by events in the history", ("model", *history), users),
        ]
        if frequency := first.by_frequency():
            title = "Share of targets, by engagements of training users with the item"
            found.append(self._of_targets(title, frequency, "by_frequency"))
        return found

    def _of_targets(self, title: str, groups: Mapping[str, NDArray[np.bool_]], method: str) -> Table:
        header = ("model", *(f"{name} ({of.sum():,})" for name, of in groups.items()))
        rows = tuple(_row(arm, (_recall(arm, method, name) for name in groups)) for arm in self.arms)
        return Table(title, header, rows)

    def draw(self, stem: Path) -> list[Path]:
        """Nothing."""
        return []


@dataclass(frozen=True)
class OutcomeMatrix:
    """Figure 4: all embeddings on one desired outcome, recall by the targets' actual one, as lift over a reference."""

    title: str
    dataset: str
    desired: Mapping[str, Arm]
    """Desired outcome -> the model conditioned on it alone."""
    reference: Arm | None
    """`uc`; without it recalls are shown instead of lifts."""
    min_targets: int = MIN_TARGETS
    note: str = ""
    command: str = ""

    def sample(self) -> Sample:
        """Of the arm with the most seeds."""
        return sample_of(self.dataset, tuple(self.desired.values()), self.command)

    def outcomes(self) -> list[str]:
        """Desired ones with enough targets, in the order given."""
        first = next(iter(self.desired.values())).results[0]
        return [name for name in self.desired if first.by_outcome().get(name, np.zeros(1)).sum() >= self.min_targets]

    def against_own(self, desired: str, actual: str) -> Interval:
        """Recall on targets of `actual` when `desired` is asked for / when `actual` itself is."""
        asked, own = self.desired[desired], self.desired[actual]
        (share, number), (own_share, own_number) = asked.of_outcome(actual), own.of_outcome(actual)
        return asked.ratio_of(own, share, own_share, number, own_number)

    def cell(self, desired: str, actual: str) -> Interval:
        """Lift of recall on targets of `actual` (0.1 = ten percent more), or the recall without a reference."""
        share, number = self.desired[desired].of_outcome(actual)
        if self.reference is None:
            return interval(share, number, CONFIDENCE)
        return ratio_interval(share, *_second(self.reference.of_outcome(actual), number), confidence=CONFIDENCE).minus(
            1
        )

    def tables(self) -> list[Table]:
        """The matrix, and what it says about each column; the counts where there are too few targets."""
        names = self.outcomes()
        first = next(iter(self.desired.values())).results[0]
        if not names:
            counts = tuple((name, int(of.sum())) for name, of in first.by_outcome().items())
            return [Table(f"No outcome has {self.min_targets} targets", ("outcome", "targets"), counts)]
        header = ("desired \\ actual", *(f"{name} ({first.by_outcome()[name].sum():,})" for name in names))
        cells = {(row, column): self.cell(row, column) for row in names for column in names}
        lifts = self.reference is not None
        rows = tuple(
            (row, *(Gain(cells[row, column]) if lifts else cells[row, column] for column in names)) for row in names
        )
        return [Table(f"Lift over {self.reference.label}" if self.reference else "Recall", header, rows),
                self._verdict(names, cells)]  # fmt: skip

    def _verdict(self, names: list[str], cells: Mapping[tuple[str, str], Interval]) -> Table:
        def of(name: str) -> tuple[Cell, ...]:
            own = cells[name, name]
            below = all(cells[other, name].mean < own.mean for other in names if other != name)
            clear = "–" if self.reference is None else _yes(own.low > 0)
            return name, clear, _yes(below)

        header = ("outcome", "diagonal above 0, interval clear of it", "every other cell of the column below it")
        return Table("", header, tuple(of(name) for name in names))

    def draw(self, stem: Path) -> list[Path]:
        """The heat map; nothing where no outcome has enough targets."""
        from pinrec_core.eval.figures import heat_map

        names = self.outcomes()
        if not names:
            return []
        cells = [[self.cell(row, column) for column in names] for row in names]
        values = np.array([[cell.mean for cell in row] for row in cells])
        lifts = self.reference is not None
        texts = [[shown(Gain(cell) if lifts else cell).replace(" [", "\n[") for cell in row] for row in cells]
        title = f"lift over {self.reference.label}" if self.reference else "recall"
        return [heat_map(stem.with_suffix(".png"), names, names, values, texts, title, centred=lifts)]


@dataclass(frozen=True)
class SweepPoint:
    """One way to make the same number of embeddings."""

    offsets_per_step: int
    num_steps: int
    latency_ms: NDArray[np.float64]
    """[n]: repeated measurements of one request's generation, prefill included."""
    arm: Arm


@dataclass(frozen=True)
class StepSweep:
    """Figure 5: embeddings a step against latency, recall and uniqueness, at a constant number of embeddings."""

    title: str
    dataset: str
    points: tuple[SweepPoint, ...]
    """The first one is what the others are divided by."""
    note: str = ""
    command: str = ""

    def sample(self) -> Sample:
        """Of the arm with the most seeds."""
        return sample_of(self.dataset, tuple(point.arm for point in self.points), self.command)

    def tables(self) -> list[Table]:
        """A row a point."""
        base = self.points[0]
        header = (
            "embeddings a step", "steps", "latency, ms: median [10 %, 90 %]", "latency / first",
            "any target hit", "hits / first", "share of targets", "share / first",
            "distinct within a user", "distinct / first", "distinct over all",
        )  # fmt: skip
        rows: list[tuple[Cell, ...]] = []
        for point in self.points:
            ratio = float(np.median(point.latency_ms) / np.median(base.latency_ms))
            cells: list[Cell] = [point.offsets_per_step, point.num_steps, _spread(point.latency_ms), ratio]
            for name in ("any_hit", "target_share", "unique_within"):
                cells += [point.arm.on(name), None if point is base else point.arm.gain(base.arm, name)]
            rows.append((*cells, float(np.mean([result.proportion_unique for result in point.arm.results]))))
        return [Table("", header, tuple(rows))]

    def draw(self, stem: Path) -> list[Path]:
        """The three curves."""
        from pinrec_core.eval.figures import curves

        panels = [
            ("latency, ms", [_spread(point.latency_ms) for point in self.points]),
            ("any target hit (Eq. 6)", [point.arm.on("any_hit") for point in self.points]),
            ("distinct items within a user", [point.arm.on("unique_within") for point in self.points]),
        ]
        x = [float(point.offsets_per_step) for point in self.points]
        return [curves(stem.with_suffix(".png"), "embeddings a step", x, panels)]


@dataclass(frozen=True)
class Ablations:
    """One thing changed at a time."""

    title: str
    dataset: str
    reference: Arm
    arms: tuple[Arm, ...]
    note: str = ""
    command: str = ""

    def sample(self) -> Sample:
        """Of the arm with the most seeds."""
        return sample_of(self.dataset, (self.reference, *self.arms), self.command)

    def tables(self) -> list[Table]:
        """A row a change; the first row is what is changed."""
        header = ("change", "seeds", "any target hit", "change of it", "share of targets", "change of that",
                  "distinct within a user")  # fmt: skip
        rows: list[tuple[Cell, ...]] = []
        for arm in (self.reference, *self.arms):
            cells: list[Cell] = [arm.label, len(arm.results)]
            for name in ("any_hit", "target_share"):
                cells += [arm.on(name), None if arm is self.reference else self._gain(arm, name)]
            rows.append((*cells, arm.on("unique_within")))
        return [Table("", header, tuple(rows))]

    def _gain(self, arm: Arm, name: str) -> Gain:
        """Over the reference with the same seeds: one seed is not compared with the mean of several."""
        return arm.gain(self.reference.with_seeds_of(arm), name)

    def draw(self, stem: Path) -> list[Path]:
        """Relative change of both recalls."""
        from pinrec_core.eval.figures import point_ranges

        if not self.arms:
            return []
        panels = [
            (title, [(arm.label, self._gain(arm, name).value) for arm in self.arms])
            for title, name in (("change of any target hit", "any_hit"), ("change of share of targets", "target_share"))
        ]
        return [point_ranges(stem.with_suffix(".png"), panels)]


@dataclass(frozen=True)
class Claim:
    """A claim, the bar that it must clear, and what was found."""

    name: str
    bar: str
    found: Cell
    holds: bool | None
    """None = not measured."""
    note: str = ""
    seeds: str = ""
    """That it rests on: one number, or those of both sides of a ratio."""


@dataclass(frozen=True)
class Claims:
    """Which claims hold, at a glance."""

    title: str
    claims: tuple[Claim, ...]
    note: str = ""

    def sample(self) -> None:
        """Each claim's own section says what it rests on."""
        return

    def tables(self) -> list[Table]:
        """A row a claim."""
        words = {True: "holds", False: "**does not hold**", None: "not measured"}
        rows = tuple((c.name, c.bar, c.found, words[c.holds], c.seeds, c.note) for c in self.claims)
        return [Table("", ("claim", "bar", "found", "verdict", "seeds", "remark"), rows)]

    def draw(self, stem: Path) -> list[Path]:
        """Nothing."""
        return []


@dataclass(frozen=True)
class Facts:
    """Any other tables, for example speed."""

    title: str
    facts: tuple[Table, ...]
    note: str = ""
    of: Sample | None = field(default=None)

    def sample(self) -> Sample | None:
        """As given."""
        return self.of

    def tables(self) -> list[Table]:
        """As given."""
        return list(self.facts)

    def draw(self, stem: Path) -> list[Path]:
        """Nothing."""
        return []


def sample_of(dataset: str, arms: Sequence[Arm], command: str = "") -> Sample:
    """What figures of these arms rest on."""
    commits = tuple(sorted({commit for arm in arms for commit in arm.commits if commit}))
    return Sample(dataset, arms[0].users, max(len(arm.results) for arm in arms), command, commits)


def _row(arm: Arm, cells: Iterable[Cell]) -> tuple[Cell, ...]:
    return (arm.label, *cells)


def _surfaces(first: UserResults) -> dict[str, NDArray[np.bool_] | None]:
    """Columns of surfaces with enough users, most of them first."""
    groups = {name: of for name, of in first.by_surface().items() if of.sum() >= MIN_USERS}
    return {f"{name} ({of.sum():,})": of for name, of in sorted(groups.items(), key=lambda item: -item[1].sum())}


def _recall(arm: Arm, method: str, group: str) -> Interval:
    """Share of targets in a group that `UserResults.<method>` names; seeds without any count as nothing found."""
    masks = [getattr(result, method)().get(group, np.zeros(len(result.target_hit), bool)) for result in arm.results]
    share, number = arm.targets(masks)
    return interval(share, number, CONFIDENCE)


def _second(other: tuple[Values, Values], weights: Values) -> tuple[Values, Values, Values]:
    """Arguments of `ratio_interval` after the first: b, weights of a, weights of b."""
    share, number = other
    return share, weights, number


def _spread(values: NDArray[np.float64]) -> Interval:
    """Median and the middle 80 percent of repeated measurements."""
    low, median, high = np.quantile(values, [0.1, 0.5, 0.9])
    return Interval(float(median), float(low), float(high))


def _yes(is_so: bool) -> str:
    return "yes" if is_so else "**no**"
