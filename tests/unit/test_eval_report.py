"""The report's page, its JSON and its plots, from results made by hand."""

import json
from dataclasses import replace

import numpy as np
import pytest

from pinrec_core.eval.bootstrap import Interval
from pinrec_core.eval.report import Gain, Provenance, Report, Sample, Table, shown, write_report
from pinrec_core.eval.results import UserResults
from pinrec_core.eval.sections import (
    Ablations,
    Arm,
    Breakdown,
    Claim,
    Claims,
    Comparison,
    Facts,
    OutcomeMatrix,
    StepSweep,
    SweepPoint,
)

MADE = Provenance("pinrec evaluate --x", "abc123", "a machine", "Python", "2026-01-01 00:00")
USERS = 240


def results(any_hit, hit_by_outcome=(0.5, 0.5), share=0.5):
    """240 users, two thirds on `home`; each one save and one click. Rates are met by the first users, in order."""
    hit = np.stack([np.arange(USERS) < rate * USERS for rate in hit_by_outcome], axis=1)
    return UserResults(
        user_ids=np.arange(USERS, dtype=np.int64),
        any_hit=(np.arange(USERS) < any_hit * USERS).astype(np.float32),
        target_share=np.full(USERS, share, np.float32),
        num_targets=np.full(USERS, 2),
        unique_within=np.full(USERS, 0.75, np.float32),
        surface=np.where(np.arange(USERS) % 3 == 0, 2, 1).astype(np.int32),
        history_length=np.arange(USERS),
        target_user=np.repeat(np.arange(USERS), 2),
        target_outcome=np.tile([0, 1], USERS).astype(np.int32),
        target_hit=hit.ravel(),
        target_frequency=np.tile([0, 7], USERS),
        surfaces=("home", "related"),
        outcomes=("save", "click"),
        num_retrieved=100,
        num_distinct=40,
        corpus_size=400,
    )


def arm(label, *seeds):
    return Arm(label, tuple(seeds))


def test_readings_of_the_same_models_are_compared_seed_by_seed():
    seeds = tuple(replace(results(0.5), target_share=np.full(USERS, share, np.float32)) for share in (0.1, 0.4))
    better = tuple(replace(seed, target_share=seed.target_share * 1.1) for seed in seeds)
    names = ("first", "second")
    paired = Arm("a", better, names).gain(Arm("b", seeds, names), "target_share").value
    assert (paired.low, paired.high) == pytest.approx((0.1, 0.1), abs=1e-6)
    apart = Arm("a", better, names).gain(Arm("b", seeds, ("third", "fourth")), "target_share").value
    assert apart.low < 0 < apart.high


def rows(table: Table):
    return {row[0]: dict(zip(table.header, row, strict=True)) for row in table.rows}


COMPARISON = Comparison(
    "Table 1", "by hand", (arm("uc", results(0.5)), arm("mt_oc", results(0.6, share=0.75))), reference="uc"
)


def test_table_1_holds_recall_by_surface_and_ratios_to_its_reference():
    hits, against, readings = COMPARISON.tables()
    assert hits.header == ("model", "all (240)", "home (160)"), "the 80 users of `related` are too few for a column"
    assert rows(hits)["mt_oc"]["all (240)"].mean == pytest.approx(0.6)
    assert list(rows(against)) == ["mt_oc"]
    gain = rows(against)["mt_oc"]["all (240)"].value
    assert gain.mean == pytest.approx(0.2)
    assert gain.low > 0, "the same users, and mt_oc hits all that uc does"
    assert rows(readings)["mt_oc"]["share of targets"] == Interval(0.75, 0.75, 0.75)
    assert rows(readings)["uc"]["distinct over all"] == 0.4


