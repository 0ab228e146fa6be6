"""Checkpoints: complete or absent, and only for the model they belong to."""

import errno
import os
import urllib.error
from pathlib import Path

import psis_d2  # noqa: F401
from psis_d2.config import add_psis_config
from psis_d2.engine.checkpoint import Checkpointer, read_entry, remove_leftovers
from psis_d2.errors import UserError

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.utils.file_io import PathManager


def saved(folder, names=("a", "b")):
    model = torch.nn.Linear(2, len(names))
    Checkpointer(model, str(folder), class_names=names, seen_ids=[1]).save("model")
    return model, str(folder / "model.pth")


def test_round_trip(tmp_path):
    model, path = saved(tmp_path)
    other = torch.nn.Linear(2, 2)
    checkpointer = Checkpointer(other, str(tmp_path), class_names=("a", "b"))
    rest = checkpointer.resume_or_load("", resume=True)
    assert torch.equal(model.weight, other.weight)
    assert "psis_d2" not in rest
    content = torch.load(path, weights_only=True)
    entry = content["psis_d2"]
    assert entry["class_names"] == ["a", "b"]
    assert (entry["seen_ids"], entry["seen_names"]) == ([1], ["b"])
    assert entry["format"] == 1
    assert entry["versions"]["torch"] == torch.__version__
    assert set(entry["digests"]) == {"model/weight", "model/bias", "everything else"}
    assert read_entry(path) == entry


def test_an_interrupted_save_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    model, path = saved(tmp_path)
    before = torch.load(path)["model"]["weight"].clone()

    def broken(data, file, **kwargs):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", broken)
    torch.nn.init.zeros_(model.weight)
    with pytest.raises(KeyboardInterrupt):
        Checkpointer(model, str(tmp_path), class_names=("a", "b")).save("model")
    assert torch.equal(torch.load(path)["model"]["weight"], before)
    assert (tmp_path / "last_checkpoint").read_text() == "model.pth"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last_checkpoint", "model.pth"]


def test_other_names_are_refused_with_the_differing_ones(tmp_path):
    _, path = saved(tmp_path)
    model = torch.nn.Linear(2, 2)
    with pytest.raises(UserError, match=r"its classes differ from the data set's \('b' / 'c'\)"):
        Checkpointer(model, class_names=("a", "c")).load(path)
    Checkpointer(model, class_names=("a", "c"), skip_mismatched=True).load(path)


def test_skipping_loads_what_fits(tmp_path):
    first, path = saved(tmp_path)
    model = torch.nn.Linear(2, 3)
    weight = model.weight.clone()
    Checkpointer(model, class_names=("a", "b", "c"), skip_mismatched=True).load(path)
    assert torch.equal(model.weight, weight)


def test_a_checkpoint_without_names_is_judged_by_its_shapes(tmp_path):
    torch.save({"model": torch.nn.Linear(2, 5).state_dict()}, tmp_path / "plain.pth")
    with pytest.raises(UserError, match=r"weight is \(5, 2\) there and \(2, 2\) here"):
        Checkpointer(torch.nn.Linear(2, 2), class_names=("a", "b")).load(
            str(tmp_path / "plain.pth")
        )


def test_detectron2_zoo_files_load(tmp_path):
    """Model-zoo pickles hold NumPy arrays and an author; ours must read them as Detectron2 does."""
    import pickle

    model = torch.nn.Linear(2, 2)
    arrays = {name: tensor.numpy() for name, tensor in torch.nn.Linear(2, 2).state_dict().items()}
    path = tmp_path / "zoo.pkl"
    path.write_bytes(pickle.dumps({"model": arrays, "__author__": "Detectron2 Model Zoo"}))
    Checkpointer(model, class_names=("a", "b")).load(str(path))
    assert torch.equal(model.weight, torch.from_numpy(arrays["weight"]))


