"""Rows of the benchmark of a million items, from figures that are known; and its plots."""

import json
import os

from benchmarks.chaos.table import save
from benchmarks.serving.million import FIRST, WARM, forget, latency_row, memory_row, start_row
from benchmarks.serving.million_plots import plots

STARTS = [{"signals": 1.0, "gateway": 0.5}, {"signals": 3.0, "gateway": 0.5}, {"signals": 2.0, "gateway": 0.7}]


def latencies(share):
    return {"p50_ms": [10.0, 12.0, 11.0], "p99_ms": [20.0] * 3, "rps": [90.0] * 3, "share": share}


def test_medians_over_the_starts_of_a_kind():
    assert start_row(FIRST, STARTS[:1]).measured == "1.5 s: signals 1.0, gateway 0.5"
    assert start_row(WARM, STARTS).measured == "2.7 s: signals 2.0, gateway 0.5 (3 starts)"


def test_memory_is_told_by_process_the_largest_first():
    row = memory_row("memory", {"gateway": 35.0, "generate": 180.0})
    assert (row.measured, row.met) == ("215 MB: generate 180, gateway 35", None)


def test_a_lone_caller_must_be_answered_in_full_and_more_need_not():
    assert latency_row(1, latencies([1.0] * 3)).met is True
    assert latency_row(1, latencies([0.9] * 3)).met is False
    row = latency_row(4, latencies([0.9] * 3))
    assert row.met is None
    p50, p99 = "p50 11.00 ms [10.20, 11.80]", "p99 20.00 ms [20.00, 20.00]"
    assert row.measured == f"{p50}, {p99}, 90.0 answers/s, 90.0% answered in full"


def test_a_file_that_is_forgotten_is_still_whole(tmp_path):
    (tmp_path / "file").write_bytes(os.urandom(1 << 16))
    before = (tmp_path / "file").read_bytes()
    forget(tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == before


def test_plots_are_drawn_from_the_saved_rows(tmp_path):
    rows = [
        *(start_row(kind, STARTS) for kind in (FIRST, WARM)),
        memory_row("memory", {"gateway": 35.0, "generate": 180.0}),
        *(latency_row(callers, latencies([1.0] * 3)) for callers in (1, 4)),
    ]
    save(rows, tmp_path / "million.json", "test")
    (drawn,) = plots(json.loads((tmp_path / "million.json").read_text()), tmp_path)
    assert (tmp_path / drawn).stat().st_size > 10_000
