"""The page of results: means, spreads, dashes and claims."""

from dataclasses import replace

from psis_d2.evaluation.results_page import (
    CLAIMS,
    Claim,
    Column,
    Row,
    expected_results,
    lines_of,
    render_claims,
    render_page,
    render_table,
    spread,
)


def row(name, unseen, seen=(60.0,), minutes=(2.0,)):
    results = [
        {"gtbox_seen": {"IoU": s, "AP": s}, "gtbox_unseen": {"IoU": u, "AP": u}}
        for s, u in zip(seen * len(unseen), unseen, strict=False)
    ]
    return Row(name, name.title(), results, list(minutes), ["abc"])


def test_spread():
    assert spread([]) == "-"
    assert spread([51.26]) == "51.3"
    assert spread([1.0, 2.0, 3.0]) == "2.0 ± 1.0"


def test_unmeasured_cells_are_dashes():
    table = render_table([row("agnostic", [40.0, 50.0])])
    last = table.splitlines()[-1]
    assert last.startswith("| Agnostic | `agnostic` | 1 | 60.0 ± 0.0 | 45.0 ± 7.1 | 60.0 ± 0.0 |")
    assert last.endswith("| - | - | - | - | 2.0 |")


def test_a_claim_needs_its_margin_in_every_seed():
    rows = [row("agnostic", [40.0, 50.0]), row("agnostic_gt", [45.0, 51.0])]
    lines = [x for x in render_claims(rows).splitlines() if "Ground-truth training boxes" in x]
    assert lines == [
        "| Ground-truth training boxes help the baseline (IoU) | +2 | +5.0, +1.0 | **no** |"
    ]
    rows[1] = row("agnostic_gt", [45.0, 52.0])
    assert "| +5.0, +2.0 | yes |" in render_claims(rows)


def test_rows_without_results_keep_their_lines_of_the_earlier_page():
    rows = [row("agnostic", [40.0, 50.0]), row("agnostic_gt", [45.0, 52.0]), row("deeper", [41.0])]
    page = render_page(rows, seeds=[0, 1])
    unmeasured = [Row("agnostic", "New title"), Row("agnostic_gt", "x"), row("deeper", [43.0])]
    again = render_page([*unmeasured, Row("oracle", "Never measured")], seeds=[0, 1], earlier=page)
    old, new = lines_of(page), lines_of(again)
    assert new["agnostic"] == old["agnostic"] and new["agnostic_gt"] == old["agnostic_gt"]
    claim = "Ground-truth training boxes help the baseline (IoU)"
    assert "| +5.0, +2.0 | yes |" in new[claim] and new[claim] == old[claim]
    assert "| 43.0 |" in new["deeper"] and new["deeper"] != old["deeper"]
    assert new.keys() == old.keys()


def test_commits_and_machines_of_earlier_rows_stay():
    first = Row("a", "A", row("a", [1.0]).results, [1.0], ["abc"], ["Brand One, 2 cores"])
    page = render_page([first], seeds=[0])
    second = Row("b", "B", first.results, [1.0], ["def"], ["Brand Two, 8 cores"])
    page = render_page([Row("a", "A"), second], seeds=[0], earlier=page)
    assert "* commits: abc, def\n* machines: Brand One, 2 cores; Brand Two, 8 cores\n" in page


def test_a_claim_needs_the_same_seeds_of_both_rows():
    rows = [row("agnostic", [40.0, 50.0]), row("agnostic_gt", [45.0])]
    assert "Ground-truth training boxes" not in render_claims(rows)


def test_expected_results_allow_twice_the_largest_deviation_and_some_points_at_least():
    assert expected_results(row("agnostic", [44.0, 46.0]))[1] == ["gtbox_unseen", "IoU", 45.0, 6.0]
    assert expected_results(row("agnostic", [40.0, 50.0])) == [
        ["gtbox_seen", "IoU", 60.0, 3.0],
        ["gtbox_unseen", "IoU", 45.0, 10.0],
    ]


def test_claims_about_absent_rows_are_left_out():
    assert "oracle" not in render_claims([row("agnostic", [40.0])]).lower()


def test_every_claim_names_a_quick_config():
    from model_builders import CONFIGS

    for claim in CLAIMS:
        for name in (claim.better[0], claim.worse[0]):
            assert (CONFIGS / "quick" / f"{name}_shapes.yaml").exists(), name


def shrunk_row(name, iou, shrunk):
    tasks = {}
    for group in ("seen", "unseen"):
        tasks[f"gtbox_{group}"] = {"IoU": iou, "AP": iou - 20}
        tasks[f"shrunk_gtbox_{group}"] = {"IoU": shrunk, "AP": shrunk - 21}
    return Row(name, name.title(), [tasks], [1.0], ["abc"])


def test_side_tables_have_the_rows_that_were_measured_and_what_they_lost():
    rows = [row("agnostic", [40.0]), shrunk_row("shapemask", 50.0, 47.5)]
    page = render_page(rows, seeds=[0])
    assert "Overlapped objects" not in page
    side = page.split("## Boxes that are too small")[1].split("## Margins")[0]
    lines = [line for line in side.splitlines() if "`" in line and line.startswith("|")]
    assert lines == [
        "| Shapemask | `shapemask` | 1 | 47.5 | 2.5 | 47.5 | 2.5 | 26.5 | 3.5 |",
    ]
    # The next page takes the row's line from the methods' table, not from this one.
    assert lines_of(page)["shapemask"].startswith("| Shapemask | `shapemask` | 1 | 50.0 |")


def test_a_loss_is_that_of_the_seeds_that_measured_it():
    measured, not_measured = shrunk_row("a", 50.0, 47.5), row("a", [60.0])
    both = Row("a", "A", [*not_measured.results, *measured.results])
    assert Column("lost", "gtbox_unseen", "IoU", minus="shrunk_gtbox_unseen").values(both) == [2.5]


def test_a_claim_can_be_about_what_is_lost():
    task = "shrunk_gtbox_unseen"
    rows = [shrunk_row("a", 50.0, 47.5), shrunk_row("b", 60.0, 54.0)]
    claim = Claim(("a", task), ("b", task), "IoU", 3, "a loses less", minus="gtbox_unseen")
    assert claim.margins(rows) == [3.5] and claim.holds(rows)
    assert not replace(claim, margin=4).holds(rows)


def test_expected_results_have_the_box_ap_where_it_was_measured():
    results = [{"bbox_all": {"AP": ap}, "gtbox_seen": {"IoU": 60.0}} for ap in (20.0, 26.0)]
    assert expected_results(Row("fcos", "FCOS", results)) == [
        ["gtbox_seen", "IoU", 60.0, 3.0],
        ["bbox_all", "AP", 23.0, 6.0],
    ]