def test_the_config_is_in_the_file(tmp_path):
    cfg = get_cfg()
    add_psis_config(cfg)
    cfg.PSIS.SEEN_CLASSES = "random-1-7"
    Checkpointer(torch.nn.Linear(2, 2), str(tmp_path), cfg=cfg).save("model")
    entry = read_entry(str(tmp_path / "model.pth"))
    assert entry["split"] == "random-1-7"
    assert entry["config"] == cfg.dump()
    assert type(cfg).load_cfg(entry["config"]).PSIS.SEEN_CLASSES == "random-1-7"


class Counter:
    """A thing with a state."""

    def __init__(self, count=0):
        self.count = count

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state):
        self.count = state["count"]


def checkpoints(folder, *iterations, names=("a", "b"), seen=(1,)):
    """Checkpoints of a training whose weights are its iteration."""
    for iteration in iterations:
        model = torch.nn.Linear(2, 2)
        torch.nn.init.constant_(model.weight, iteration)
        checkpointer = Checkpointer(
            model, str(folder), class_names=names, seen_ids=seen, counter=Counter(iteration)
        )
        checkpointer.save(f"model_{iteration:07d}", iteration=iteration)


def resumed(folder, names=("a", "b"), seen=(1,)):
    """Iteration that a training resumes from, in which weights and states have to agree."""
    model, counter = torch.nn.Linear(2, 2), Counter()
    checkpointer = Checkpointer(
        model, str(folder), class_names=names, seen_ids=seen, counter=counter
    )
    assert checkpointer.has_checkpoint()
    checkpointer.resume_or_load("", resume=True)
    assert (model.weight == counter.count).all()
    return counter.count


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[content.index(torch.full((4,), 9.0).numpy().tobytes()) + 2] ^= 1
    path.write_bytes(content)


def strip(path: Path) -> None:
    content = torch.load(path, weights_only=True)
    torch.save({"model": content["model"]}, path)


@pytest.mark.parametrize("damage", [truncate, empty, flip, strip])
def test_a_damaged_newest_file_falls_back_to_the_one_before(tmp_path, damage, caplog):
    checkpoints(tmp_path, 4, 10, 9)  # in the order of writing, as after a restart
    os.utime(tmp_path / "model_0000010.pth", (1, 1))  # times of files may be those of a copy
    damage(tmp_path / "model_0000009.pth")
    assert resumed(tmp_path) == 10
    assert "Trying the one before it" in caplog.text


@pytest.mark.parametrize("content", ["", "model_0000077.pth", "../x.pth", "\0\xff", "model"])
def test_a_damaged_last_checkpoint_falls_back_to_the_newest(tmp_path, content, caplog):
    checkpoints(tmp_path, 4, 10)
    (tmp_path / "last_checkpoint").write_bytes(content.encode("latin1"))
    assert resumed(tmp_path) == 10
    assert "names no file" in caplog.text
    (tmp_path / "last_checkpoint").unlink()  # killed between the two files
    assert resumed(tmp_path) == 10


def test_no_whole_checkpoint_is_one_sentence(tmp_path):
    checkpoints(tmp_path, 9)
    empty(tmp_path / "model_0000009.pth")
    with pytest.raises(UserError, match="None of the 1 checkpoints in .* is whole"):
        resumed(tmp_path)


def test_resuming_under_another_split_is_refused(tmp_path):
    checkpoints(tmp_path, 4, seen=[0])
    assert resumed(tmp_path, seen=[0]) == 4
    words = "another split: trained on masks of a; seen here: b; set PSIS.SEEN_CLASSES as it was"
    with pytest.raises(UserError, match=words):
        resumed(tmp_path, seen=[1])
    with pytest.raises(UserError, match=r"classes differ from the data set's \('b' / 'c'\)"):
        resumed(tmp_path, names=("a", "c"), seen=[0])


