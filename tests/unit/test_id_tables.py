"""The ID table's files: cut, INT8, larger than the machine, and once in memory however many processes map them."""

import json
import os

import numpy as np
import pytest
import torch

from benchmarks.serving.shared_pages import (
    added_bytes,
    make_content,
    make_id_tables,
    mapped_bytes,
    read_content,
    read_id_tables,
)
from pinrec_core.errors import InvalidRelease
from pinrec_core.model.id_tables import IdTables, decode_rows, encode_rows, gather_rows, open_shards, write_tables

TABLE = np.random.default_rng(0).normal(scale=0.1, size=(202, 6)).astype(np.float32)
SHARED = {"ID tables": (make_id_tables, read_id_tables), "content rows": (make_content, read_content)}


def test_shards_cover_the_table(tmp_path):
    write_tables(TABLE, tmp_path / "id_tables", 4)
    shape = json.loads((tmp_path / "id_tables" / "tables.json").read_text())
    assert shape == {"rows": 202, "rows_per_shard": 51, "row_dim": 6, "num_shards": 4, "codes": "fp16"}
    shards, _ = open_shards(tmp_path / "id_tables")
    torch.testing.assert_close(torch.cat(shards), torch.from_numpy(TABLE).half())


def test_more_files_than_rows_divide_into_are_not_made(tmp_path):
    write_tables(TABLE, tmp_path / "id_tables", 150)  # two rows in each
    shards, rows_per_shard = open_shards(tmp_path / "id_tables")
    assert (len(shards), rows_per_shard) == (101, 2)
    torch.testing.assert_close(torch.cat(shards), torch.from_numpy(TABLE).half())


@pytest.mark.parametrize("codes", ["fp16", "int8"])
@pytest.mark.parametrize("num_shards", [1, 5])
def test_rows_are_found_in_their_shard(tmp_path, codes, num_shards):
    write_tables(TABLE, tmp_path / "id_tables", num_shards, codes)
    shards, rows_per_shard = open_shards(tmp_path / "id_tables")
    rows = torch.tensor([201, 0, 50, 51, 0])
    found = decode_rows(gather_rows(rows, shards, rows_per_shard))
    half_a_step = np.abs(TABLE).max(axis=1)[rows, None] / 253  # and what the scale was rounded up
    assert (np.abs(found.numpy() - TABLE[rows]) <= (half_a_step if codes == "int8" else 1e-4) + 1e-7).all()


def test_int8_rows_by_hand():
    """A largest value of 127/128 has scale 1/128 = 2^(25 - 32), said as 25 x 1024."""
    rows = encode_rows(np.array([[127, -1, 64]]) / 128, "int8")
    assert rows.tolist() == [[255, 127, 192, 25 * 1024 % 256, 25 * 1024 // 256]]
    assert rows.shape[1] == IdTables.cut(1, 3, 1, "int8").row_bytes
    assert decode_rows(torch.from_numpy(rows)).tolist() == [[127 / 128, -1 / 128, 0.5]]


@pytest.mark.parametrize("size", [0, 1e-12, 1e-3, 1e6])
def test_int8_rows_of_any_size(size):
    table = np.float32(size) * TABLE
    found = decode_rows(torch.from_numpy(encode_rows(table, "int8"))).numpy()
    assert (np.abs(found - table).max(axis=1) <= np.maximum(np.abs(table).max(axis=1) / 253, 2.0**-32)).all()


def test_tables_without_codes_are_fp16(tmp_path):
    """As releases were written before there was a choice."""
    write_tables(TABLE, tmp_path / "id_tables")
    path = tmp_path / "id_tables" / "tables.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "codes"}))
    [shard], _ = open_shards(tmp_path / "id_tables")
    assert shard.dtype == torch.float16


def test_a_missing_or_short_shard_is_refused_and_not_created(tmp_path):
    write_tables(TABLE, tmp_path / "id_tables", 2)
    shard = tmp_path / "id_tables" / "shard-00001.f16"
    shard.write_bytes(shard.read_bytes()[:-2])
    with pytest.raises(InvalidRelease, match="shard-00001"):
        open_shards(tmp_path / "id_tables")
    shard.unlink()
    with pytest.raises(InvalidRelease, match="shard-00001"):
        open_shards(tmp_path / "id_tables")
    assert not shard.exists()


def test_ten_billion_parameters_are_opened_and_only_the_pages_of_a_lookup_are_read(tmp_path):
    """20 GB that are not on the disk: the file is sparse, but for one row at its end."""
    tables = IdTables.cut(2 * 78_125_000, 64, 10)
    tables.save(tmp_path)
    for shard in range(10):
        with tables.path_of(tmp_path, shard).open("wb") as file:
            file.truncate(tables.rows_of(shard) * tables.row_bytes)
    with tables.path_of(tmp_path, 9).open("r+b") as file:
        file.seek(-128, os.SEEK_END)
        file.write(encode_rows(np.tile(TABLE[:1], 11)[:, :64], "fp16").tobytes())
    shards, rows_per_shard = open_shards(tmp_path)
    assert mapped_bytes("self", tmp_path) == 0
    rows = torch.arange(tables.rows - 1, 0, -tables.rows // 1_000)
    found = decode_rows(gather_rows(rows, shards, rows_per_shard))
    np.testing.assert_allclose(found[0, :6], TABLE[0], atol=1e-3)
    assert not found[1:].any()
    assert 0 < mapped_bytes("self", tmp_path) <= 4_096 * len(rows)


@pytest.mark.parametrize("what", SHARED)
def test_a_further_process_adds_less_than_a_twentieth_of_what_it_opens(tmp_path, what):
    """Proportional set sizes of three real processes, each of which reads all of it."""
    make, read = SHARED[what]
    num_bytes = make(tmp_path / "release")
    first, *others = added_bytes(read, (tmp_path / "release",), 3)
    assert num_bytes > 60e6
    assert first > 0.95 * num_bytes
    assert max(others) < 0.05 * num_bytes
