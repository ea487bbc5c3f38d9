"""A data folder in memory, ready for training: vocabulary, histories, item content, text encoder.

Content: an item's `embedding`, else its text through the text encoder, L2-normalized and quantized to INT8, so that
training sees exactly what serving sees. Queries of the log get their row from the text encoder. Where items bring
embeddings and text, the encoder is regressed from the text to the embeddings, so that queries live in the items' own
space; where they bring embeddings without text, it is the plain encoder of the queries' texts at that width.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

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

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Dataset:
    """What `open_dataset` returns."""

    name: str
    vocabulary: Vocabulary
    histories: Histories
    items: ItemTable
    """Pins of items.parquet and the search queries seen, by ascending id."""
    titles: dict[int, str]
    """Item id -> words to show a person; items without any are absent."""
    text_encoder: TextEncoder
    watermark_ms: int
    """Newest timestamp of the log."""
    repairs: tuple[Problem, ...] = ()
    """What was wrong with the folder and put right."""

    def popular(self, per_list: int) -> NDArray[np.int64]:
        """Most engaged pins: int64 [num_surfaces + 1, A, per_list].

        Most events of the outcome first, ties to the lower id. Surface row 0 counts all surfaces, events of unknown
        surface too. Short lists are padded with -1.
        """
        h, v = self.histories, self.vocabulary
        result = np.full((len(v.surfaces) + 1, len(v.outcomes), per_list), -1, dtype=np.int64)
        outcome = v.outcome_of_action[h.actions]
        counted = np.flatnonzero((outcome >= 0) & (h.item_types == ItemType.PIN))
        outcome, surface, row = outcome[counted], h.surfaces[counted], self.items.rows(h.item_ids[counted])
        for a in range(len(v.outcomes)):
            for s in range(len(v.surfaces) + 1):
                chosen = (outcome == a) & ((surface == s) | (s == 0))
                counts = np.bincount(row[chosen], minlength=len(self.items.ids))
                best = np.argsort(-counts, kind="stable")[:per_list]
                best = best[counts[best] > 0]
                result[s, a, : len(best)] = self.items.ids[best]
        return result

    def split(self, config: Config) -> Split:
        """`split_users`, without the users who have fewer than `data.min_history` target events."""
        enough = self.histories.count_targets(self.vocabulary.outcome_of_action) >= config.data.min_history
        sides = split_users(self.histories.user_ids, config.data)
        return Split(*(side[enough[side]] for side in (sides.train, sides.validation, sides.test)))


def open_dataset(folder: Path, config: Config, progress: bool = False) -> Dataset:
    """Read a folder in the event-log contract (event_log/contract.py). Repairs are counted and logged.

    Raises InvalidData if the folder breaks the contract or lacks a configured outcome.
    """
    loaded = load_folder(Path(folder), progress)
    for repair in loaded.repairs:
        log.warning("%s: %s", loaded.facts.name, repair)
    vocabulary = _vocabulary(loaded.events, loaded.facts, config)
    histories = _histories(loaded.events, vocabulary)
    encoder = _fit_text_encoder(loaded.items, loaded.events.query_texts, config)
    items = _item_table(loaded.items, loaded.events.query_texts, encoder)
    return Dataset(
        name=loaded.facts.name,
        vocabulary=vocabulary,
        histories=histories,
        items=items,
        titles={**loaded.items.titles, **loaded.events.query_texts},
        text_encoder=encoder,
        watermark_ms=int(histories.timestamps_ms.max()),
        repairs=loaded.repairs,
    )


def _vocabulary(events: EventLog, facts: DatasetFacts, config: Config) -> Vocabulary:
    is_pin = events.item_types == ItemType.PIN
    counts = np.bincount(events.actions[is_pin], minlength=len(events.action_names))
    occurring = [name for name, count in zip(events.action_names, counts, strict=True) if count]
    by_rarity = sorted(occurring, key=lambda name: (counts[events.action_names.index(name)], name))
    outcomes = config.data.outcomes or facts.outcomes or tuple(by_rarity)
    for outcome in outcomes:
        if outcome not in occurring:
            raise InvalidData(f"data.outcomes has {outcome!r}, which no pin of {facts.name} has; actions: {by_rarity}")
    used = np.unique(events.surfaces)
    surfaces = tuple(sorted({events.surface_names[code] for code in used} - {UNKNOWN_SURFACE}))
    searched = {events.surface_names[code] for code in np.unique(events.surfaces[~is_pin])} - {UNKNOWN_SURFACE}
    search_surfaces = facts.search_surfaces or tuple(sorted(searched))
    others = sorted(set(occurring) - set(outcomes))
    search = [SEARCH_ACTION] if search_surfaces or not is_pin.all() else []
    return Vocabulary(
        positive_actions=outcomes,
        actions=(*outcomes, *others, *search),
        surfaces=tuple(sorted({*surfaces, *search_surfaces})),
        search_surfaces=search_surfaces,
        unconditioned=config.model.variant == "uc",
    )


def _histories(events: EventLog, vocabulary: Vocabulary) -> Histories:
    """Events are sorted by user and time already; names turn into vocabulary codes."""
    user_ids, first = np.unique(events.user_ids, return_index=True)
    action_codes = np.array([vocabulary.action_code(name) for name in events.action_names], dtype=np.int32)
    surface_codes = np.array(
        [UNKNOWN_CODE if name == UNKNOWN_SURFACE else vocabulary.surface_code(name) for name in events.surface_names],
        dtype=np.int32,
    )
    return Histories(
        user_ids=user_ids,
        offsets=np.append(first, len(events)).astype(np.int64),
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
