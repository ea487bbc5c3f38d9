"""From generated embeddings to what is searched: compression, allocation, step and offset, by hand."""

import numpy as np
import pytest
import torch

from pinrec_core.config import GenerateConfig
from pinrec_core.errors import InvalidConfig
from pinrec_core.generate import generator
from pinrec_core.generate.generator import length_groups, precision_of, program_maker, select
from pinrec_core.generate.static_rollout import compiled

CPU, GPU = torch.device("cpu"), torch.device("cuda")

PLAN = GenerateConfig(num_steps=2, offsets_per_step=2, compression_threshold=0.9)
X, Y, Z = np.eye(3, dtype=np.float32)


def test_select_by_hand():
    """Outcome 2: x x y x -> x stands for 3, y for 1; count 8 -> 6 and 2. Outcome 0: four directions, count 3."""
    near = (X + 0.1 * Y) / np.linalg.norm(X + 0.1 * Y)
    embeddings = np.stack([np.stack([X, near, Y, X]), np.stack([X, Y, Z, -X])])
    generated = select(embeddings, np.array([2, 0]), np.array([3, 0, 8], np.int32), PLAN)
    assert generated.outcome.tolist() == [2, 2, 0, 0, 0]
    assert generated.allocation.tolist() == [6, 2, 1, 1, 1]
    assert generated.step.tolist() == [0, 1, 0, 0, 1]
    assert generated.target_offset.tolist() == [1, 1, 1, 2, 1]
    assert generated.num_generated == 8
    assert generated.num_kept == 6
    np.testing.assert_array_equal(generated.embeddings, np.stack([X, Y, X, Y, Z]))


def test_select_without_outcomes_is_empty():
    generated = select(np.zeros((1, 4, 3), np.float32), np.array([], np.int64), np.zeros(3, np.int32), PLAN)
    assert generated.embeddings.shape == (0, 3)
    assert generated.num_kept == 0


@pytest.mark.parametrize(("has_any", "half"), [(True, ", bfloat16"), (False, "")])
def test_precisions_of_a_cpu(monkeypatch, has_any, half):
    monkeypatch.setattr(generator, "can_pack", lambda: has_any)
    assert precision_of("auto", CPU) == precision_of("float32", CPU) == "float32"
    for wrong in ("float16", *(() if has_any else ("bfloat16",))):
        with pytest.raises(InvalidConfig, match=f"value '{wrong}'; allowed on cpu: auto, float32{half}$"):
            precision_of(wrong, CPU)
    with pytest.raises(InvalidConfig, match=r"value 'bfloat16'; allowed on cpu, compiled: auto, float32$"):
        precision_of("bfloat16", CPU, "compiled")


def test_precisions_of_a_gpu():
    assert precision_of("auto", GPU) == "float16"
    assert precision_of("bfloat16", GPU) == "bfloat16"
    with pytest.raises(InvalidConfig, match=r"value 'half'; allowed on cuda: auto, float32, bfloat16, float16$"):
        precision_of("half", GPU)


def test_engines_of_a_device():
    assert program_maker("auto", CPU) is program_maker("eager", CPU) is program_maker("eager", GPU) is None
    assert program_maker("compiled", CPU) is compiled
    with pytest.raises(
        InvalidConfig, match=r"PINREC_DECODER has value 'graphs'; allowed on cpu: auto, eager, compiled"
    ):
        program_maker("graphs", CPU)


def test_short_histories_are_not_padded_to_long_ones():
    """Four of 10 beside one of 100 would be padded by 360 tokens: they go alone. Two would cost 180: they do not."""
    assert length_groups([10, 100, 10, 10, 10]) == [[1], [0, 2, 3, 4]]
    assert length_groups([10, 100, 10]) == [[1, 0, 2]]
    assert length_groups([50, 100, 51]) == [[1, 2, 0]], "half as long is long enough"
    assert length_groups([0] * 3 + [40] * 10 + [128] * 2) == [[13, 14], [*range(3, 13), 0, 1, 2]]
    assert length_groups([0] * 9 + [40] * 10 + [128] * 2) == [[19, 20], [*range(9, 19)], [*range(9)]]
    assert length_groups([7]) == [[0]]
    assert length_groups([]) == []
