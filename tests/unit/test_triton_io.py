"""Fields to tensors and back, and the edge that keeps one bad request from failing its batch."""

from __future__ import annotations

import gc
import logging
from dataclasses import dataclass, fields
from types import SimpleNamespace

import numpy as np
import pytest

from pinrec_core.errors import DeadlineExceeded, PinrecError
from pinrec_core.messages import CandidateRequest, EmbedItemsInput, FetchSignalsInput, IdEmbeddings, RetrieveInput
from pinrec_core.serving.contract import EMBED_ITEMS, ENSEMBLE, FETCH_SIGNALS, RETRIEVE, TensorSpec
from pinrec_core.serving.triton_io import (
    StageAnswer,
    decode_fields,
    decode_requests,
    encode_fields,
    encode_responses,
    note_trace_parents,
    to_array,
)

PARENT = f"00-{'a' * 32}-{'b' * 16}-01"


class FakeTensor:
    """What the stub does with outputs: DLPack is read once, when the tensor is made."""

    def __init__(self, name, array):
        assert array.size == 0, "with numpy 2 the stub sends no bytes for a plain array"
        self.name, self.array = name, array

    @classmethod
    def from_dlpack(cls, name, exported):
        assert exported.__dlpack_device__() == (1, 0)
        tensor = cls.__new__(cls)
        tensor.name, tensor.array = name, np.from_dlpack(exported)
        assert tensor.array.size, "the stub refuses empty DLPack tensors"
        return tensor


@dataclass
class FakeResponse:
    output_tensors: list[FakeTensor] | None = None
    error: str | None = None

    def arrays(self):
        return {tensor.name: tensor.array for tensor in self.output_tensors}


class FakePbUtils:
    Tensor = FakeTensor
    InferenceResponse = FakeResponse

    @staticmethod
    def TritonError(message):  # noqa: N802  the name in Triton
        return message

    @staticmethod
    def get_input_tensor_by_name(request, name):
        return request.get(name)


def request_of(specs, message) -> dict[str, np.ndarray]:
    return {name: array[None] for name, array in encode_fields(specs, message).items()}


def candidate_request(**changes) -> CandidateRequest:
    values = {
        "user_id": -(2**62) - 1,
        "surface": 2,
        "counts": np.array([3, 0], dtype=np.int32),
        "search_query": "crème brûlée",
        "exclude_item_ids": np.array([2**62 + 1], dtype=np.int64),
        "include_seen": True,
        "request_time_ms": 1_700_000_000_000,
        "release": 7,
        "remaining_ms": 100,
    }
    return CandidateRequest(**(values | changes))


def assert_same(got, expected):
    for field in fields(expected):
        mine, theirs = getattr(got, field.name), getattr(expected, field.name)
        if isinstance(theirs, np.ndarray):
            assert mine.dtype == theirs.dtype
            np.testing.assert_array_equal(mine, theirs)
        else:
            assert (type(mine), mine) == (type(theirs), theirs)


@pytest.mark.parametrize(
    "changes",
    [{}, {"search_query": "", "exclude_item_ids": np.empty(0, np.int64), "include_seen": False}],
    ids=["full", "empty"],
)
def test_round_trip_keeps_values_and_types(changes):
    message = candidate_request(**changes)
    arrays = encode_fields(ENSEMBLE.inputs, message)
    assert arrays["user_id"].tolist() == [-(2**62) - 1]
    assert arrays["search_query"].dtype == np.uint8
    assert len(arrays["search_query"]) == (0 if changes else 15)  # e with grave, u and e with accents: 2 bytes each
    assert_same(CandidateRequest(**decode_fields(ENSEMBLE.inputs, arrays)), message)


def test_wrong_number_of_axes_is_refused():
    spec = TensorSpec("content", "INT8", ("T", "D_sem"), np.ndarray)
    with pytest.raises(ValueError, match="content has shape"):
        to_array(spec, np.zeros(3, np.int8))


def test_arrays_are_cast_to_the_contracts_dtype():
    spec = TensorSpec("item_ids", "INT64", ("T",), np.ndarray)
    assert to_array(spec, np.array([1, 2], dtype=np.int32)).dtype == np.int64


