"""A budget steers, it does not only label: the steering benchmark on a small planted world."""

import benchmarks.steering as steering
from pinrec_core.config import load_config
from pinrec_core.data.synthetic import SyntheticSpec, SyntheticWorld

OVERRIDES = {
    "train.max_steps": 250,
    "train.eval_every": 125,
    "train.max_minutes": 0.0,
    "model.max_history": 30,
    "data.test_share": 0.2,
}


def test_a_budget_moves_the_planted_rates(tmp_path):
    world = SyntheticWorld(SyntheticSpec(users=400, items=400, events=16_000))
    world.write(tmp_path / "data")
    config = load_config(steering.ROOT / "configs" / "synthetic.toml", OVERRIDES)
    trained = steering.prepare("mt_oc", world, tmp_path, config)
    users = trained.dataset.histories.user_ids[trained.dataset.split(trained.config).test]
    shares = (0.0, 0.5, 1.0)
    lists = [steering.ask(trained, users, {"save": share, "click": 1 - share}) for share in shares]
    saves, clicks = zip(*(rates_of(trained, users, items) for items in lists), strict=True)
    assert saves[0] < saves[1] < saves[2]
    assert clicks[0] > clicks[1] > clicks[2]
    # By a margin that labels alone could not make: the pure budgets differ by half of their mean.
    assert saves[2] - saves[0] > 0.25 * (saves[0] + saves[2])
    assert clicks[0] - clicks[2] > 0.25 * (clicks[0] + clicks[2])
    shared = [len(set(a) & set(b)) / len(a) for a, b in zip(lists[0], lists[2], strict=True)]
    assert sum(shared) / len(shared) < 0.5


def rates_of(trained, users, items):
    rates = steering.rates(trained, users, items)
    return rates["save_rate"], rates["click_rate"]
