"""The rows of the stack's benchmark by hand-made numbers; its empty ensembles and its recorded messages."""

from types import SimpleNamespace

import numpy as np
import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from benchmarks.serving import stack_rows as rows
from benchmarks.serving.empty_repository import VARIANTS, bytes_between_stages, canned, ensemble_config, step_config
from benchmarks.serving.recorded import as_messages, inputs_of, outputs_of, record
from benchmarks.serving.stack_rows import Lone, Loop, Open, Resource
from benchmarks.serving.triton_counts import Counts, mean_batches, parse_counts
from benchmarks.serving.wire import ensemble_request
from pinrec_core.messages import CandidateRequest, Candidates, Generated, IdEmbeddings, Signals
from pinrec_core.serving.contract import ENSEMBLE, STAGES

INT8, FLOAT32, INT8_WIDE, FLOAT32_WIDE = VARIANTS

# --- one call at a time ---


def lone(added_ms: float) -> Lone:
    """Two rounds of three calls; the stages of each took 8 + 12 ms."""
    calls = [[20.0 + added_ms] * 3, [20.0 + added_ms] * 3]
    return Lone({"gateway": calls}, {"gateway": [[{"generate": 8.0, "retrieve": 12.0}] * 3] * 2})


@pytest.mark.parametrize(("added_ms", "met"), [(3.0, True), (5.0, False)])
def test_what_is_added_is_judged_by_ratio_and_by_milliseconds(added_ms, met):
    row = rows.overhead_row(lone(added_ms), "gateway", [16.0, 16.0], is_bar=True)
    assert row.met is met
    assert row.figures["added_ms"] == [added_ms] * 2
    assert row.figures["of_own"][0] == pytest.approx((20 + added_ms) / 20)
    assert row.figures["of_alone"][0] == pytest.approx((20 + added_ms) / 16)


def test_what_is_added_is_the_median_of_calls_not_of_medians():
    """Calls of 10, 20 and 90 ms, 1 ms above their stages, but for the first: 5 ms."""
    calls = Lone({"gateway": [[10.0, 20.0, 90.0]]}, {"gateway": [[{"s": 5.0}, {"s": 19.0}, {"s": 89.0}]]})
    assert calls.added("gateway") == [1.0]


def test_a_small_addition_to_almost_nothing_misses_the_ratio():
    calls = Lone({"gateway": [[3.0]]}, {"gateway": [[{"generate": 1.0}]]})
    assert rows.overhead_row(calls, "gateway", [1.0], is_bar=True).met is False


# --- throughput ---


def loop(callers: int, rps: float, batches=None) -> Loop:
    return Loop(callers, rps, [1.0], 0, {"gateway": 2.0, "generate": 10.0}, batches or {})


def test_the_slowest_resource_is_the_stage_or_all_cores_together():
    """Batches of 32 in 0.64 s and 0.16 s; a request costs 20 + 5 ms of CPU, two cores do 80 of them a second."""
    seconds, cpu = {"generate": [0.64], "retrieve": [0.16]}, {"generate": [0.02], "retrieve": [0.005]}
    found = rows.resources(seconds, cpu, batch=32, cores=2)
    assert [(one.name, one.rps) for one in found] == [
        ("generate", [50.0]),
        ("retrieve", [200.0]),
        ("2 cores for all stages", [80.0]),
    ]
    assert rows.saturation_row([40.0], 32, found).figures["slowest"] == "generate"


@pytest.mark.parametrize(("rps", "met"), [([36.0, 40.0], True), ([34.0, 33.0], False)])
def test_throughput_is_held_against_the_slowest_resource_of_the_same_round(rps, met):
    found = [Resource("generate", [50.0, 50.0]), Resource("retrieve", [70.0, 70.0])]
    row = rows.saturation_row(rps, 32, found)
    assert row.met is met
    assert row.figures["ratio"][0] == pytest.approx(np.mean(rps) / 50)


def test_the_best_number_of_callers_has_the_highest_median():
    levels = {1: [loop(1, 20.0)] * 3, 32: [loop(32, 50.0), loop(32, 50.0), loop(32, 10.0)], 64: [loop(64, 49.0)] * 3}
    assert rows.best_level(levels) == 32
    assert rows.growth_row(levels[1], levels[32]).figures["ratio"][0] == pytest.approx(2.5)


def test_batches_must_form_where_requests_wait():
    stages = ("fetch_signals", "generate", "retrieve")
    formed = [
        loop(32, 50.0, {"fetch_signals": 2.0, "generate": 9.0, "retrieve": 5.0}),
        loop(32, 50.0, {"fetch_signals": 2.0, "generate": 9.0, "retrieve": 3.5}),
    ]
    row = rows.batches_row(formed, stages, stages[1:])
    assert row.figures["batches"] == {"fetch_signals": 2.0, "generate": 9.0, "retrieve": 4.25}
    assert row.met is True
    assert rows.batches_row(formed[1:], stages, stages[1:]).met is False


