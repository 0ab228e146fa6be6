"""Every kind of file as the weights of an evaluation: refused in a sentence, or evaluated as it is.

``tests/engine/test_foreign_checkpoints.py`` has what each kind is refused for. The weights in those
that load there are of another model than this one: here they have to be refused, too.
"""

import json

import psis_d2  # noqa: F401

import pytest
import torch
import train_net

from foreign_files import KINDS, write
from tiny_data import command_line, write_tiny_data

pytestmark = pytest.mark.usefixtures("catalogs")
EVERY = 30  # of the kinds, one is in the ordinary suite


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_tiny_data(tmp_path_factory.mktemp("tiny"), images=2)


def evaluation(data, output, weights) -> list[str]:
    more = ("DATALOADER.NUM_WORKERS", 0, "MODEL.WEIGHTS", weights)
    return ["--eval-only", *command_line(data, output, *more, config="agnostic_shapes")]


def marked(place: int, name: str):
    return name if place % EVERY == 0 else pytest.param(name, marks=pytest.mark.faults)


@pytest.mark.parametrize("name", [marked(place, name) for place, name in enumerate(KINDS)])
def test_no_kind_is_evaluated_with_random_weights(data, tmp_path, monkeypatch, capsys, name):
    (tmp_path / "files").mkdir()
    monkeypatch.chdir(tmp_path / "files")
    path = write(name, tmp_path / "files")
    torch.manual_seed(0)
    with pytest.raises(SystemExit) as end:
        train_net.invoke_main(evaluation(data, tmp_path / "out", path))
    printed = capsys.readouterr()
    assert end.value.code == 2
    (sentence,) = [line for line in printed.err.splitlines() if line.startswith("error: ")]
    assert str(path) in sentence
    assert "Traceback" not in sentence
    assert [p.name for p in (tmp_path / "files").iterdir()] == [name]  # nothing ran
    assert not (tmp_path / "out" / "results.json").exists()


def test_a_file_of_this_model_is_evaluated(data, tmp_path):
    """What the refusals above are worth: the same command with the right weights."""
    line = command_line(
        data, tmp_path / "out", "DATALOADER.NUM_WORKERS", 0, "DATASETS.TEST", "[]",
        config="agnostic_shapes",
    )  # fmt: skip
    train_net.invoke_main(line)
    weights = tmp_path / "out" / "model_final.pth"
    train_net.invoke_main(evaluation(data, tmp_path / "eval", weights))
    assert "bbox_all" in json.loads((tmp_path / "eval" / "results.json").read_text())
