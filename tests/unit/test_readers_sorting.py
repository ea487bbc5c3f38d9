"""Sorting on disk against sorting in memory; archives and their checksums; files that are damaged."""

import gzip
import hashlib
import io
import tarfile
import zipfile

import numpy as np
import pyarrow as pa
import pytest

from pinrec_core.data.readers import published
from pinrec_core.data.readers.pins import Ids
from pinrec_core.data.readers.sorting import EventSorter
from pinrec_core.data.readers.streams import csv_batches, find, lines
from pinrec_core.errors import InvalidData

TYPES = {"a": pa.int64(), "b": pa.string()}


def table_of(rng, rows, arrived):
    return pa.table(
        {
            "user_id": rng.integers(-3, 4, rows) * 10**15,
            "timestamp_ms": rng.integers(0, 5, rows),
            "arrival": np.arange(arrived, arrived + rows),
            "text": pa.array([None if i % 3 else f"t{i}" for i in range(rows)], pa.string()),
        }
    )


@pytest.mark.parametrize(("run_rows", "table_rows"), [(1, 1), (7, 10), (50, 10_000), (10_000, 1), (10_000, 40)])
def test_runs_on_disk_are_the_stable_sort_in_memory(tmp_path, run_rows, table_rows):
    rng = np.random.default_rng(0)
    parts, arrived = [], 0
    for rows in (0, 13, 1, 60, 5):
        parts.append(table_of(rng, rows, arrived))
        arrived += rows
    with EventSorter(tmp_path / "log", run_rows, table_rows) as sorter:
        for part in parts:
            sorter.add(part)
        found = list(sorter.tables())
    whole = pa.concat_tables(parts)
    order = np.lexsort((whole["timestamp_ms"].to_numpy(), whole["user_id"].to_numpy()))
    assert pa.concat_tables(found).equals(whole.take(pa.array(order)))
    users = [set(table["user_id"].to_pylist()) for table in found]
    assert sum(map(len, users)) == len(set.union(*users)), "no user lies in two tables"
    assert all(len(table) <= table_rows or len(held) == 1 for table, held in zip(found, users, strict=True))
    assert list(tmp_path.iterdir()) == []


def test_nothing_sorted_is_nothing(tmp_path):
    with EventSorter(tmp_path / "log") as sorter:
        assert list(sorter.tables()) == []


def test_ids():
    ids = Ids()
    assert ids.holds(np.array([1])).tolist() == [False]
    ids.add(np.array([5, 1, 5, 2**62]))
    ids.add(np.array([3, 1]))
    assert ids.values.tolist() == [1, 3, 5, 2**62]
    assert ids.holds(np.array([0, 1, 4, 5, 2**62, 2**62 + 1])).tolist() == [False, True, False, True, True, False]
    other = Ids()
    other.add(np.array([3, 5]))
    assert ids.without(other).tolist() == [1, 2**62]


# Archives


def zip_of(path, **files):
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(f"some/where/{name}", text)
    return path


def tar_of(path, **files):
    with tarfile.open(path, "w:gz") as archive:
        for name, text in files.items():
            info = tarfile.TarInfo(f"../../{name}")
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text.encode()))
    return path


@pytest.mark.parametrize("make", [zip_of, tar_of])
def test_an_archive_is_checked_and_only_wanted_files_are_unpacked_for_a_while(tmp_path, monkeypatch, make):
    source = make(tmp_path / ("ml-1m.zip" if make is zip_of else "KuaiRand-1K.tar.gz"), wanted="yes", other="no")
    monkeypatch.setitem(published.MD5, source.name, hashlib.md5(source.read_bytes()).hexdigest())
    with published.opened(source, lambda name: name == "wanted", tmp_path / "made" / "log") as folder:
        assert [(path.name, path.read_text()) for path in folder.iterdir()] == [("wanted", "yes")]
        assert folder.parent == tmp_path / "made"
    assert not folder.exists()
    source.write_bytes(source.read_bytes() + b"\0")
    with (
        pytest.raises(InvalidData, match=rf"{source.name} has the MD5 \w+; published: \w+\. Download"),
        published.opened(source, lambda name: True, tmp_path / "log"),
    ):
        pass


