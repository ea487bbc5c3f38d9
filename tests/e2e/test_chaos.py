"""Small versions of `make chaos-signals` and `make chaos-release`: the same code, without the bars of speed."""

from __future__ import annotations

import asyncio

import pytest

from benchmarks.chaos import durability, releases, signals
from benchmarks.chaos.mutations import mutations
from benchmarks.chaos.world import World, make_world
from pinrec_core.release import activate

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    made = make_world(tmp_path_factory.mktemp("chaos") / "world")
    activate(made.releases, 1)
    return made


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


def test_switches_and_deletions_under_load_fail_and_mix_nothing(world, tmp_path):
    with releases.running(world, tmp_path) as (stack, up_pid):
        target = releases.Target(world, stack, up_pid, capacity_s=1.0, baseline_s=1.0)
        switched, _, memory = asyncio.run(target.switch_under_load(2))
        assert switched.met, switched
        assert memory.figures["peak_mb"] >= memory.figures["before_mb"] > 0
        (deleted,) = asyncio.run(target.delete_under_load(200))
        assert deleted.met, deleted
        assert releases.damaged_releases(world, stack, mutations(world.releases / "2")[:8]).met
