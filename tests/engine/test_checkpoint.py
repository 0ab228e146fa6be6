"""Checkpoints: complete or absent, and only for the model they belong to."""

import psis_d2  # noqa: F401
from psis_d2.engine.checkpoint import Checkpointer
from psis_d2.errors import UserError

import pytest
import torch


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
    assert content["psis_d2"] == {"class_names": ["a", "b"], "seen_ids": [1]}


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
    with pytest.raises(UserError, match=r"its classes differ from the data set's \(b / c\)"):
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