def test_a_surfaces_targets_count_whatever_the_first_ones_surface():
    on = {"target_surface": np.tile([1, 2], USERS).astype(np.int32)}  # saves at home, clicks at related
    arms = arm("uc", replace(results(0.5, (0.5, 0.5)), **on)), arm("oc", replace(results(0.5, (0.6, 0.4)), **on))
    *_, hits, against = Comparison("Table 1", "by hand", arms, "uc").tables()
    assert hits.header == ("model", "home (240)", "related (240)")
    assert rows(hits)["oc"]["home (240)"].mean == pytest.approx(0.6)
    assert rows(against)["oc"]["related (240)"].value.mean == pytest.approx(-0.2)


def test_seeds_are_averaged_and_counted():
    both = arm("uc", results(0.4), results(0.6))
    assert both.on("any_hit").mean == pytest.approx(0.5)
    assert Comparison("Table 1", "by hand", (both,)).sample() == Sample("by hand", USERS, 2)


def test_seeds_of_other_users_are_refused():
    other = replace(results(0.5), user_ids=np.arange(USERS) + 1)
    with pytest.raises(ValueError, match="uc: results are of other users"):
        arm("uc", results(0.5), other)


def test_figure_4_is_the_lift_of_each_outcome_by_the_desired_one():
    reference = arm("uc", results(0.5, (0.5, 0.5)))
    desired = {"save": arm("oc", results(0.5, (0.6, 0.4))), "click": arm("oc", results(0.5, (0.55, 0.5)))}
    figure = OutcomeMatrix("Figure 4", "by hand", desired, reference, min_targets=240)
    matrix, verdict = figure.tables()
    assert matrix.header == ("desired \\ actual", "save (240)", "click (240)")
    lifts = [[round(cell.value.mean, 6) for cell in row[1:]] for row in matrix.rows]
    assert lifts == [[0.2, -0.2], [0.1, 0.0]]
    assert [row[1:] for row in verdict.rows] == [("yes", "yes"), ("**no**", "yes")]
    (few,) = OutcomeMatrix("Figure 4", "by hand", desired, reference, min_targets=241).tables()
    assert (few.name, few.rows) == ("No outcome has 241 targets", (("save", 240), ("click", 240)))
    plain = OutcomeMatrix("Figure 4", "by hand", desired, None, min_targets=240).tables()[0]
    assert rows(plain)["save"]["save (240)"].mean == pytest.approx(0.6)


def test_figure_5_divides_by_its_first_point():
    points = (
        SweepPoint(1, 8, np.array([8.0, 10.0, 12.0]), arm("8 x 1", results(0.5))),
        SweepPoint(8, 1, np.array([1.0, 1.5, 2.0]), arm("1 x 8", results(0.6))),
    )
    (table,) = StepSweep("Figure 5", "by hand", points).tables()
    first, second = (dict(zip(table.header, row, strict=True)) for row in table.rows)
    assert first["latency, ms: median [10 %, 90 %]"].mean == 10.0
    assert second["latency / first"] == pytest.approx(0.15)
    assert first["hits / first"] is None
    assert second["hits / first"].value.mean == pytest.approx(0.2)


def test_a_breakdown_finds_cold_items_and_cold_users():
    outcomes, history, frequency = Breakdown("Who", "by hand", (arm("oc", results(0.5, (0.25, 0.5))),)).tables()
    assert rows(outcomes)["oc"]["save (240)"].mean == pytest.approx(0.25)
    assert rows(history)["oc"]["0-4 (5)"] == Interval(1.0, 1.0, 1.0)
    assert rows(frequency)["oc"]["0 (240)"].mean == pytest.approx(0.25)  # the saves' items


def test_ablations_are_changes_of_their_first_row():
    (table,) = Ablations("Ablations", "by hand", arm("all", results(0.5)), (arm("no ids", results(0.4)),)).tables()
    assert rows(table)["no ids"]["change of it"].value.mean == pytest.approx(-0.2)
    assert rows(table)["all"]["change of it"] is None