def test_other_uses_under_another_split_are_told(tmp_path, caplog):
    checkpoints(tmp_path, 4, seen=[0])
    path = str(tmp_path / "model_0000004.pth")
    note = "trained on masks of a; seen here: b"
    options = {"class_names": ("a", "b"), "seen_ids": [1]}
    training = Checkpointer(torch.nn.Linear(2, 2), **options)
    training.load(path, checkpointables=[])
    assert f"know masks of another split: {note}" in caplog.text
    evaluation = Checkpointer(torch.nn.Linear(2, 2), complete=True, **options)
    assert evaluation.split_note() == ""  # nothing is loaded yet
    evaluation.load(path)
    assert evaluation.split_note() == note
    same = Checkpointer(torch.nn.Linear(2, 2), class_names=("a", "b"), seen_ids=[0])
    same.load(path)
    assert same.split_note() == ""


def test_checkpoints_of_earlier_versions_load(tmp_path):
    """Names and ids were all that they said."""
    model = torch.nn.Linear(2, 2)
    entry = {"class_names": ["a", "b"], "seen_ids": [1]}
    torch.save(
        {"model": model.state_dict(), "counter": {"count": 3}, "psis_d2": entry},
        tmp_path / "model_0000003.pth",
    )
    (tmp_path / "last_checkpoint").write_text("model_0000003.pth")
    other, counter = torch.nn.Linear(2, 2), Counter()
    checkpointer = Checkpointer(
        other, str(tmp_path), class_names=("a", "b"), seen_ids=[1], counter=counter
    )
    checkpointer.resume_or_load("", resume=True)
    assert torch.equal(model.weight, other.weight)
    assert counter.count == 3


def test_a_state_that_does_not_fit_is_one_sentence(tmp_path):
    checkpoints(tmp_path, 4)
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    with pytest.raises(UserError, match="does not fit this model and its optimizer"):
        Checkpointer(model, str(tmp_path), counter=optimizer).resume_or_load("", resume=True)


def full_disk(*args, **kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_full_disk_keeps_the_last_checkpoint(tmp_path, monkeypatch, failing):
    checkpoints(tmp_path, 4)
    with monkeypatch.context() as patch:
        patch.setattr(os, failing, full_disk)
        with pytest.raises(UserError) as caught:
            checkpoints(tmp_path, 9)
    assert "model_0000009.pth cannot be written (No space left on device)" in str(caught.value)
    assert f"--resume from {tmp_path}/model_0000004.pth" in str(caught.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last_checkpoint", "model_0000004.pth"]
    assert resumed(tmp_path) == 4


def test_training_may_go_on_after_a_failed_save(tmp_path, monkeypatch, caplog):
    checkpointer = Checkpointer(torch.nn.Linear(2, 2), str(tmp_path), may_fail=True)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full_disk)
        checkpointer.save("model_0000004", iteration=4)
        assert "training goes on without it" in caplog.text
        assert checkpointer.saved_iteration is None
        with pytest.raises(UserError):  # nothing would remain of the training
            checkpointer.save("model_final", iteration=5)
    checkpointer.save("model_0000006", iteration=6)
    assert checkpointer.saved_iteration == 6


def test_leftovers_are_removed(tmp_path):
    (tmp_path / "model_0000004.pth.partial").write_bytes(b"x")
    (tmp_path / "model_0000004.pth").write_bytes(b"x")
    remove_leftovers(str(tmp_path))
    assert [p.name for p in tmp_path.iterdir()] == ["model_0000004.pth"]
    remove_leftovers(str(tmp_path / "none"))


@pytest.mark.parametrize("path", ["detectron2://none/model.pkl", "https://127.0.0.1:9/model.pth"])
def test_weights_that_cannot_be_downloaded(path, monkeypatch):
    def offline(*args, **kwargs):
        raise urllib.error.URLError("Network is unreachable")

    monkeypatch.setattr(PathManager, "get_local_path", offline)
    with pytest.raises(UserError) as caught:
        Checkpointer(torch.nn.Linear(2, 2)).load(path)
    assert f"The weights {path} cannot be downloaded (Network is unreachable)" in str(caught.value)
    assert "MODEL.WEIGHTS ''" in str(caught.value)
