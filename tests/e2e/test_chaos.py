"""Small versions of the `make chaos*` targets: the same code, without the bars of speed, on one running stack."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace

import pytest

from benchmarks.chaos import durability, faults, malformed, overload, releases, signals, soak
from benchmarks.chaos.calling import Load
from benchmarks.chaos.fleet import Fleet, running
from benchmarks.chaos.mutations import mutations
from benchmarks.chaos.world import World
from pinrec_core.release import activate

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def world(chaos_world) -> World:
    activate(chaos_world.releases, 1)
    return chaos_world


@pytest.fixture(scope="module")
def fleet(world, tmp_path_factory) -> Iterator[Fleet]:
    with running(world, tmp_path_factory.mktemp("fleet") / "stack", faults.prepared) as started:
        yield started


def test_a_power_loss_costs_nothing_that_was_acknowledged(world, tmp_path, requires_program):
    requires_program("strace")
    traced, cut = durability.power_loss(world, tmp_path / "power", appends=20)
    assert (traced.figures, traced.met) == ({"acknowledgements": 20, "synced": 20}, True)
    assert (cut.figures, cut.met) == ({"cuts": 2, "kept": 2}, True)


def test_a_service_that_is_killed_under_load_loses_and_doubles_nothing(world, tmp_path):
    damage, fresh = signals.kill_under_load(world, tmp_path, kills=3)
    assert damage.met, damage
    assert fresh.met, fresh
    assert damage.figures["acknowledged"] > 0


def test_switches_and_deletions_under_load_fail_and_mix_nothing(fleet, world):
    target = releases.Target(fleet, capacity_s=1.0, baseline_s=1.0)
    switched, _, memory = asyncio.run(target.switch_under_load(2))
    # Not `met`: a capacity that was measured for a second may be too high, and then some are refused for load.
    seen = switched.figures
    assert (seen["failed"], seen["mixed"], seen["releases"]) == (0, 0, 2), switched
    assert memory.figures["peak_mb"] >= memory.figures["before_mb"] > 0
    (deleted,) = asyncio.run(target.delete_under_load(200))
    assert deleted.met, deleted
    assert releases.damaged_releases(fleet, mutations(world.releases / "2")[:8]).met


def test_hostile_input_breaks_nothing_and_gets_the_right_code(fleet):
    rows = asyncio.run(malformed.attack(fleet, 600))
    assert [row for row in rows if not row.met] == []
    assert sum(row.figures.get("tried", 0) for row in rows) >= 550


def test_overload_is_answered_or_refused_and_passes(fleet):
    """How many are answered in these two seconds is for `make chaos`: the callers may take both cores."""
    _, calm, goodput, *_ = asyncio.run(overload.flooded(fleet.gateway, seconds=2.0, is_pinned=False))
    marked = {"full", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED", "degraded: stages_unavailable"}
    assert set(calm.figures["seen"]) <= marked
    assert set(goodput.figures["seen"]) <= marked
    assert goodput.figures["seen"]["RESOURCE_EXHAUSTED"] > 0
    assert asyncio.run(answers_in_full(fleet.gateway))


async def answers_in_full(gateway: str) -> bool:
    """Whether what is asked twice a second is soon answered in full again."""
    async with Load(gateway, rate=2.0) as load:
        return await load.settle(2.0, at_most=60.0)


def test_faults_under_load_are_marked_and_over_soon(fleet, monkeypatch):
    """The bars of time are those of `make chaos`; here nothing may be unmarked, lost, or stay broken."""
    monkeypatch.setattr(faults, "BEFORE_S", 0.2)
    monkeypatch.setattr(faults, "STEADY_S", 0.5)
    wanted = ("kill -9 of the stage retrieve", "clients that never read", "clocks of gateway and signals +2 h")
    chosen = [replace(one, hold_s=min(one.hold_s, 1.0)) for one in faults.listed(fleet) if wanted_in(one.name, wanted)]
    assert len(chosen) == len(wanted)
    *tried, lost = faults.try_all(fleet, chosen, capacity_s=0.5)
    assert [row.figures["unmarked"] for row in tried] == [{}] * len(wanted)
    assert all(row.figures["recovery_s"] < float("inf") for row in tried), tried
    assert lost.met, lost


def wanted_in(name: str, wanted: tuple[str, ...]) -> bool:
    return any(words in name for words in wanted)


def test_a_soak_looks_at_every_part(fleet):
    _, errors, memory = soak.soak(fleet, seconds=1.0, capacity_s=0.3, looks=5)
    assert errors.figures["seen"]["full"] > 0
    assert {name: len(samples) for name, samples in errors.figures["memory_mb"].items()} == dict.fromkeys(
        fleet.parts, 5
    )
    assert "triton" in memory.measured
