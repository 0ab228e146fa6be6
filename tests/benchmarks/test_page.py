"""The page of results: means, spreads, dashes and claims."""

from dataclasses import replace

from benchmarks.yardsticks.page import (
    render_claims,
    render_page,
    render_published,
    render_section,
    render_table,
)
from benchmarks.yardsticks.partial_shapes import PARTIAL_SHAPES
from benchmarks.yardsticks.rows import Claim, Column, Row, Run, expected_results, spread


def row_of(name, results, minutes=2.0, **facts):
    runs = [
        Run(name, seed, "abc", minutes=minutes, results=tasks, **facts)
        for seed, tasks in enumerate(results)
    ]
    return Row(name, name.title(), runs)


def row(name, unseen, seen=60.0, **facts):
    results = [
        {"gtbox_seen": {"IoU": seen, "AP": seen}, "gtbox_unseen": {"IoU": u, "AP": u}}
        for u in unseen
    ]
    return row_of(name, results, **facts)


def shrunk_row(name, iou, shrunk):
    tasks = {}
    for group in ("seen", "unseen"):
        tasks[f"gtbox_{group}"] = {"IoU": iou, "AP": iou - 20}
        tasks[f"shrunk_gtbox_{group}"] = {"IoU": shrunk, "AP": shrunk - 21}
    return row_of(name, [tasks])


def claims(rows):
    return render_claims(PARTIAL_SHAPES, rows)


def test_spread():
    assert spread([]) == "-"
    assert spread([51.26]) == "51.3"
    assert spread([1.0, 2.0, 3.0]) == "2.0 ± 1.0"


def test_unmeasured_cells_are_dashes():
    table = render_table([row("agnostic", [40.0, 50.0])], PARTIAL_SHAPES.columns)
    last = table.splitlines()[-1]
    assert last.startswith("| Agnostic | `agnostic` | 2 | 60.0 ± 0.0 | 45.0 ± 7.1 | 60.0 ± 0.0 |")
    assert last.endswith("| - | - | - | - | 2.0 ± 0.0 | abc |")


def test_what_was_not_trained_has_no_seeds_and_no_minutes():
    filled = Row("box_fill", "Filled", [Run("box_fill", results={"gtbox_seen": {"IoU": 53.0}})])
    table = render_table([filled, Row("absent", "Never run")], PARTIAL_SHAPES.columns)
    last = table.splitlines()[-1]
    assert last.startswith("| Filled | `box_fill` | - | 53.0 | - |") and last.endswith(
        "| - | - | - |"
    )


def test_a_claim_needs_its_margin_in_every_seed():
    rows = [row("agnostic", [40.0, 50.0]), row("agnostic_gt", [45.0, 51.0])]
    lines = [x for x in claims(rows).splitlines() if "Ground-truth training boxes" in x]
    assert lines == [
        "| Ground-truth training boxes help the baseline (IoU) | +2 | +5.0, +1.0 | **no** |"
    ]
    rows[1] = row("agnostic_gt", [45.0, 52.0])
    assert "| +5.0, +2.0 | yes |" in claims(rows)


def test_the_page_names_what_its_runs_were_made_of():
    first = row("a", [1.0], machine="Brand One", date="2026-01-02", psis_d2="1.0", torch="2.11")
    second = row(
        "b", [1.0, 2.0], machine="Brand Two", date="2026-01-03", psis_d2="1.0", torch="2.12"
    )
    section = render_section(PARTIAL_SHAPES, [second, first], "x.png", "## The end\n")
    page = render_page([section, "## Other\n"])
    assert page.startswith("# Results\n\n## PartialShapes\n")
    assert "* commits: abc\n* machines: Brand One; Brand Two\n" in page
    assert "on 2026-01-03; tables" in page
    assert "psis_d2\n1.0, torch 2.11, 2.12, seeds 0, 1, one thread" in page
    assert "](x.png)\n" in page and page.endswith("\n## The end\n\n## Other\n")


def test_the_published_order_and_how_well_the_rows_agree():
    yardstick = replace(PARTIAL_SHAPES, published=(("a", "b"), ("c",), ("d",)))
    rows = [row("a", [1.0, 3.0]), row("c", [4.0]), row("d", [3.0]), row("more", [9.0])]
    words = render_published(yardstick, rows)
    assert "`a` ~ `b` < `c` < `d`. Spearman" in words and "with it: +0.50 over 3 rows" in words
    assert "too few rows" in render_published(yardstick, rows[:1])
    assert render_published(PARTIAL_SHAPES, rows) == ""


def test_a_claim_needs_the_same_seeds_of_both_rows():
    rows = [row("agnostic", [40.0, 50.0]), row("agnostic_gt", [45.0])]
    assert "Ground-truth training boxes" not in claims(rows)


def test_expected_results_allow_twice_the_largest_deviation_and_some_points_at_least():
    assert expected_results(row("agnostic", [44.0, 46.0]))[1] == ["gtbox_unseen", "IoU", 45.0, 6.0]
    assert expected_results(row("agnostic", [40.0, 50.0])) == [
        ["gtbox_seen", "IoU", 60.0, 3.0],
        ["gtbox_unseen", "IoU", 45.0, 10.0],
    ]


def test_expected_results_have_the_box_ap_where_it_was_measured():
    results = [{"bbox_all": {"AP": ap}, "gtbox_seen": {"IoU": 60.0}} for ap in (20.0, 26.0)]
    assert expected_results(row_of("fcos", results)) == [
        ["gtbox_seen", "IoU", 60.0, 3.0],
        ["bbox_all", "AP", 23.0, 6.0],
    ]


def test_claims_about_absent_rows_are_left_out():
    assert "oracle" not in claims([row("agnostic", [40.0])]).lower()


def test_every_claim_names_a_quick_config():
    from model_builders import CONFIGS

    for claim in PARTIAL_SHAPES.claims:
        for name in (claim.better[0], claim.worse[0]):
            assert (CONFIGS / "quick" / f"{name}_shapes.yaml").exists(), name


def test_side_tables_have_the_rows_that_were_measured_and_what_they_lost():
    rows = [row("agnostic", [40.0]), shrunk_row("shapemask", 50.0, 47.5)]
    page = render_section(PARTIAL_SHAPES, rows, "", "")
    assert "Overlapped objects" not in page
    side = page.split("## Boxes that are too small")[1].split("## Margins")[0]
    lines = [line for line in side.splitlines() if "`" in line and line.startswith("|")]
    assert lines == [
        "| Shapemask | `shapemask` | 1 | 47.5 | 2.5 | 47.5 | 2.5 | 26.5 | 3.5 |",
    ]


def test_a_loss_is_that_of_the_seeds_that_measured_it():
    measured, not_measured = shrunk_row("a", 50.0, 47.5), row("a", [60.0])
    both = Row("a", "A", [*not_measured.runs, *measured.runs])
    assert Column("lost", "gtbox_unseen", "IoU", minus="shrunk_gtbox_unseen").values(both) == [2.5]


def test_a_claim_can_be_about_what_is_lost():
    task = "shrunk_gtbox_unseen"
    rows = [shrunk_row("a", 50.0, 47.5), shrunk_row("b", 60.0, 54.0)]
    claim = Claim(("a", task), ("b", task), "IoU", 3, "a loses less", minus="gtbox_unseen")
    assert claim.margins(rows) == [3.5] and claim.holds(rows)
    assert not replace(claim, margin=4).holds(rows)
