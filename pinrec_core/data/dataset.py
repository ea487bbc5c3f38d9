"""A data folder in memory, ready for training: vocabulary, histories, item content, text encoder.

Content: an item's `embedding`, else its text through the text encoder, L2-normalized and quantized to INT8, so that
training sees exactly what serving sees. Queries of the log get their row from the text encoder. Where items bring
embeddings and text, the encoder is regressed from the text to the embeddings, so that queries live in the items' own
space; where they bring embeddings without text, it is the plain encoder of the queries' texts at that width.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pinrec_core.codec import dequantize, quantize
from pinrec_core.config import Config
from pinrec_core.data.histories import Histories, Split, split_users
from pinrec_core.errors import InvalidData
from pinrec_core.event_log.catalog import Catalog
from pinrec_core.event_log.contract import UNKNOWN_SURFACE, DatasetFacts, load_folder
from pinrec_core.event_log.events import EventLog
from pinrec_core.event_log.problems import Problem
from pinrec_core.release import ItemTable
from pinrec_core.schema import SEARCH_ACTION, UNKNOWN_CODE, ItemType, Vocabulary
from pinrec_core.text_encoder import TextEncoder

_FIT_TEXTS = 50_000
"""Items from which the text encoder learns where embeddings lie."""


class Fitted(NamedTuple):
    """What a data set was read into, and a model trained on it is bound to."""

    vocabulary: Vocabulary
    text_encoder: TextEncoder


@dataclass(frozen=True)
class Dataset:
    """What `open_dataset` returns."""

    name: str
    vocabulary: Vocabulary
    histories: Histories
    items: ItemTable
    """Pins of items.parquet and the search queries seen, by ascending id; a history may hold pins that it lacks."""
    titles: dict[int, str]
    """Item id -> words to show a person; items without any are absent."""
    text_encoder: TextEncoder
    watermark_ms: int
    """Newest timestamp of the log."""
    deleted: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    """Pins that are not to be served any more; the item log names them (data/carry.py)."""
    items_sequence: int = 0
    """Changes of the item log up to this number are inside."""
    findings: tuple[Problem, ...] = ()
    """Repairs and notices of the folder."""

    @property
    def fitted(self) -> Fitted:
        """Vocabulary and text encoder, which a model of this data set needs with any newer log."""
        return Fitted(self.vocabulary, self.text_encoder)

    @property
    def served_pins(self) -> NDArray[np.int64]:
        """Rows of `items` that an index holds: the pins that were not deleted."""
        return np.flatnonzero((self.items.types == ItemType.PIN) & ~np.isin(self.items.ids, self.deleted))

    @cached_property
    def target_outcomes(self) -> NDArray[np.int32]:
        """Outcome index of each event of the histories, -1 where it is no target: int32 [E].

        A target is a pin that `items` lists, engaged with one of the outcomes; any other event is context.
        """
        h = self.histories
        outcomes = self.vocabulary.outcome_of_action[h.actions]
        outcomes[h.item_types != ItemType.PIN] = -1
        candidates = np.flatnonzero(outcomes >= 0)
        outcomes[candidates[self.items.rows(h.item_ids[candidates]) < 0]] = -1
        return outcomes

    def popular(self, per_list: int) -> NDArray[np.int64]:
        """Most engaged pins that may be served: int64 [num_surfaces + 1, A, per_list].

        Most targets of the outcome first, ties to the lower id. Surface row 0 counts all surfaces, events of unknown
        surface too. Short lists are padded with -1.
        """
        h, v = self.histories, self.vocabulary
        result = np.full((len(v.surfaces) + 1, len(v.outcomes), per_list), -1, dtype=np.int64)
        targets = np.flatnonzero((self.target_outcomes >= 0) & ~np.isin(h.item_ids, self.deleted))
        outcome, surface = self.target_outcomes[targets], h.surfaces[targets]
        row = self.items.rows(h.item_ids[targets])
        for a in range(len(v.outcomes)):
            for s in range(len(v.surfaces) + 1):
                chosen = (outcome == a) & ((surface == s) | (s == 0))
                counts = np.bincount(row[chosen], minlength=len(self.items.ids))
                best = np.argsort(-counts, kind="stable")[:per_list]
                best = best[counts[best] > 0]
                result[s, a, : len(best)] = self.items.ids[best]
        return result

    def split(self, config: Config) -> Split:
        """`split_users`, without the users who have fewer than `data.min_history` targets."""
        enough = self.histories.count_by_user(self.target_outcomes >= 0) >= config.data.min_history
        sides = split_users(self.histories.user_ids, config.data)
        return Split(*(side[enough[side]] for side in (sides.train, sides.validation, sides.test)))


def open_dataset(folder: Path, config: Config, progress: bool = False, fitted: Fitted | None = None) -> Dataset:
    """Read a folder in the event-log contract (event_log/contract.py). Repairs and notices are counted and logged.

    The vocabulary and the text encoder are made from the folder, unless a trained model's are given as `fitted`: a
    newer log then lands in the codes and the content space that the model knows. Raises InvalidData if the folder
    breaks the contract, lacks a configured outcome or brings embeddings of another width than the fitted encoder's.
    """
    loaded = load_folder(Path(folder), progress)
    if fitted is None:
        encoder = _fit_text_encoder(loaded.items, loaded.events.query_texts, config)
        fitted = Fitted(_vocabulary(loaded.events, loaded.facts, config), encoder)
    vocabulary, encoder = fitted
    if loaded.items.content is not None and loaded.items.content.shape[1] != encoder.dim:
        width = loaded.items.content.shape[1]
        raise InvalidData(f"items.parquet: column embedding has width {width}; allowed: the model's {encoder.dim}")
    histories = _histories(loaded.events, vocabulary)
    items = _item_table(loaded.items, loaded.events.query_texts, encoder)
    return Dataset(
        name=loaded.facts.name,
        vocabulary=vocabulary,
        histories=histories,
        items=items,
        titles={**loaded.items.titles, **loaded.events.query_texts},
        text_encoder=encoder,
        watermark_ms=int(histories.timestamps_ms.max()),
        findings=loaded.findings,
    )


def _vocabulary(events: EventLog, facts: DatasetFacts, config: Config) -> Vocabulary:
    """Outcomes are actions of listed pins; the others' actions are context."""
    is_pin = events.item_types == ItemType.PIN
    assert events.listed is not None, "the folder was read with its items"
    counts = _name_counts(events.actions[is_pin & events.listed], events.action_names)
    by_rarity = sorted(counts, key=lambda name: (counts[name], name))
    outcomes = config.data.outcomes or facts.outcomes or tuple(by_rarity)
    for outcome in outcomes:
        if outcome not in counts:
            raise InvalidData(f"data.outcomes has {outcome!r}, which no pin of {facts.name} has; actions: {by_rarity}")
    used = np.unique(events.surfaces)
    surfaces = tuple(sorted({events.surface_names[code] for code in used} - {UNKNOWN_SURFACE}))
    searched = {events.surface_names[code] for code in np.unique(events.surfaces[~is_pin])} - {UNKNOWN_SURFACE}
    search_surfaces = facts.search_surfaces or tuple(sorted(searched))
    others = sorted(set(_name_counts(events.actions[is_pin], events.action_names)) - set(outcomes))
    search = [SEARCH_ACTION] if search_surfaces or not is_pin.all() else []
    return Vocabulary(
        positive_actions=outcomes,
        actions=(*outcomes, *others, *search),
        surfaces=tuple(sorted({*surfaces, *search_surfaces})),
        search_surfaces=search_surfaces,
        unconditioned=config.model.variant == "uc",
    )


