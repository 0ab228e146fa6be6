"""A zoo of files that are given as weights: no code runs; each loads right or is one sentence."""

import collections
import pickle
import random
import sys
from pathlib import Path

import psis_d2  # noqa: F401
from psis_d2.engine.checkpoint import Checkpointer, read_checkpoint
from psis_d2.errors import UserError

import pytest
import torch
from torch import nn

from foreign_files import ARRAYS, KINDS, RIGHT, WEIGHTS, flipped, model, sealed, write


def load(path: Path, **options) -> nn.Module:
    """Load a file into other weights, as an evaluation does."""
    target = model(seed=1)
    Checkpointer(target, class_names=("a", "b"), complete=True, **options).load(str(path))
    return target


def one_sentence(path: Path, **options) -> str:
    with pytest.raises(UserError) as caught:
        load(path, **options)
    text = str(caught.value)
    assert str(path) in text
    assert "\n" not in text
    assert "weights_only" not in text  # torch's advice would run what is in there
    assert text.endswith(".")
    return text


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_loads_right_or_is_one_sentence(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write(name, tmp_path)
    before = sorted(sys.modules)
    if KINDS[name][1] == RIGHT:
        state = load(path).state_dict()
        assert all(torch.equal(state[k], v) for k, v in WEIGHTS.items())
    else:
        assert KINDS[name][1] in one_sentence(path)
    assert [p.name for p in tmp_path.iterdir()] == [name]  # nothing ran
    assert "f2py" not in " ".join(set(sys.modules) - set(before))


def test_there_are_enough_kinds():
    assert len(KINDS) >= 55


@pytest.mark.parametrize("name", ["exec.pkl", "exec.pth", "exec-old.pth", "whole-model.pth"])
def test_the_sentence_names_the_flag(name, tmp_path):
    assert "--trust-checkpoint loads it" in one_sentence(write(name, tmp_path))


@pytest.mark.parametrize(
    "name", ["exec-in-model.pkl", "exec.pth", "class.pth", "pickled-tensors.pkl"]
)
def test_trusted_files_run(name, tmp_path):
    path = write(name, tmp_path)
    content = KINDS[name][0]
    if name == "exec-in-model.pkl":  # what ran returns None, which is no weight
        assert "a NoneType as the weight x" in one_sentence(path, trust=True)
    else:
        assert torch.equal(load(path, trust=True)[0].weight, WEIGHTS["0.weight"])
    assert (tmp_path / "ran").exists() == callable(content)


@pytest.mark.parametrize("name", ["foreign.pth", "lacking.pth"])
def test_random_weights_have_to_be_asked_for(name, tmp_path):
    untouched = model(seed=1).state_dict()
    state = load(write(name, tmp_path), allow_random=True).state_dict()
    assert torch.equal(state["0.bias"], untouched["0.bias"])


def test_a_training_may_start_from_a_part_but_not_from_nothing(tmp_path):
    target = model(seed=1)
    Checkpointer(target).load(str(write("lacking.pth", tmp_path)))
    assert torch.equal(target[0].weight, WEIGHTS["0.weight"])
    with pytest.raises(UserError, match="weights for 0 of the 6 names"):
        Checkpointer(target).load(str(write("foreign.pth", tmp_path)))


def test_caffe2_names_are_matched(tmp_path):
    """Detectron's files name weights in their own way, and hold the optimizer's momentum."""
    target = nn.Sequential(collections.OrderedDict(fc9=nn.Linear(3, 4)))
    blobs = {
        "fc9_w": ARRAYS["0.weight"],
        "fc9_b": ARRAYS["0.bias"],
        "fc9_w_momentum": ARRAYS["0.weight"],
    }
    path = tmp_path / "detectron.pkl"
    path.write_bytes(pickle.dumps({"blobs": blobs, "cfg": "text"}, 2))
    Checkpointer(target, complete=True).load(str(path))
    assert torch.equal(target.fc9.weight, WEIGHTS["0.weight"])


def test_paths_that_are_no_files(tmp_path):
    assert "is a folder" in one_sentence(tmp_path)
    assert "does not exist" in one_sentence(tmp_path / "none.pth")
    (tmp_path / "link.pth").symlink_to("nowhere.pth")
    assert "does not exist" in one_sentence(tmp_path / "link.pth")
    assert "is not a file" in one_sentence(Path("/dev/null"))


def test_every_flipped_bit_is_found_or_harmless(tmp_path):
    """Of bytes in all parts of a file; some, of padding and file times, mean nothing."""
    content = sealed()
    whole = read_checkpoint(str(write("ours-sealed.pth", tmp_path)))
    path = tmp_path / "flipped.pth"
    draw = random.Random(1)
    found = 0
    for at in draw.sample(range(len(content)), 150):
        path.write_bytes(flipped(content, at))
        try:
            read = read_checkpoint(str(path))
        except UserError:
            found += 1
            continue
        assert read.keys() == whole.keys()
        assert read["psis_d2"] == whole["psis_d2"]
        assert all(torch.equal(read["model"][k], v) for k, v in WEIGHTS.items())
    assert found > 50
