"""First calls before the first request: lazily compiled code, thread pools and cold pages are paid for at opening."""

from __future__ import annotations

import sys
from typing import Any, TypeVar

import numpy as np

from pinrec_core.messages import EmbedItemsInput, GenerateInput
from pinrec_core.release import Release
from pinrec_core.serving.open_releases import Stage

S = TypeVar("S", bound=Stage)

_NO_DEADLINE_NS = sys.maxsize
_SMALL_BATCH = 4


TORCH_SCRIPT = 2
"""Calls of a shape that TorchScript wants before it is fast: it profiles the first and compiles on the next."""


def warmed(stage: S, request: Any, calls: int = 1) -> S:
    """`stage` after a lone request and a small batch; an error here keeps the release from being opened.

    Small, since a release is opened beside one that serves: a batch of 32 cost a core a tenth of a second.
    """
    for batch in ([request], [request] * _SMALL_BATCH):
        for _ in range(calls):
            stage.run(batch)
    return stage


def embed_items_request(release: Release) -> EmbedItemsInput:
    """A request for the ID embeddings of the longest history."""
    return EmbedItemsInput(
        item_ids=np.arange(release.config.model.max_history, dtype=np.int64),
        release=release.number,
        deadline_ns=_NO_DEADLINE_NS,
        remaining_ms=0,
    )


def generate_request(release: Release) -> GenerateInput:
    """A request with the longest history and every outcome."""
    length = release.config.model.max_history
    return GenerateInput(
        content=np.ones((length, release.content_dim), dtype=np.int8),
        content_scale=np.ones(length, dtype=np.float32),
        item_types=np.zeros(length, dtype=np.uint8),
        actions=np.zeros(length, dtype=np.int32),
        surfaces=np.zeros(length, dtype=np.int32),
        timestamps_ms=np.zeros(length, dtype=np.int64),
        sequence_length=length,
        id_emb=np.zeros((length, release.config.model.id_dim), dtype=np.float16),
        surface=0,
        counts=np.ones(len(release.vocabulary.outcomes), dtype=np.int32),
        request_time_ms=0,
        release=release.number,
        deadline_ns=_NO_DEADLINE_NS,
    )