def _name_counts(codes: NDArray[np.int32], names: list[str]) -> dict[str, int]:
    """How often each name occurs; names that do not are left out."""
    counts = np.bincount(codes, minlength=len(names)).tolist()
    return {name: count for name, count in zip(names, counts, strict=True) if count}


def _histories(events: EventLog, vocabulary: Vocabulary) -> Histories:
    """Events are sorted by user and time already; names turn into vocabulary codes."""
    user_ids, offsets = events.by_user()
    action_codes = np.array([vocabulary.action_code(name) for name in events.action_names], dtype=np.int32)
    surface_codes = np.array(
        [UNKNOWN_CODE if name == UNKNOWN_SURFACE else vocabulary.surface_code(name) for name in events.surface_names],
        dtype=np.int32,
    )
    return Histories(
        user_ids=user_ids,
        offsets=offsets,
        item_ids=events.item_ids,
        item_types=events.item_types.astype(np.uint8),
        actions=action_codes[events.actions],
        surfaces=surface_codes[events.surfaces],
        timestamps_ms=events.timestamps_ms,
    )


def _fit_text_encoder(items: Catalog, query_texts: dict[int, str], config: Config) -> TextEncoder:
    item_texts = [text for text in items.texts if text]
    if items.content is None or items.scale is None:
        return TextEncoder.fit([*item_texts, *query_texts.values()], config.data.content_dim)
    paired = np.flatnonzero(items.embedded & np.array([bool(text) for text in items.texts]))
    if not len(paired):
        return TextEncoder.fit(list(query_texts.values()), items.content.shape[1])
    if len(paired) > _FIT_TEXTS:
        paired = np.sort(np.random.default_rng(0).choice(paired, _FIT_TEXTS, replace=False))
    targets = dequantize(items.content[paired], items.scale[paired])
    return TextEncoder.fit_to([items.texts[row] for row in paired], targets)


def _item_table(items: Catalog, query_texts: dict[int, str], encoder: TextEncoder) -> ItemTable:
    """Pins and queries together; a row of text goes through the encoder, then INT8."""
    content = np.zeros((len(items.ids), encoder.dim), dtype=np.int8) if items.content is None else items.content
    scale = np.zeros(len(items.ids), dtype=np.float32) if items.scale is None else items.scale
    worded = np.flatnonzero(~items.embedded & np.array([bool(text) for text in items.texts], dtype=bool))
    if len(worded):
        content[worded], scale[worded] = quantize(encoder.encode([items.texts[row] for row in worded]))
    listed = set(items.ids[items.types == ItemType.SEARCH_QUERY].tolist())
    new = {item_id: text for item_id, text in query_texts.items() if item_id not in listed}
    query_content, query_scale = quantize(encoder.encode(list(new.values())))
    ids = np.concatenate([items.ids, np.array(list(new), dtype=np.int64)])
    order = np.argsort(ids, kind="stable")
    query_types = np.full(len(new), ItemType.SEARCH_QUERY, dtype=np.uint8)
    return ItemTable(
        ids=ids[order],
        types=np.concatenate([items.types, query_types])[order],
        content=np.concatenate([content, query_content])[order],
        scale=np.concatenate([scale, query_scale])[order],
    )
