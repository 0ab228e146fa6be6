"""Losses of small models of every method, computed on one device and compared on another.

    python tools/gpu/method_losses.py save losses.json
    python tools/gpu/method_losses.py compare losses.json --device cuda [--amp]

Three steps of SGD from the same weights on the same images. What is drawn at random is drawn on the
CPU, so that all devices sample the same proposals.
"""

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import psis_d2.modeling  # noqa: E402, F401  (before detectron2)

import torch  # noqa: E402
from detectron2.utils.events import EventStorage  # noqa: E402
from torch.overrides import TorchFunctionMode  # noqa: E402

from model_builders import SHAPEMASK, partial_batch, tiny_model  # noqa: E402

# Quick config and what it needs beside itself.
METHODS = {
    "agnostic_shapes": (),
    "shapeprop_shapes": (),
    "teacher_student_shapes": (),
    "maskx_shapes": (),
    "opmask_shapes": ("MODEL.ROI_BOX_HEAD.CONV_DIM", 32),
    "contrastmask_shapes": ("MODEL.ROI_BOX_HEAD.CONV_DIM", 32),
    "boxlosses_gt_shapes": ("PSIS.PAIRWISE_WARMUP", 0),
    "cpmask_shapes": ("MODEL.ROI_MASK_HEAD.CONV_DIM", 32),
    "shapemask_shapes": SHAPEMASK,
    "boxinst_mixed_shapes": ("PSIS.CONDINST.BRANCH_DIM", 16, "PSIS.CONDINST.PAIRWISE_WARMUP", 0),
}
STEPS = 3
# Difference that the order of a device's sums explains, in the first and in later steps, and the
# part of all losses that it is at least relative to. Half precision moves proposals across the
# borders of their assignment too: it is measured by the size of all losses.
ALLOWED = {False: (1e-3, 1e-2), True: (0.1, 0.1)}
LEAST = {False: 0.05, True: 1.0}


class DrawnOnCpu(TorchFunctionMode):
    """Random tensors are drawn on the CPU and moved to where they were asked for."""

    FACTORIES = (torch.rand, torch.randn, torch.randint, torch.randperm)
    LIKE = (torch.rand_like, torch.randn_like, torch.bernoulli, torch.multinomial)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func in self.FACTORIES and kwargs.get("device") is not None:
            device = kwargs.pop("device")
            return func(*args, **kwargs).to(device)
        if func in self.LIKE:
            like, *rest = args
            return func(like.cpu(), *rest, **kwargs).to(like.device)
        return func(*args, **kwargs)


def losses_of(method: str, device: str = "cpu", amp: bool = False) -> list[dict[str, float]]:
    """The losses of each step, by name."""
    batch = partial_batch([[True, False, True], [False, True]], size=96)
    model = tiny_model("MODEL.DEVICE", device, *METHODS[method], config=f"quick/{method}.yaml")
    for module in model.modules():
        if isinstance(module, (torch.nn.Dropout, torch.nn.Dropout2d)):
            module.p = 0.0
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    found = []
    for step in range(STEPS):
        torch.manual_seed(step)
        model.train()
        half = torch.autocast(device, dtype=torch.bfloat16, enabled=amp)
        with EventStorage(step), DrawnOnCpu(), half:
            losses = model(batch)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        found.append({name: loss.item() for name, loss in losses.items()})
    return found


def differences(
    expected: list[dict[str, float]], found: list[dict[str, float]], amp: bool
) -> Iterable[tuple[int, str, float, float]]:
    """(step, loss, relative difference, allowed) of every loss; a missing one differs by inf."""
    for step, (want, got) in enumerate(zip(expected, found, strict=True)):
        least = LEAST[amp] * sum(abs(v) for v in want.values())
        for name in sorted(want.keys() | got.keys()):
            difference = float("inf")
            if name in want and name in got:
                difference = abs(got[name] - want[name]) / max(abs(want[name]), least)
            yield step, name, difference, ALLOWED[amp][min(step, 1)]


def compare(path: Path, device: str, amp: bool, methods: list[str]) -> bool:
    """Prints a line a method; whether all agree."""
    expected, good = json.loads(path.read_text(encoding="utf-8")), True
    for method in methods:
        try:
            rows = list(differences(expected[method], losses_of(method, device, amp), amp))
        except Exception as error:  # the other methods are of interest all the same
            print(f"{method:28} fails: {str(error).splitlines()[0]}", flush=True)
            good = False
            continue
        wrong = [row for row in rows if not row[2] <= row[3]]
        step, name, worst, _ = max(rows, key=lambda row: row[2] / row[3])
        state = "WRONG" if wrong else "ok"
        print(f"{method:28} {state:6} {worst:.1e} ({name}, step {step})", flush=True)
        good &= not wrong
    return good


def main() -> None:
    """Saves or compares; fails if a loss differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["save", "compare"])
    parser.add_argument("path", type=Path)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--amp", action="store_true", help="autocast to bfloat16")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    args = parser.parse_args()
    # A comparison with a CPU is no place for TF32.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    if args.what == "save":
        text = json.dumps({m: losses_of(m, args.device, args.amp) for m in args.methods}, indent=1)
        args.path.parent.mkdir(parents=True, exist_ok=True)
        args.path.write_text(text + "\n", encoding="utf-8")
    elif not compare(args.path, args.device, args.amp, args.methods):
        raise SystemExit("error: losses differ from the ones in the file.")


if __name__ == "__main__":
    main()