def test_cpu_of_a_request_is_the_sum_of_its_processes():
    assert rows.cpu_row([loop(32, 50.0)] * 2).measured.startswith("12.00 ms: generate 10.00, gateway 2.00")


# --- open loop ---


def opened(p99_ms: float, rate: float, not_full: int = 0, queue_ms: float = 50.0) -> Open:
    return Open(0.7, rate, rate, [p99_ms] * 100, not_full, {"shared": [queue_ms] * 100})


@pytest.mark.parametrize(("p99_ms", "not_full", "met"), [(60.0, 0, True), (61.0, 0, False), (40.0, 1, False)])
def test_p99_is_held_against_the_queue_and_nobody_may_be_refused(p99_ms, not_full, met):
    assert rows.queue_row(opened(p99_ms, 30.0, not_full), "shared").met is met


def test_a_rate_is_found_on_the_line_between_measured_ones():
    curve = [(10.0, 50.0), (20.0, 80.0), (30.0, 120.0)]
    assert rows.rate_at(100.0, curve) == pytest.approx(25.0)
    assert rows.rate_at(80.0, curve) == pytest.approx(20.0)
    assert rows.rate_at(200.0, curve) == 30.0
    assert rows.rate_at(49.0, curve) is None


def test_a_p99_that_falls_with_the_load_is_noise():
    assert rows.rate_at(100.0, [(10.0, 130.0), (20.0, 90.0), (30.0, 140.0)]) is None


def test_rates_are_compared_at_100_ms_where_both_reach_it():
    ours = [opened(40.0, 30.0), opened(100.0, 60.0)]
    naive = [opened(90.0, 5.0), opened(110.0, 15.0)]
    row = rows.naive_row(ours, naive)
    assert (row.figures["ratio"], row.figures["p99_ms"], row.met) == (pytest.approx(6.0), 100.0, True)


def test_rates_are_compared_at_the_lowest_p99_that_both_reach():
    """Naive is never below 150 ms; there ours does 40 requests/s."""
    ours = [opened(100.0, 30.0), opened(200.0, 50.0)]
    naive = [opened(150.0, 20.0), opened(300.0, 30.0)]
    row = rows.naive_row(ours, naive)
    assert (row.figures["ratio"], row.figures["p99_ms"], row.met) == (pytest.approx(2.0), 150.0, False)


def test_a_p99_that_falls_with_the_load_does_not_reach_100_ms():
    row = rows.naive_row([opened(50.0, 60.0)], [opened(140.0, 10.0), opened(90.0, 20.0)])
    assert (row.figures["p99_ms"], row.figures["ratio"]) == (140.0, pytest.approx(3.0))


# --- Triton's counts ---

METRICS = """# HELP nv_inference_count Number of inferences performed
# TYPE nv_inference_count counter
nv_inference_count{model="generate",version="1"} %d
nv_inference_count{model="pinrec",version="1"} 7
# HELP nv_inference_exec_count Number of model executions performed
# TYPE nv_inference_exec_count counter
nv_inference_exec_count{model="generate",version="1"} %d
nv_inference_exec_count{model="pinrec",version="1"} 7
"""


def test_mean_batches_are_requests_by_executions_since_the_first_look():
    before, after = parse_counts(METRICS % (100, 50)), parse_counts(METRICS % (164, 58))
    assert before["generate"] == Counts(100.0, 50.0)
    assert mean_batches(before, after) == {"generate": 8.0}
    assert mean_batches({}, after) == {"generate": 164 / 58, "pinrec": 1.0}


# --- empty ensembles ---


def parsed(text: str) -> model_config_pb2.ModelConfig:
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def tensors(configured) -> dict[str, str]:
    return {tensor.name: model_config_pb2.DataType.Name(tensor.data_type) for tensor in configured}


