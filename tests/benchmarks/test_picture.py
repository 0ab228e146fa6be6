"""The picture of results: a line a row, dots where its seeds are."""

from benchmarks.yardsticks.picture import results_picture
from benchmarks.yardsticks.rows import Row, Run


def row(name, unseen, seen):
    runs = [
        Run(name, results={"gtbox_unseen": {"IoU": u}, "gtbox_seen": {"IoU": s}})
        for u, s in zip(unseen, seen, strict=True)
    ]
    return Row(name, name.title(), runs)


def test_rows_are_ordered_by_their_mean_and_each_seed_is_a_dot(tmp_path):
    rows = [row("good", [60.0, 50.0], [70.0, 80.0]), row("bad", [40.0], [65.0]), Row("none", "-")]
    figure = results_picture(rows)
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["bad", "good"]
    points = [(list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines]
    assert points[:4] == [
        ([40.0, 65.0], [0, 0]),
        ([40.0], [0]),
        ([40.0], [0]),
        ([65.0], [0]),
    ]
    assert points[4:] == [
        ([55.0, 75.0], [1, 1]),
        ([60.0, 50.0], [1, 1]),
        ([55.0], [1]),
        ([75.0], [1]),
    ]
    figure.savefig(tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