def test_one_seed_is_compared_with_the_same_seed_of_the_reference():
    """Of the reference's seeds 3 and 5, of .4 and .6: against seed 5's, not against their mean."""
    reference = Arm("all", (results(0.4), results(0.6)), seeds=(3, 5))
    changed = Arm("no ids", (results(0.3),), seeds=(5,))
    (table,) = Ablations("Ablations", "by hand", reference, (changed,)).tables()
    assert rows(table)["no ids"]["change of it"].value.mean == pytest.approx(-0.5)
    assert reference.with_seeds_of(Arm("other", (results(0.3),))) is reference  # unknown seeds: all


SECTIONS = (
    Claims("Claims", (Claim("mt_oc / uc", ">= 1.11", Interval(1.2, 1.1, 1.3), True), Claim("x", "y", None, None))),
    COMPARISON,
    OutcomeMatrix("Figure 4", "by hand", {"save": arm("oc", results(0.5, (0.6, 0.4)))}, COMPARISON.arms[0], 100),
    StepSweep("Figure 5", "by hand", (SweepPoint(1, 8, np.array([8.0, 9.0]), COMPARISON.arms[0]),)),
    Ablations("Ablations", "by hand", COMPARISON.arms[0], (COMPARISON.arms[1],), command="make it"),
    Facts("Speed", (Table("", ("model", "examples/s"), (("ours", 1234), ("nan", float("nan")))),)),
)


def test_the_page_stands_beside_its_plots_and_its_json(tmp_path):
    path = write_report(tmp_path / "new", Report("What holds", MADE, SECTIONS, "An introduction."))
    page = path.read_text()
    assert page.startswith("# What holds\n\nAn introduction.\n")
    assert "| mt_oc / uc | >= 1.11 | 1.200 [1.100, 1.300] | holds |" in page
    assert "| x | y | – | not measured |" in page
    assert (
        "<sub>by hand; 240 users; 1 seed; 95 % intervals; `pinrec evaluate --x`; commit abc123; a machine</sub>" in page
    )
    assert "`make it`; commit abc123" in page
    plots = sorted(plot.name for plot in path.parent.glob("*.png"))
    assert plots == [
        "report-02-table-1.png", "report-03-figure-4.png", "report-04-figure-5.png", "report-05-ablations.png",
    ]  # fmt: skip
    assert all(f"]({plot})" in page for plot in plots)
    document = json.loads((path.parent / "report.json").read_text())
    assert (document["commit"], document["confidence"]) == ("abc123", 0.95)
    table = document["sections"][1]["tables"][0]
    assert table["rows"][1]["all (240)"]["mean"] == pytest.approx(0.6)
    assert document["sections"][1]["sample"]["seeds"] == 1
    assert document["sections"][5]["tables"][0]["rows"][1]["examples/s"] is None, "JSON has no NaN"


def test_a_second_report_leaves_no_plot_of_the_first(tmp_path):
    write_report(tmp_path, Report("One", MADE, SECTIONS))
    (tmp_path / "mine.png").write_bytes(b"")
    write_report(tmp_path, Report("Two", MADE, SECTIONS[:1]))
    assert [plot.name for plot in tmp_path.glob("*.png")] == ["mine.png"]


def test_cells_are_shown_as_people_read_them():
    assert shown(Gain(Interval(0.1, -0.05, 0.2))) == "+10.0 % [-5.0, +20.0]"
    assert shown(Interval(0.5, 0.4, 0.6)) == "0.500 [0.400, 0.600]"
    assert (shown(None), shown(12_345), shown(0.12345), shown("a|b")) == ("–", "12,345", "0.123", "a|b")
    assert (shown(0.00142), shown(0.0), shown(1.0)) == ("0.0014", "0.000", "1.000")
    assert shown(float("nan")) == "–"
    assert shown(Interval(0.5, float("nan"), float("nan"))) == "0.500"
    assert "a\\|b" in Table("", ("h",), (("a|b",),)).markdown()


def test_provenance_says_where_it_is():
    here = Provenance.here("a command")
    assert here.command == "a command"
    assert "cores" in here.hardware
    assert here.commit
