"""Time and memory of the weight transfer head with 80 and with 3,000 classes.

    python benchmarks/bench_maskx_classes.py --device cpu --threads 1

The head as in configs/maskx_R50.yaml, without the MLP branch, which no number of classes changes.
Regions are of classes drawn from all K. "own kernel" is psis_d2's form: each region meets the
kernel of its class alone; "all kernels", with --all-kernels, is the released code's, which computes
the masks of every class and picks one. A form is not timed before its logits agree with float64.
Memory is the peak above what the weights and inputs take.
"""

import argparse
from functools import partial

import psis_d2  # noqa: F401
from psis_d2.modeling.context import RegionContext
from psis_d2.modeling.losses import mask_bce
from psis_d2.modeling.mask_heads.maskx import MaskXMaskHead

import torch
from common import largest_error, parse_common, print_environment, print_table, save
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.structures import Boxes, Instances
from measure import environment, measure, peak_memory
from torch import Tensor

MAX_ERROR = 1e-4
CLASSES = (80, 3000)
BOX_FEATURES = 1024
CHANNELS = 256


def build(num_classes: int, device: str) -> tuple[MaskXMaskHead, FastRCNNOutputLayers]:
    """The head and the box predictor that it reads."""
    torch.manual_seed(0)
    head = MaskXMaskHead(
        ShapeSpec(channels=CHANNELS, height=14, width=14),
        conv_dim=CHANNELS,
        num_convs=4,
        source="cls+box",
        embedding_dim=5 * BOX_FEATURES,
    )
    predictor = FastRCNNOutputLayers(
        ShapeSpec(channels=BOX_FEATURES),
        box2box_transform=Box2BoxTransform((10.0, 10.0, 5.0, 5.0)),
        num_classes=num_classes,
    )
    return head.to(device), predictor.to(device)


def make_context(regions: int, num_classes: int, predictor, device: str) -> RegionContext:
    """Test-time regions of one image with random features and classes."""
    torch.manual_seed(1)
    features = torch.rand(regions, CHANNELS, 14, 14, device=device)
    instances = Instances(
        (800, 800),
        pred_boxes=Boxes(torch.tensor([[0.0, 0.0, 99.0, 99.0]], device=device).repeat(regions, 1)),
        pred_classes=torch.randint(num_classes, (regions,), device=device),
    )
    return RegionContext([instances], features, pool=lambda _: features, box_predictor=predictor)


def own_kernel(head: MaskXMaskHead, context: RegionContext) -> Tensor:
    """Logits [R, 1, 2P, 2P] of each region's class."""
    return head.predict(context)


def all_kernels(head: MaskXMaskHead, context: RegionContext) -> Tensor:
    """The same by way of all classes' logits, [R, K, 2P, 2P]."""
    x = head.upsample(head.trunk(context.features))
    classes = torch.arange(context.box_predictor.num_classes, device=x.device)
    kernels = head.class_kernels(context.box_predictor, classes)
    logits = torch.nn.functional.conv2d(x, kernels[:, :, None, None])
    return logits[torch.arange(len(context), device=x.device), context.classes, None]


FORMS = {"own kernel": own_kernel, "all kernels": all_kernels}


def train_step(form, head: MaskXMaskHead, context: RegionContext, targets: Tensor) -> None:
    """Loss and gradients of all the head's parameters, which are then dropped."""
    mask_bce(form(head, context), targets, context.classes).backward()
    head.zero_grad(set_to_none=True)


def exact_logits(head: MaskXMaskHead, predictor, context: RegionContext) -> Tensor:
    """The logits in float64, region by region."""
    head, predictor = head.double(), predictor.double()
    x = head.upsample(head.trunk(context.features.double()))
    kernels = head.class_kernels(predictor, context.classes)
    return torch.stack(
        [torch.einsum("c,chw->hw", kernel, map_) for kernel, map_ in zip(kernels, x, strict=True)]
    )[:, None]


def check(form: str, num_classes: int, device: str) -> float:
    """Error of a form on a few regions; ends the program if it is wrong."""
    head, predictor = build(num_classes, device)
    context = make_context(4, num_classes, predictor, device)
    with torch.no_grad():
        logits = FORMS[form](head, context)
        error = largest_error([logits.double()], [exact_logits(head, predictor, context)])
    if error > MAX_ERROR:
        raise SystemExit(f"error: {form} is wrong by {error:.1e} with {num_classes} classes.")
    return error


def measure_form(form: str, num_classes: int, regions: int, device: str, seconds: float):
    """(inference ms, MB, training ms, MB) of one form."""
    head, predictor = build(num_classes, device)
    context = make_context(regions, num_classes, predictor, device)
    targets = torch.rand(regions, 28, 28, device=device).round()
    step = partial(train_step, FORMS[form], head, context, targets)
    infer = torch.no_grad()(partial(FORMS[form], head, context))
    numbers = []
    for call in (infer, step):
        numbers += [measure(call, device, seconds).best / 1e3, peak_memory(call, device) / 1e6]
    return numbers


def main() -> None:
    """Parses the arguments, prints one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--regions", type=int, help="default: 16 on the CPU, 128 on CUDA")
    parser.add_argument("--all-kernels", action="store_true", help="also the released code's form")
    args = parse_common(parser)
    facts = environment(args.device)
    print_environment(facts)
    regions = args.regions or (16 if args.device == "cpu" else 128)
    rows = []
    for form in list(FORMS)[: 1 + args.all_kernels]:
        base = None
        for num_classes in CLASSES:
            error = check(form, num_classes, args.device)
            numbers = measure_form(form, num_classes, regions, args.device, args.seconds)
            base = base or numbers
            row = {"form": form, "regions": str(regions), "classes": str(num_classes)}
            row["rel.err"] = f"{error:.1e}"
            names = ("infer ms", "infer MB", "train ms", "train MB")
            for name, number, first in zip(names, numbers, base, strict=True):
                row[name] = f"{number:.1f}"
                row[f"{name[:-3]} {name[-2:]} ratio"] = f"{number / first:.2f}"
            rows.append(row)
    print_table(rows)
    if args.save:
        save("maskx_classes", rows, facts, args.save)


if __name__ == "__main__":
    main()
