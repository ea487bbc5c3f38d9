"""Two ranks train as one process on the joint batch would: two real processes under torchrun, over gloo."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pinrec_core.data.batches import WHOLE, BatchStream, Shard
from pinrec_core.errors import InvalidConfig
from pinrec_core.train.distributed import ALONE, Ranks, is_first_rank, join
from pinrec_core.train.loop import Trainer
from tests.ports import free_port
from tests.unit import two_ranks
from tests.unit.two_ranks import CASES

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What both ranks left behind."""
    folder = tmp_path_factory.mktemp("two_ranks")
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port",
        str(free_port("localhost")), "-m", "tests.unit.two_ranks", str(folder),
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    said = (folder / "said").open("w+")
    with said, subprocess.Popen(command, cwd=ROOT, env=environment, stdout=said, stderr=said) as torchrun:
        try:
            torchrun.wait(timeout=240)
        finally:
            torchrun.terminate()  # ends its ranks too
        said.seek(0)
        assert torchrun.returncode == 0, said.read()[-3_000:]
    return folder


@pytest.fixture(scope="module")
def of_ranks(folder):
    return [torch.load(folder / f"gradients-{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_have_the_gradients_of_one_on_the_joint_batch(of_ranks, case):
    alone = two_ranks.gradients(case)
    assert [of_rank[case].keys() for of_rank in of_ranks] == [alone.keys()] * 2
    largest = 0.0
    for name, wanted in alone.items():
        for found in (of_rank[case][name] for of_rank in of_ranks):
            assert (found is None) == (wanted is None), name
            if wanted is not None:
                torch.testing.assert_close(found, wanted, rtol=1e-4, atol=2e-6, msg=lambda m, n=name: f"{n}: {m}")
                largest = max(largest, float(wanted.abs().max()))
    assert largest > 0.01  # so that equal gradients say something
    unused = [name for name, value in alone.items() if value is None]
    assert len(unused) < len(alone) / 2


def test_a_rank_alone_has_other_gradients(of_ranks):
    """The test above can fail: the first rank's share by itself, with its own negatives, gives something else."""
    data, config = two_ranks.dataset(), two_ranks.config(**CASES["oc"], **{"train.batch_size": 3})
    stream = BatchStream(data, np.arange(two_ranks.NUM_USERS), config)
    trainer = Trainer(config, data, stream, torch.device("cpu"))
    trainer.step(0)
    name, gradient = next((n, p.grad) for n, p in trainer.model.named_parameters() if "head" in n and p.dim() == 2)
    assert not torch.allclose(of_ranks[0]["oc"][f"0 {name}"], gradient, rtol=1e-2, atol=1e-4)


def test_ranks_stay_equal_to_the_bit(of_ranks):
    first, second = of_ranks
    for case, found in first.items():
        assert all(v is None or torch.equal(v, second[case][name]) for name, v in found.items())


def test_only_the_first_rank_measures_and_all_know_what_it_found(folder, tmp_path):
    first, second = (json.loads((folder / f"trained-{rank}.json").read_text()) for rank in range(2))
    assert (first.pop("measured"), second.pop("measured")) == (2, 0)
    assert first == second
    assert (first["steps"], first["best_step"], first["stopped_by"]) == (4, 4, "max_steps")
    assert first["metrics"]["unordered_recall"] == 0.52
    alone = two_ranks.trained(tmp_path)
    assert alone["metrics"]["loss"] == pytest.approx(first["metrics"]["loss"], rel=1e-4)


def test_the_first_rank_leaves_the_run_of_one_process(folder, tmp_path):
    two_ranks.trained(tmp_path)
    assert sorted(p.name for p in (folder / "run").iterdir()) == sorted(p.name for p in (tmp_path / "run").iterdir())
    found, wanted = (load_file(where / "run" / "model.safetensors") for where in (folder, tmp_path))
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        # Adam divides by the size of a gradient: where that is next to nothing, so is what its sign decides.
        assert (found[name] - value).abs().mean() < 1e-4, name


def test_two_ranks_resume_to_the_very_weights(folder):
    whole, halves = (load_file(where / "run" / "last.safetensors") for where in (folder, folder / "halves"))
    assert whole.keys() == halves.keys()
    # All steps lie in the warm-up of the learning rate, which max_steps does not shape.
    assert all(torch.equal(whole[name], halves[name]) for name in whole)


def test_parts_of_a_batch_are_equal_runs():
    assert [Shard(rank, 3).bounds(7) for rank in range(3)] == [(0, 3), (3, 6), (6, 7)]
    assert [Shard(rank, 3).bounds(2) for rank in range(3)] == [(0, 1), (1, 2), (2, 2)]
    assert WHOLE.bounds(7) == (0, 7)


def test_shards_of_a_batch_part_its_users_and_share_its_negatives():
    config = two_ranks.config(**CASES["mt_oc, one to one"], **{"train.action_dropout": 0.5})
    stream = BatchStream(two_ranks.dataset(), np.arange(two_ranks.NUM_USERS), config)
    whole, parts = stream.batch(3), [stream.batch(3, Shard(rank, 2)) for rank in range(2)]
    for part in parts:
        assert torch.equal(part.candidate_ids, whole.candidate_ids)
        assert torch.equal(part.negative, whole.negative)
        assert (part.num_draws, part.num_rows) == (whole.num_draws, whole.num_rows)
    assert [len(part.inputs.lengths) for part in parts] == [3, 2]
    assert parts[0].own_candidates[1] == parts[1].own_candidates[0]
    for name in ("outcome", "target_offset", "targets", "mask", "candidate_content"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name)), name
    for name in ("item_ids", "actions", "surfaces"):
        assert torch.equal(torch.cat([getattr(part.inputs, name) for part in parts]), getattr(whole.inputs, name)), name


def test_alone_costs_nothing(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    ranks = join("cpu")
    assert (ranks, ranks.alone, ranks.is_first, is_first_rank()) == (ALONE, True, True, True)
    assert not torch.distributed.is_initialized()
    rows = torch.ones(3, 2, requires_grad=True)
    assert ALONE.gather_rows(rows, 3) is rows
    assert ALONE.agree(lambda: {"x": 1.5}) == {"x": 1.5}
    monkeypatch.setenv("RANK", "1")
    assert not is_first_rank()


def test_more_ranks_than_users_in_a_batch_are_refused():
    data, config = two_ranks.dataset(), two_ranks.config(**{"train.batch_size": 1})
    stream = BatchStream(data, np.arange(two_ranks.NUM_USERS), config)
    with pytest.raises(InvalidConfig, match=r"train\.batch_size has value 1; allowed: at least 2, one user"):
        Trainer(config, data, stream, torch.device("cpu"), Ranks(Shard(0, 2), torch.device("cpu")))