def test_decoded_arrays_outlive_the_request():
    ids = np.array([[5, 6]], dtype=np.int64)
    request = request_of(EMBED_ITEMS.inputs, EmbedItemsInput(ids[0], 1, 0, 50))
    request["item_ids"] = ids
    (message,) = decode_requests([request], EMBED_ITEMS, FakePbUtils)
    ids[:] = 0  # Triton's memory is used again
    assert message.item_ids.tolist() == [5, 6]
    assert (message.release, message.deadline_ns, message.remaining_ms) == (1, 0, 50)


def test_a_request_that_cannot_be_read_fails_alone(caplog):
    message = FetchSignalsInput(1, 1, "", 0, 1, 100)
    good = request_of(FETCH_SIGNALS.inputs, message)
    broken_text = good | {"search_query": np.array([[255]], dtype=np.uint8)}
    missing = {name: array for name, array in good.items() if name != "user_id"}
    decoded = decode_requests([broken_text, good, missing], FETCH_SIGNALS, FakePbUtils)
    assert decoded[1] == message
    assert [type(decoded[0]), type(decoded[2])] == [PinrecError, PinrecError]
    assert decoded[0].message == "internal error of a serving stage"
    assert [record.exc_info is not None for record in caplog.records] == [True, True]


@pytest.mark.parametrize(
    ("parameters", "parent"),
    [("", ""), ("{}", ""), ('{"other": "traceparent"}', ""), (f'{{"traceparent": "{PARENT}"}}', PARENT)],
)
def test_the_span_of_a_traced_request_stands_in_its_message(parameters, parent):
    request = SimpleNamespace(parameters=lambda: parameters)
    message = FetchSignalsInput(1, 1, "", 0, 1, 100)
    note_trace_parents([message, PinrecError("unreadable")], [request, request])
    assert message.trace_parent == parent


def test_answers_carry_their_release_and_time():
    rows = np.arange(6, dtype=np.float16).reshape(3, 2)
    answers = [StageAnswer(IdEmbeddings(rows), release=4, elapsed_us=12), StageAnswer(DeadlineExceeded("too late"))]
    responses = encode_responses(answers, EMBED_ITEMS, FakePbUtils)
    arrays = responses[0].arrays()
    assert list(arrays) == ["id_emb", "embed_items_release", "embed_items_us"]
    assert arrays["id_emb"].shape == (1, 3, 2)
    assert arrays["id_emb"].tolist() == [rows.tolist()]
    assert arrays["embed_items_release"].tolist() == [[4]]
    assert arrays["embed_items_us"].tolist() == [[12]]
    assert responses[1] == FakeResponse(error="[DEADLINE_EXCEEDED] too late")


def test_an_answer_that_cannot_be_encoded_fails_alone(caplog):
    good = StageAnswer(IdEmbeddings(np.zeros((0, 2), np.float16)), 1, 0)
    responses = encode_responses([StageAnswer(object(), 1, 0), good], EMBED_ITEMS, FakePbUtils)
    assert responses[0].error == "[INTERNAL] internal error of a serving stage"
    assert responses[1].arrays()["id_emb"].shape == (1, 0, 2)
    assert "cannot be encoded" in caplog.text


@pytest.mark.parametrize("kind", ["read-only", "strided"])
def test_outputs_need_not_be_writable_or_contiguous(kind):
    rows = np.arange(8, dtype=np.float16).reshape(2, 4)
    given = rows if kind == "read-only" else np.asfortranarray(rows)
    if kind == "read-only":
        given.flags.writeable = False
    (response,) = encode_responses([StageAnswer(IdEmbeddings(given), 1, 0)], EMBED_ITEMS, FakePbUtils)
    gc.collect()
    assert response.arrays()["id_emb"][0].tolist() == rows.tolist()


def test_every_stage_message_round_trips_through_the_stub(caplog):
    caplog.set_level(logging.ERROR)
    empty = np.empty(0, np.int32)
    message = RetrieveInput(
        embeddings=np.zeros((0, 3), np.float32),
        allocation=empty,
        outcome=empty,
        counts=np.array([1, 2], np.int32),
        surface=1,
        exclude_item_ids=np.empty(0, np.int64),
        seen_item_ids=np.array([-1], np.int64),
        include_seen=False,
        release=1,
        deadline_ns=2**62,
        remaining_ms=5,
    )
    (decoded,) = decode_requests([request_of(RETRIEVE.inputs, message)], RETRIEVE, FakePbUtils)
    assert_same(decoded, message)
    assert not caplog.records
