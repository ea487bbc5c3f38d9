"""Every config.pbtxt of the model repository against `serving/contract.py`."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from pinrec_core.serving.contract import ENSEMBLE, MAX_BATCH_SIZE, STAGES, Contract, StageContract

REPOSITORY = Path(__file__).parents[2] / "model_repository"
MODELS = (ENSEMBLE, *STAGES)
QUEUE_DELAY_MICROSECONDS = {"fetch_signals": 0, "embed_items": 0, "generate": 100, "retrieve": 100}


def read(name: str) -> model_config_pb2.ModelConfig:
    return text_format.Parse((REPOSITORY / name / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())


def tensors(configured) -> list[tuple[str, str, tuple[int, ...]]]:
    return [
        (tensor.name, model_config_pb2.DataType.Name(tensor.data_type).removeprefix("TYPE_"), tuple(tensor.dims))
        for tensor in configured
    ]


def specs(contracted) -> list[tuple[str, str, tuple[int, ...]]]:
    return [(spec.name, spec.dtype, spec.shape) for spec in contracted]


def test_repository_holds_exactly_the_contracts_models():
    assert {folder.name for folder in REPOSITORY.iterdir()} == {contract.name for contract in MODELS}
    for contract in STAGES:
        assert (REPOSITORY / contract.name / "1" / "model.py").is_file()
    # Without a version folder, which git only keeps with a file in it, Triton refuses to start.
    assert (REPOSITORY / ENSEMBLE.name / "1" / ".gitkeep").is_file()


@pytest.mark.parametrize("contract", MODELS, ids=lambda contract: contract.name)
def test_tensors_match_in_order(contract: Contract):
    config = read(contract.name)
    assert config.name == contract.name
    assert tensors(config.input) == specs(contract.inputs)
    assert tensors(config.output) == specs(contract.outputs)
    assert config.max_batch_size == MAX_BATCH_SIZE
    # Batches are cut where the presence of an optional input differs.
    assert not any(tensor.optional for tensor in config.input)


@pytest.mark.parametrize("contract", STAGES, ids=lambda contract: contract.name)
def test_stage_batches_requests_of_different_shapes(contract: StageContract):
    config = read(contract.name)
    assert config.backend == "python"
    assert config.WhichOneof("scheduling_choice") == "dynamic_batching"
    assert not config.dynamic_batching.preferred_batch_size
    assert config.dynamic_batching.max_queue_delay_microseconds == QUEUE_DELAY_MICROSECONDS[contract.name]
    assert not config.response_cache.enable
    ragged = {tensor.name: tensor.allow_ragged_batch for tensor in config.input}
    assert ragged == {spec.name: spec.is_ragged for spec in contract.inputs}
    kinds = [(group.kind, group.count) for group in config.instance_group]
    assert kinds == [(model_config_pb2.ModelInstanceGroup.KIND_CPU, 1)]


@pytest.mark.parametrize("contract", STAGES, ids=lambda contract: contract.name)
def test_stage_echoes_its_release_and_its_time(contract: StageContract):
    assert [spec.name for spec in contract.outputs[-2:]] == [contract.release_tensor, contract.elapsed_tensor]


def test_ensemble_is_the_linear_chain_of_the_stages():
    steps = read(ENSEMBLE.name).ensemble_scheduling.step
    assert [step.model_name for step in steps] == [stage.name for stage in STAGES]
    assert {step.model_version for step in steps} == {-1}
    known = {spec.name: spec for spec in ENSEMBLE.inputs}
    for step, stage in zip(steps, STAGES, strict=True):
        # Every input is wired to the tensor of its own name, from an earlier step or the request.
        assert dict(step.input_map) == {spec.name: spec.name for spec in stage.inputs}
        for spec in stage.inputs:
            assert (known[spec.name].dtype, known[spec.name].shape) == (spec.dtype, spec.shape)
        outputs = {spec.name: spec for spec in stage.outputs}
        assert all(key == value and key in outputs for key, value in step.output_map.items())
        fresh = {name: outputs[name] for name in step.output_map}
        assert not set(fresh) & set(known), "a later step may not shadow an earlier tensor"
        known |= fresh
    assert {spec.name for spec in ENSEMBLE.outputs} <= set(known)


def test_each_step_after_the_first_needs_the_one_before():
    for before, stage in itertools.pairwise(STAGES):
        assert {spec.name for spec in before.outputs} & {spec.name for spec in stage.inputs}


def test_tensors_by_hand():
    shapes = {spec.name: (spec.dtype, spec.shape, spec.kind) for spec in ENSEMBLE.inputs}
    assert shapes["user_id"] == ("INT64", (1,), int)
    assert shapes["search_query"] == ("UINT8", (-1,), str)
    assert shapes["include_seen"] == ("BOOL", (1,), bool)
    generate = {spec.name: (spec.dtype, spec.shape) for spec in STAGES[2].inputs}
    assert generate["content"] == ("INT8", (-1, -1))
    assert generate["id_emb"] == ("FP16", (-1, -1))