def test_archives_without_a_published_sum_are_read_with_a_warning(tmp_path, caplog):
    source = zip_of(tmp_path / "archive.zip", wanted="yes")
    with published.opened(source, lambda name: name == "wanted", tmp_path / "log") as folder:
        assert (folder / "wanted").read_text() == "yes"
    assert "archive.zip: no checksum is known" in caplog.text
    with (
        pytest.raises(InvalidData, match=r"archive\.zip holds none of the files"),
        published.opened(source, lambda name: False, tmp_path / "log"),
    ):
        pass


@pytest.mark.parametrize("name", ["cut.zip", "cut.tar.gz", "cut.7z"])
def test_a_damaged_archive_says_so(tmp_path, name):
    make = tar_of if name.endswith(".tar.gz") else zip_of
    source = make(tmp_path / name, wanted="x" * 10_000)
    source.write_bytes(source.read_bytes()[:60])
    with (
        pytest.raises(InvalidData, match=rf"{name} is not a whole zip or tar archive"),
        published.opened(source, lambda name: True, tmp_path / "log"),
    ):
        pass


def test_a_folder_is_read_where_it_lies(tmp_path):
    with published.opened(tmp_path, lambda name: False, tmp_path / "log") as folder:
        assert folder == tmp_path


def test_published_sums_are_md5_sums():
    assert all(len(value) == 32 and int(value, 16) for value in published.MD5.values())
    assert len(set(published.MD5.values())) == len(published.MD5)


# Files


def test_csv_plain_gzipped_and_without_header(tmp_path):
    (tmp_path / "x.csv").write_text('a,c,b\n1,9,"p,q"\n2,9,NA\n')
    with gzip.open(tmp_path / "y.csv.gz", "wt") as file:
        file.write("a,b\n3,r\n")
    (tmp_path / "z.dat").write_text('4::"s\n')
    read = [
        *csv_batches(tmp_path / "x.csv", TYPES),
        *csv_batches(tmp_path / "y.csv.gz", TYPES),
        *csv_batches(tmp_path / "z.dat", TYPES, names=["a", "_", "b"], delimiter=":"),
    ]
    rows = [tuple(row.values()) for batch in read for row in batch.to_pylist()]
    assert rows == [(1, "p,q"), (2, "NA"), (3, "r"), (4, '"s')]


@pytest.mark.parametrize(
    ("text", "what"), [("a\n1\n", "b"), ("a,b\nx,1\n", "a"), ("", "wanted columns: a, b"), ("a,b\n1\n", "")]
)
def test_a_wrong_csv_names_file_and_column(tmp_path, text, what):
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(InvalidData, match=rf"^x\.csv: .*{what}"):
        list(csv_batches(tmp_path / "x.csv", TYPES))


def test_lines_are_utf8_else_latin1_and_damage_is_said(tmp_path):
    (tmp_path / "x").write_bytes("Léon\r\nLéon\n".encode() + "Léon\n".encode("latin-1"))
    assert list(lines(tmp_path / "x")) == ["Léon"] * 3
    (tmp_path / "y.gz").write_bytes(gzip.compress(b"a\n" * 10_000)[:-20])
    with pytest.raises(InvalidData, match=r"y\.gz cannot be read"):
        list(lines(tmp_path / "y.gz"))


def test_files_are_found_here_and_in_data(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "b.csv.gz").touch()
    assert find(tmp_path, "a.csv", "b.csv") == tmp_path / "data" / "b.csv.gz"
    (tmp_path / "a.csv").touch()
    assert find(tmp_path, "a.csv", "b.csv") == tmp_path / "a.csv"
    assert find(tmp_path, "c.csv") is None
