"""Every method on a GPU: the losses of three steps are those of the CPU."""

import pytest
from tool_scripts import load_tool

METHOD_LOSSES = load_tool("gpu/method_losses")


def test_a_loss_that_differs_or_is_missing_is_found():
    want = [{"loss_cls": 1.0, "loss_mask": 2.0}]
    found = [{"loss_cls": 1.0005, "loss_mask": 2.1}]
    rows = list(METHOD_LOSSES.differences(want, found, amp=False))
    assert [(name, error <= allowed) for _, name, error, allowed in rows] == [
        ("loss_cls", True),
        ("loss_mask", False),
    ]
    rows = list(METHOD_LOSSES.differences(want, [{"loss_cls": float("nan")}], amp=True))
    assert not any(error <= allowed for _, _, error, allowed in rows)


def test_a_method_gives_the_same_losses_twice():
    first = METHOD_LOSSES.losses_of("agnostic_shapes")
    assert len(first) == METHOD_LOSSES.STEPS and first[0] != first[1]
    assert METHOD_LOSSES.losses_of("agnostic_shapes") == first


@pytest.mark.gpu
@pytest.mark.parametrize("amp", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("method", METHOD_LOSSES.METHODS)
def test_losses_on_cuda_are_those_of_the_cpu(method, amp, monkeypatch):
    import torch

    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    expected = METHOD_LOSSES.losses_of(method)
    found = METHOD_LOSSES.losses_of(method, "cuda", amp)
    rows = list(METHOD_LOSSES.differences(expected, found, amp))
    assert [row for row in rows if not row[2] <= row[3]] == []