def test_the_empty_ensemble_has_the_real_one_s_tensors():
    for stage in STAGES:
        config = parsed(step_config(INT8, stage))
        assert tensors(config.input) == {spec.name: f"TYPE_{spec.dtype}" for spec in stage.inputs}
        assert tensors(config.output) == {spec.name: f"TYPE_{spec.dtype}" for spec in stage.outputs}
        assert [tensor.allow_ragged_batch for tensor in config.input] == [spec.is_ragged for spec in stage.inputs]
    ensemble = parsed(ensemble_config(INT8))
    assert tensors(ensemble.output) == {spec.name: f"TYPE_{spec.dtype}" for spec in ENSEMBLE.outputs}


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_every_step_reads_what_is_there_in_the_dtype_that_it_was_written(variant):
    ensemble = parsed(ensemble_config(variant))
    there = tensors(ensemble.input)
    for step, stage in zip(ensemble.ensemble_scheduling.step, STAGES, strict=True):
        config = parsed(step_config(variant, stage))
        assert (step.model_name, set(step.input_map)) == (config.name, set(tensors(config.input)))
        assert {name: there[name] for name in step.input_map} == tensors(config.input)
        there |= tensors(config.output)
    assert tensors(ensemble.output).items() <= there.items()


def signals(length: int = 2) -> Signals:
    ids = np.arange(length, dtype=np.int64)
    codes = np.ones(length, np.int32)
    content = np.array([[1, -2], [3, 4]], np.int8)
    scale = np.array([0.5, 1.0], np.float32)
    return Signals(content, scale, ids, codes.astype(np.uint8), codes, codes, ids, length, length, ids, 0, 0, 99)


def request() -> CandidateRequest:
    return CandidateRequest(7, 1, np.array([3, 2], np.int32), "héllo", np.empty(0, np.int64), False, 5, 1, 1_000)


def generated() -> Generated:
    one = np.array([1], np.int32)
    return Generated(np.ones((1, 2), np.float32), one, one, one, one, 4, 1)


def candidates() -> Candidates:
    return Candidates(
        np.array([11], np.int64), np.ones(1, np.float32), np.array([0], np.int32), np.array([0], np.int32)
    )


ANSWERS = {
    "fetch_signals": signals(),
    "embed_items": IdEmbeddings(np.ones((2, 3), np.float16)),
    "generate": generated(),
    "retrieve": candidates(),
}


@pytest.fixture
def recorded(tmp_path):
    """Two requests through stages that always answer the same."""

    def stage(answer):
        return SimpleNamespace(run=lambda batch: [answer] * len(batch))

    record([request(), request()], SimpleNamespace(**{name: stage(one) for name, one in ANSWERS.items()}), tmp_path)
    return tmp_path


def test_recorded_messages_come_back(recorded):
    for stage in STAGES:
        first, second = as_messages(stage.output, stage.output_fields, outputs_of(recorded, stage.name))
        for name, value in vars(ANSWERS[stage.name]).items():
            np.testing.assert_array_equal(getattr(first, name), value)
            np.testing.assert_array_equal(getattr(second, name), value)
    asked, _ = as_messages(STAGES[0].input, STAGES[0].inputs, inputs_of(recorded, "fetch_signals"))
    assert (asked.user_id, asked.search_query) == (7, "héllo")


def test_canned_answers_have_the_variant_s_dtypes_and_width(recorded):
    answer = outputs_of(recorded, "fetch_signals")[0]
    packed, plain = (canned(variant, STAGES[0], answer) for variant in (INT8, FLOAT32_WIDE))
    assert (packed["content"].dtype, packed["content"].shape) == (np.int8, (2, 2))
    assert (plain["content"].dtype, plain["content"].shape) == (np.float32, (2, 256))
    assert "content_scale" in packed
    assert "content_scale" not in plain
    assert packed["fetch_signals_release"].tolist() == [1]
    assert {name: array.dtype for name, array in plain.items()} == {
        spec.name: np.dtype(rows_dtype(spec.dtype)) for spec in FLOAT32_WIDE.specs(STAGES[0].outputs)
    }


def rows_dtype(triton: str) -> str:
    return {"FP32": "float32", "INT64": "int64", "INT32": "int32", "UINT8": "uint8", "INT8": "int8"}[triton]


def test_bytes_between_stages_are_those_of_the_inputs(recorded):
    """INT8: content 4 bytes and scales 8 into generate, ID embeddings 12; float32: 16, none and 24."""
    given = {stage.name: inputs_of(recorded, stage.name) for stage in STAGES}
    assert bytes_between_stages(FLOAT32, given) - bytes_between_stages(INT8, given) == (16 + 24) - (4 + 8 + 12)


def test_an_ensemble_request_has_every_input_as_bytes():
    from tritonclient.grpc.service_pb2 import ModelInferRequest

    message = ModelInferRequest.FromString(ensemble_request(request()))
    assert [tensor.name for tensor in message.inputs] == [spec.name for spec in ENSEMBLE.inputs]
    by_name = dict(zip((tensor.name for tensor in message.inputs), message.raw_input_contents, strict=True))
    assert by_name["search_query"] == "héllo".encode()
    assert np.frombuffer(by_name["counts"], np.int32).tolist() == [3, 2]
