"""Where the time of a step goes: a profile, split by the parts of a model.

Parts are marked in forward passes; an op of the backward pass belongs to the part of the forward op
that it is the gradient of. On CUDA the time is that of kernels, else that of the CPU.
"""

import bisect
import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from unittest import mock

from psis_d2.modeling.context import RegionContext

import torch
from detectron2.structures import BitMasks
from measure import peak_of, trace
from torch import nn
from torch.profiler import record_function

MARK = "part: "
OTHER = "other"
# Functions that parts consist of, by (owner, attribute); those of a model's own follow.
_SHARED = {
    (BitMasks, "crop_and_resize"): "targets",
    (RegionContext, "mask_targets"): "targets",
    (RegionContext, "annotated_cells"): "targets",
    (RegionContext, "object_cells"): "targets",
    (torch.optim.SGD, "step"): "optimizer",
}


@dataclass(frozen=True)
class Profile:
    """A step's profile.

    Attributes:
        milliseconds: by part; the largest first.
        ops: how many ops ran that no other op called.
        peak: bytes allocated at most at once, over what was there before; 0 on CUDA.
    """

    milliseconds: dict[str, float]
    ops: int
    peak: int = 0


def parts_of(model: nn.Module) -> dict[tuple[object, str], str]:
    """What to mark in a model: (owner, attribute) to the part's name."""
    found = {
        (model, "preprocess_image"): "input",
        (model.backbone, "forward"): "backbone",
        (model.proposal_generator, "forward"): "proposals",
    }
    if hasattr(model, "mask_head"):  # CondInst
        found[model.proposal_generator, "detect"] = "proposals"
        found[model.proposal_generator, "propose"] = "proposals"
        found[model, "_mask_targets"] = "targets"
        head = model.mask_head
    else:
        heads = model.roi_heads
        found[heads, "label_and_sample_proposals"] = "sampling"
        for name in ("box_pooler", "mask_pooler"):
            if getattr(heads, name, None) is not None:
                found[getattr(heads, name), "forward"] = "pooling"
        for name, methods in (("box_head", ["forward"]), ("box_predictor", ["forward", "losses"])):
            part = getattr(heads, name, None)
            methods = [*methods, *(["inference"] if name == "box_predictor" else ["maps"])]
            for method in methods:
                if hasattr(part, method):
                    found[part, method] = "box head"
        head = heads.mask_head
    if hasattr(type(model), "_postprocess"):
        found[type(model), "_postprocess"] = "post-processing"
    found[head, "forward"] = "head"
    if hasattr(head, "losses") and hasattr(model, "mask_head"):
        found[head, "losses"] = "head"
    for name, child in head.named_modules():
        # Layers of the head, and of the heads that it is made of.
        if name and name.count(".") < (2 if hasattr(head, "teacher") else 1):
            found[child, "forward"] = f"head: {name}"
    return found


@contextlib.contextmanager
def marked(model: nn.Module) -> Iterator[None]:
    """While it lasts, a profile shows the model's parts."""
    with contextlib.ExitStack() as stack:
        for (owner, name), part in {**_SHARED, **parts_of(model)}.items():
            own = vars(owner).get(name) if isinstance(owner, type) else None
            inner = own.__func__ if isinstance(own, staticmethod) else getattr(owner, name)

            def call(*args, _inner=inner, _part=part, **kwargs):
                with record_function(MARK + _part):
                    return _inner(*args, **kwargs)

            replaced = staticmethod(call) if isinstance(own, staticmethod) else call
            stack.enter_context(mock.patch.object(owner, name, replaced))
        yield


def profile_step(model: nn.Module, step: Callable[[], object], device: str) -> Profile:
    """Runs a step in a profile."""
    with marked(model):
        events = trace(step, device)
    found = split(events, device)
    return found if device == "cuda" else replace(found, peak=peak_of(events))


def split(events: list[dict], device: str) -> Profile:
    """The parts' times of the events of a Chrome trace."""
    marks = [e for e in events if e.get("cat") == "user_annotation" and e["name"].startswith(MARK)]
    spans = _Spans(marks)
    ops = [e for e in events if e.get("cat") == "cpu_op"]
    top = _outermost(ops)
    # Forward ops by their number in the graph; views and functions without gradients share it with
    # the next one, so the last op of a number is the one whose gradient it is.
    owner: dict[int, str] = {}
    for event in sorted(ops, key=lambda e: e["ts"]):
        number = event.get("args", {}).get("Sequence number", -1)
        if number >= 0 and not event.get("args", {}).get("Fwd thread id"):
            owner[number] = spans.at(event)
    milliseconds: dict[str, float] = defaultdict(float)
    label_of: dict[int, str] = {}
    for event in top:
        number = event.get("args", {}).get("Sequence number", -1)
        backward = event["name"].startswith("autograd::engine")
        label = owner.get(number, OTHER) if backward else spans.at(event)
        label_of[id(event)] = label
        if device == "cpu":
            milliseconds[label] += event["dur"] / 1e3
    if device == "cuda":
        _add_kernels(events, ops, top, label_of, milliseconds)
    ordered = sorted(milliseconds.items(), key=lambda item: -item[1])
    return Profile(dict(ordered), len(top))


def _add_kernels(events, ops, top, label_of, milliseconds) -> None:
    """Times of kernels, each a part of the outermost op that started it."""
    by_id = {e["args"]["External id"]: e for e in ops if "External id" in e.get("args", {})}
    starts = defaultdict(list)
    for event in sorted(top, key=lambda e: e["ts"]):
        starts[event["tid"]].append(event)
    for kernel in events:
        if kernel.get("cat") not in ("kernel", "gpu_memcpy", "gpu_memset"):
            continue
        op = by_id.get(kernel.get("args", {}).get("External id"))
        label = OTHER
        if op is not None:
            row = starts[op["tid"]]
            index = bisect.bisect_right([e["ts"] for e in row], op["ts"]) - 1
            label = label_of[id(row[index])] if index >= 0 else OTHER
        milliseconds[label] += kernel["dur"] / 1e3


class _Spans:
    """Marked spans of time; the innermost one counts."""

    def __init__(self, marks: list[dict]):
        self.marks = sorted(marks, key=lambda e: e["ts"])
        self.starts = [e["ts"] for e in self.marks]

    def at(self, event: dict) -> str:
        for mark in reversed(self.marks[: bisect.bisect_right(self.starts, event["ts"])]):
            inside = event["ts"] < mark["ts"] + mark["dur"] and mark["tid"] == event["tid"]
            if inside:
                return mark["name"].removeprefix(MARK)
        return OTHER


def _outermost(ops: list[dict]) -> list[dict]:
    """Ops that no other op called, thread by thread."""
    found, end = [], defaultdict(float)
    for event in sorted(ops, key=lambda e: (e["ts"], -e["dur"])):
        if event["ts"] >= end[event["tid"]]:
            found.append(event)
            end[event["tid"]] = event["ts"] + event["dur"]
    return found
