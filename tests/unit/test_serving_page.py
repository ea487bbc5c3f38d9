"""The report of `make bench-serving`: what stands at its top."""

from __future__ import annotations

import json

import pytest

from benchmarks.serving.__main__ import TRIED, summary, write_page

MET = {"what": "a", "bar": "<= 1", "measured": "0.5", "met": True}
MISSED = {"what": "b", "bar": "<= 1", "measured": "2.0 [1.9, 2.1] (4 ms against 2 ms; rest)", "met": False}
STATED = {"what": "c", "bar": "-", "measured": "7", "met": None}


def test_summary_counts_bars_and_names_what_was_missed():
    assert summary([MET, STATED]) == ["1 of 1 bars are met."]
    assert summary([MISSED, STATED, MET]) == ["1 of 2 bars are met; missed:", "- b: 2.0 [1.9, 2.1] (bar: <= 1)"]


@pytest.mark.parametrize("has_tried", [False, True])
def test_the_page_is_written_from_the_parts_that_are_there(tmp_path, monkeypatch, has_tried):
    monkeypatch.setattr("benchmarks.serving.__main__.drawn", lambda *_: ["plot.png"])
    values = {"command": "python -m x", "commit": "abc", "machine": "m", "rows": [MET, MISSED | {"what": "b | d"}]}
    (tmp_path / "id_tables.json").write_text(json.dumps(values))
    if has_tried:
        (tmp_path / TRIED).write_text("tried")
    page = write_page(tmp_path, "full").read_text()
    assert "| a | <= 1 | 0.5 | met |" in page
    assert "| b \\| d | <= 1 | 2.0 [1.9, 2.1] (4 ms against 2 ms; rest) | MISSED |" in page
    assert "(plot.png)" in page
    assert (TRIED in page) == has_tried
