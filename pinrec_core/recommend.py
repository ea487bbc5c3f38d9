"""The serving path in one process: what the Triton ensemble does, stage by stage, and must agree with.

A stage is anything with `run(batch) -> list`; see `messages.py` for what travels between them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pinrec_core.errors import PinrecError
from pinrec_core.generate.generator import Generator
from pinrec_core.messages import (
    CandidateRequest,
    Candidates,
    EmbedItemsInput,
    FetchSignalsInput,
    Generated,
    GenerateInput,
    RetrieveInput,
    Signals,
    gather,
)
from pinrec_core.model.id_embedding import IdEmbedder
from pinrec_core.release import Release
from pinrec_core.retrieve.search import Retriever
from pinrec_core.signals.batch_view import BatchView, open_batch_view
from pinrec_core.signals.fetch import FixedView, SignalFetcher
from pinrec_core.signals.realtime import HistoryStore, MemoryHistoryStore


@dataclass(frozen=True)
class Stages:
    """The four stages of one release, opened in this process."""

    fetch_signals: SignalFetcher
    embed_items: IdEmbedder
    generate: Generator
    retrieve: Retriever

    @classmethod
    def open(cls, release: Release, batch_view: Path | None = None, realtime: HistoryStore | None = None) -> Stages:
        """Open a release with a folder of batch views and a store of newer events (both may be absent)."""
        view = open_batch_view(batch_view) if batch_view is not None else BatchView.empty()
        return cls(
            SignalFetcher(release, FixedView(view), realtime if realtime is not None else MemoryHistoryStore()),
            IdEmbedder.open(release),
            Generator.open(release),
            Retriever.open(release),
        )


@dataclass(frozen=True)
class Recommendation:
    """Everything the path produced for one request."""

    signals: Signals
    generated: Generated
    candidates: Candidates


def recommend(requests: Sequence[CandidateRequest], stages: Stages) -> list[Recommendation]:
    """Candidates of a batch of requests; the first stage that fails a request raises its error."""
    signals = _all(stages.fetch_signals.run([gather(FetchSignalsInput, r) for r in requests]))
    id_embs = stages.embed_items.run([gather(EmbedItemsInput, *each) for each in zip(requests, signals, strict=True)])
    generated = stages.generate.run(
        [gather(GenerateInput, *each) for each in zip(requests, signals, id_embs, strict=True)]
    )
    candidates = _all(
        stages.retrieve.run([gather(RetrieveInput, *each) for each in zip(requests, signals, generated, strict=True)])
    )
    return [Recommendation(*each) for each in zip(signals, generated, candidates, strict=True)]


T = TypeVar("T")


def _all(results: Sequence[T | PinrecError]) -> list[T]:
    answers: list[T] = []
    for result in results:
        if isinstance(result, PinrecError):
            raise result
        answers.append(result)
    return answers
