"""A trained model and its data set -> the next release (layout: `pinrec_core/release/layout.py`)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from tqdm import tqdm

from pinrec_core.data.batches import event_rows
from pinrec_core.data.dataset import Dataset
from pinrec_core.generate.rollout import Branches, rollout
from pinrec_core.items.vectors import pin_vectors
from pinrec_core.model.id_embedding import IdEmbedder, export_id_embedding
from pinrec_core.model.id_tables import Codes
from pinrec_core.model.inputs import collate
from pinrec_core.model.pinrec import PinRec
from pinrec_core.release import ItemTable, ReleaseFacts, publish
from pinrec_core.retrieve.build import build_index

_ITEMS_A_CALL = 8_192
_QUERY_USERS = 128
_QUERIES = 512


def export(
    model: PinRec,
    dataset: Dataset,
    releases: Path,
    metrics: Mapping[str, Any] | None = None,
    id_shards: int = 1,
    id_codes: Codes = "fp16",
    add_golden: Callable[[Path], None] | None = None,
) -> int:
    """Publish `model` over `dataset`'s items as the next release under `releases`; returns its number.

    `dataset` is the one that the model was trained on, or a newer log opened with the run's `Fitted`. `add_golden` is
    called with the folder when all else is in it; without, the release cannot be tried by a gateway.
    """
    model = model.eval().cpu().float()
    made_by = fingerprint(model)

    def write(folder: Path) -> None:
        assert model.id_embedding is not None
        decoder = {k: v for k, v in model.state_dict().items() if not k.startswith("id_embedding.")}
        (folder / "decoder.safetensors").write_bytes(save({k: v.contiguous() for k, v in decoder.items()}))
        export_id_embedding(model.id_embedding, folder, id_shards, id_codes)
        dataset.items.save(folder / "items")
        dataset.text_encoder.save(folder / "text_encoder")
        _write_popular(dataset, model.config.retrieve.popular_per_list, folder / "popular")
        _write_display(dataset.titles, folder / "display")
        pins = dataset.served_pins
        vectors = index_vectors(model, IdEmbedder.load(folder), dataset.items, pins)
        queries = generated_queries(model, dataset)
        build_index(np.asarray(dataset.items.ids)[pins], vectors, model.config.retrieve, folder / "index", queries)
        (folder / "config.json").write_text(json.dumps(model.config.to_dict(), indent=1))
        (folder / "vocabulary.json").write_text(json.dumps(dataset.vocabulary.to_dict(), indent=1))
        if add_golden is not None:
            add_golden(folder)

    facts = ReleaseFacts(
        item_embedder=made_by,
        index_item_embedder=made_by,
        watermark_ms=dataset.watermark_ms,
        dataset=dataset.name,
        items_sequence=dataset.items_sequence,
        metrics=dict(metrics or {}),
    )
    return publish(releases, facts, write)


def index_vectors(
    model: PinRec, id_embedder: IdEmbedder, items: ItemTable, rows: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Vectors of the pins at `rows` int64 [n] of the item table: float32 [n, D]."""
    vectors = np.empty((len(rows), model.config.model.embedding_dim), np.float32)
    for start in tqdm(range(0, len(rows), _ITEMS_A_CALL), desc="item vectors", unit="batch", leave=False):
        part = rows[start : start + _ITEMS_A_CALL]
        columns = items.ids[part], items.content[part], items.scale[part]
        vectors[start : start + len(part)] = pin_vectors(model, id_embedder, *columns)
    return vectors


@torch.inference_mode()
def generated_queries(model: PinRec, dataset: Dataset) -> NDArray[np.float32]:
    """What the index will be asked: embeddings of all steps, offsets and outcomes for some users: float32 [Q, D].

    The index chooses its probes on them. Corpus vectors are easier to find than generated embeddings, and those of the
    first offset than later ones.
    """
    histories, longest = dataset.histories, model.config.model.max_history
    rng = np.random.default_rng(0)
    users = rng.permutation(histories.num_users)[:_QUERY_USERS]
    ends = histories.offsets[users + 1]
    starts = np.maximum(histories.offsets[users], ends - longest)
    inputs = collate([event_rows(histories, dataset.items, *each) for each in zip(starts, ends, strict=True)])
    outcomes = np.tile(np.arange(len(dataset.vocabulary.outcomes)), (len(users), 1))  # [U, A]
    branches = Branches(
        outcomes=torch.from_numpy(outcomes),
        actions=torch.from_numpy(dataset.vocabulary.action_of_outcome[outcomes].astype(np.int64)),
        surface=torch.from_numpy(histories.surfaces[ends - 1].astype(np.int64)),
        request_time_ms=torch.from_numpy(histories.timestamps_ms[ends - 1]),
    )
    queries = rollout(model, inputs, branches, model.config.generate).flatten(0, 2).numpy()  # [U A M, D]
    return queries[rng.permutation(len(queries))[:_QUERIES]]


def fingerprint(model: PinRec) -> str:
    """sha256 over the weights that make an item's vector: the item embedder and the ID embedding."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if name.startswith(("item_embedder.", "id_embedding.")):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _write_popular(dataset: Dataset, per_list: int, folder: Path) -> None:
    folder.mkdir()
    np.save(folder / "ids.npy", dataset.popular(per_list), allow_pickle=False)


def _write_display(titles: Mapping[int, str], folder: Path) -> None:
    """Titles for people who look at candidates; no stage reads them."""
    folder.mkdir()
    columns = {"item_id": pa.array(list(titles), pa.int64()), "title": pa.array(list(titles.values()), pa.string())}
    pq.write_table(pa.table(columns), folder / "items.parquet")
