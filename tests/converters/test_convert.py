"""Released checkpoints of other code bases: their names, their shapes, the masks they make."""

import re
from pathlib import Path

import psis_d2  # noqa: F401
from psis_d2 import cli
from psis_d2.config import add_psis_config
from psis_d2.config_files import merge_file
from psis_d2.converters import SOURCES, convert_checkpoint, convert_state
from psis_d2.errors import UserError
from psis_d2.modeling.condinst.dynamic_filters import Queries

import pytest
import torch
import torch.nn.functional as F
from detectron2.config import get_cfg
from detectron2.modeling import build_model

from model_builders import condinst_model, literal_upsample, tiny_config

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"
NORM = ("weight", "bias", "running_mean", "running_var")


def resnet_shapes(stem: str, block, shortcut: tuple[str, str]) -> dict[str, tuple]:
    """ResNet-50, its parts named by others: `block` gives the names of convolution and norm."""
    shapes = {}

    def layer(conv, norm, out, into, side):
        shapes[f"{conv}.weight"] = (out, into, side, side)
        shapes.update({f"{norm}.{x}": (out,) for x in NORM})

    layer(*block(stem, 1), 64, 3, 7)
    into = 64
    for stage, (blocks, width) in enumerate(((3, 64), (4, 128), (6, 256), (3, 512))):
        for index in range(blocks):
            for number, (a, b, side) in enumerate(
                ((width, into, 1), (width, width, 3), (4 * width, width, 1)), start=1
            ):
                layer(*block((stage, index), number), a, b, side)
            if index == 0:
                place = block((stage, index), None)
                layer(*(f"{place}.{x}" for x in shortcut), 4 * width, into, 1)
            into = 4 * width
    return shapes


def detectron2_block(where, number):
    place = "stem" if where == "stem" else f"res{where[0] + 2}.{where[1]}"
    place = f"backbone.bottom_up.{place}"
    return (f"{place}.conv{number}", f"{place}.conv{number}.norm") if number else place


def benchmark_block(where, number):
    place = "stem" if where == "stem" else f"layer{where[0] + 1}.{where[1]}"
    place = f"backbone.body.{place}"
    return (f"{place}.conv{number}", f"{place}.bn{number}") if number else place


def layers(name: str, *weight: int) -> dict[str, tuple]:
    return {f"{name}.weight": weight, f"{name}.bias": weight[:1]}


def transposed(name: str) -> dict[str, tuple]:
    return {f"{name}.weight": (256, 256, 2, 2), f"{name}.bias": (256,)}


def adelaidet_shapes(channels: int) -> dict[str, tuple]:
    shapes = resnet_shapes("stem", detectron2_block, ("shortcut", "shortcut.norm"))
    for level, width in ((3, 512), (4, 1024), (5, 2048)):
        shapes |= layers(f"backbone.fpn_lateral{level}", 256, width, 1, 1)
        shapes |= layers(f"backbone.fpn_output{level}", 256, 256, 3, 3)
    for name in ("p6", "p7"):
        shapes |= layers(f"backbone.top_block.{name}", 256, 256, 3, 3)
    head = "proposal_generator.fcos_head"
    for tower in ("cls_tower", "bbox_tower"):
        for k in range(4):
            shapes |= layers(f"{head}.{tower}.{3 * k}", 256, 256, 3, 3)
            shapes |= layers(f"{head}.{tower}.{3 * k + 1}", 256)
    for name, out in (("cls_logits", 80), ("bbox_pred", 4), ("ctrness", 1)):
        shapes |= layers(f"{head}.{name}", out, 256, 3, 3)
    shapes |= {f"{head}.scales.{k}.scale": (1,) for k in range(5)}
    params = 8 * (channels + 2) + 64 + 8 + 8 + 8 + 1
    shapes |= layers("controller", params, 256, 3, 3)
    for name, width in ([(f"refine.{k}", 256) for k in range(3)]) + (
        [(f"tower.{k}", 128) for k in range(4)]
    ):
        shapes[f"mask_branch.{name}.0.weight"] = (128, width, 3, 3)
        shapes |= {f"mask_branch.{name}.1.{x}": (128,) for x in NORM}
        shapes[f"mask_branch.{name}.1.num_batches_tracked"] = ()
    shapes |= layers("mask_branch.tower.4", channels, 128, 1, 1)
    return shapes | {"mask_head.sizes_of_interest": (5,), "mask_head._iter": (1,)}


def opmask_shapes() -> dict[str, tuple]:
    shapes = resnet_shapes("stem", detectron2_block, ("shortcut", "shortcut.norm"))
    for level, width in ((2, 256), (3, 512), (4, 1024), (5, 2048)):
        shapes |= layers(f"backbone.fpn_lateral{level}", 256, width, 1, 1)
        shapes |= layers(f"backbone.fpn_output{level}", 256, 256, 3, 3)
    rpn = "proposal_generator.rpn_head"
    shapes |= layers(f"{rpn}.conv", 256, 256, 3, 3)
    shapes |= layers(f"{rpn}.objectness_logits", 3, 256, 1, 1)
    shapes |= layers(f"{rpn}.anchor_deltas", 12, 256, 1, 1)
    shapes["proposal_generator.anchor_generator.cell_anchors.0"] = (3, 4)
    widths = [256, 512, 1024, 1024, 1024]
    for k in range(4):
        name = f"roi_heads.box_head.conv{k + 1}"
        shapes[f"{name}.weight"] = (widths[k + 1], widths[k], 3, 3)
        shapes |= {f"{name}.norm.{x}": (widths[k + 1],) for x in NORM}
    shapes |= layers("roi_heads.box_head.cls_score", 81, 1024)
    shapes |= layers("roi_heads.box_head.bbox_pred", 320, 1024)
    for k in range(1, 8):
        shapes[f"roi_heads.mask_head.mask_down{k}.weight"] = (256, 256, 3, 3)
        shapes |= {f"roi_heads.mask_head.mask_down{k}.norm.{x}": (256,) for x in NORM}
    shapes |= transposed("roi_heads.mask_head.mask_up1")
    return shapes | layers("roi_heads.mask_head.predictor", 1, 256, 1, 1)


def shapeprop_shapes() -> dict[str, tuple]:
    shapes = resnet_shapes("stem", benchmark_block, ("downsample.0", "downsample.1"))
    for level, width in enumerate((256, 512, 1024, 2048), start=1):
        shapes |= layers(f"backbone.fpn.fpn_inner{level}", 256, width, 1, 1)
        shapes |= layers(f"backbone.fpn.fpn_layer{level}", 256, 256, 3, 3)
    shapes |= layers("rpn.head.conv", 256, 256, 3, 3)
    shapes |= layers("rpn.head.cls_logits", 3, 256, 1, 1)
    shapes |= layers("rpn.head.bbox_pred", 12, 256, 1, 1)
    shapes["rpn.anchor_generator.cell_anchors.0"] = (3, 4)
    box, mask = "roi_heads.box", "roi_heads.mask"
    shapes |= layers(f"{box}.feature_extractor.fc6", 1024, 256 * 49)
    shapes |= layers(f"{box}.feature_extractor.fc7", 1024, 1024)
    shapes |= layers(f"{box}.predictor.cls_score", 81, 1024)
    shapes |= layers(f"{box}.predictor.bbox_pred", 324, 1024)
    for k in range(1, 5):
        for tower in ("activating", "propagating"):
            name = f"roi_heads.shapeprop.feature_extractor_{tower}.shapeprop_feature{k}"
            shapes |= layers(name, 256, 256, 3, 3)
        shapes |= layers(f"{mask}.feature_extractor.mask_fcn{k}", 256, 512 if k == 1 else 256, 3, 3)
        name = f"{mask}.feature_extractor.encoder.{2 * k - 2}"
        shapes |= layers(name, 256, 1 if k == 1 else 256, 3, 3)
    shapes |= layers("roi_heads.shapeprop.predictor.cls", 81, 256, 1, 1)
    shapes |= layers("roi_heads.shapeprop.propagation_weight_regressor.reg", 216, 256, 1, 1)
    for k in range(3):
        one = 1 if k == 0 else 24
        shapes |= layers(f"roi_heads.shapeprop.encoder.encoder.{2 * k}", 24, one, 3, 3)
        one = 1 if k == 2 else 24
        shapes |= layers(f"roi_heads.shapeprop.decoder.decoder.{2 * k}", one, 24, 3, 3)
    shapes |= transposed(f"{mask}.predictor.conv5_mask")
    return shapes | layers(f"{mask}.predictor.mask_fcn_logits", 1, 256, 1, 1)


def config(name: str):
    cfg = get_cfg()
    add_psis_config(cfg)
    merge_file(cfg, str(CONFIGS / f"{name}.yaml"))
    cfg.MODEL.DEVICE = "cpu"
    return cfg


@pytest.mark.parametrize(
    ("source", "name", "shapes"),
    [
        ("adelaidet", "condinst_R50", adelaidet_shapes(8)),
        ("adelaidet", "boxinst_R50", adelaidet_shapes(16)),
        ("opmask", "opmask_R50", opmask_shapes()),
        ("shapeprop", "shapeprop_R50", shapeprop_shapes()),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_files_of_released_shapes(source, name, shapes, tmp_path):
    """Its own number fills each tensor: the files stay small, and every number is found again."""
    numbers = torch.randperm(len(shapes), generator=torch.Generator().manual_seed(0)) + 1.0
    released = {k: number.expand(shapes[k]) for k, number in zip(shapes, numbers, strict=True)}
    torch.save({"model": released, "iteration": 90000}, tmp_path / "released.pth")
    cfg = config(name)
    options = convert_checkpoint(source, f"{tmp_path}/released.pth", f"{tmp_path}/new.pth", cfg)
    state = torch.load(tmp_path / "new.pth", weights_only=True)["model"]
    cfg.merge_from_list([*options, "MODEL.DEVICE", "meta"])
    with torch.device("meta"):
        model = build_model(cfg)
    missing, unexpected = model.load_state_dict(state, strict=False, assign=True)
    assert unexpected == []
    assert all(x.endswith("num_batches_tracked") for x in missing)
    # Nothing is there twice, and nothing is invented.
    found = [x.flatten()[-1].abs().item() for x in state.values() if x.dim() > 1]
    assert set(found) <= {x.flatten()[-1].item() for x in released.values() if x.dim() > 1}
    assert len(found) == len(set(found)) >= 60


def test_adelaidets_masks(tmp_path):
    """The released network, literally, against the converted one: filters, coordinates, grids."""
    model = condinst_model("boxinst", "RELEASED_GRIDS", True, "IN_FEATURES", ["p2", "p3"]).eval()
    generator = torch.Generator().manual_seed(1)

    def rand(*shape):
        return 0.3 * torch.randn(*shape, generator=generator)

    channels, dim, branch = 16, 8, 16
    params = dim * (channels + 2) + dim * dim + dim + dim + dim + 1
    theirs = {"controller.weight": rand(params, 16, 3, 3), "controller.bias": rand(params)}
    for name in ("refine.0", "refine.1", "tower.0", "tower.1"):
        theirs[f"mask_branch.{name}.0.weight"] = rand(branch, 16, 3, 3)
        theirs |= {f"mask_branch.{name}.1.{x}": 1 + rand(branch).abs() for x in NORM}
    theirs["mask_branch.tower.2.weight"] = rand(channels, branch, 1, 1)
    theirs["mask_branch.tower.2.bias"] = rand(channels)
    head = "proposal_generator.fcos_head"
    for tower in ("cls_tower", "bbox_tower"):
        for k in range(2):
            theirs[f"{head}.{tower}.{3 * k}.weight"] = rand(16, 16, 3, 3)
            theirs[f"{head}.{tower}.{3 * k}.bias"] = rand(16)
            theirs |= {f"{head}.{tower}.{3 * k + 1}.{x}": 1 + rand(16) for x in NORM[:2]}
    for name, out in (("cls_logits", 20), ("bbox_pred", 4), ("ctrness", 1)):
        theirs[f"{head}.{name}.weight"], theirs[f"{head}.{name}.bias"] = (
            rand(out, 16, 3, 3),
            rand(out),
        )
    theirs[f"{head}.scales.0.scale"] = torch.tensor([1.7])
    backbone = {k: v for k, v in model.state_dict().items() if k.startswith("backbone.")}
    overrides = {"FPN.OUT_CHANNELS": 16, "ROI_MASK_HEAD.CONV_DIM": 16}
    cfg = tiny_config(
        *(x for k, v in overrides.items() for x in (f"MODEL.{k}", v)),
        *("PSIS.CONDINST.BRANCH_DIM", 16, "PSIS.CONDINST.IN_FEATURES", ["p2", "p3"]),
        config="quick/boxinst_shapes.yaml",
    )
    state = convert_state("adelaidet", theirs | backbone, cfg)
    model.load_state_dict(state, strict=False)

    # ---- the detector's head
    x = rand(1, 16, 6, 5)
    outputs = model.proposal_generator.head([x])
    towers = {}
    for tower in ("cls_tower", "bbox_tower"):
        y = x
        for k in range(2):
            name = f"{head}.{tower}.{3 * k}"
            y = F.conv2d(y, theirs[f"{name}.weight"], theirs[f"{name}.bias"], padding=1)
            norm = f"{head}.{tower}.{3 * k + 1}"
            y = F.group_norm(y, 16, theirs[f"{norm}.weight"], theirs[f"{norm}.bias"]).relu()
        towers[tower] = y
    for found, name, tower in (
        (outputs[0][0], "cls_logits", "cls_tower"),
        (outputs[1][0] / 1.7, "bbox_pred", "bbox_tower"),
        (outputs[2][0], "ctrness", "bbox_tower"),
    ):
        weights = theirs[f"{head}.{name}.weight"], theirs[f"{head}.{name}.bias"]
        expected = F.conv2d(towers[tower], *weights, padding=1)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)

    # ---- the masks
    maps = [rand(1, 16, 12, 16), rand(1, 16, 6, 8)]
    tower = rand(1, 16, 6, 8)
    places = [(2, 3), (4, 7)]  # rows and columns of the tower, stride 8
    queries = Queries(
        images=torch.zeros(2, dtype=torch.int64),
        locations=torch.tensor([y * 8 + x for y, x in places]),
        centers=torch.tensor([[8 * x + 4.0, 8 * y + 4.0] for y, x in places]),
        sizes=torch.full((2,), 64.0),
        classes=torch.zeros(2, dtype=torch.int64),
    )
    with torch.no_grad():
        found = model.mask_head(maps, [tower], queries)

    def block(name, y):
        y = F.conv2d(y, theirs[f"mask_branch.{name}.0.weight"], padding=1)
        scale, shift, mean, variance = (theirs[f"mask_branch.{name}.1.{x}"] for x in NORM)
        return F.batch_norm(y, mean, variance, scale, shift).relu()

    y = block("refine.0", maps[0]) + literal_upsample(block("refine.1", maps[1]), 2)
    y = block("tower.1", block("tower.0", y))
    features = F.conv2d(
        y, theirs["mask_branch.tower.2.weight"], theirs["mask_branch.tower.2.bias"]
    )[0]
    controlled = F.conv2d(tower, theirs["controller.weight"], theirs["controller.bias"], padding=1)
    for mask, (row, column) in zip(found, places, strict=True):
        filters = controlled[0, :, row, column]
        sizes = [dim * (channels + 2), dim * dim, dim, dim, dim, 1]
        w1, w2, w3, b1, b2, b3 = filters.split(sizes)
        # From a cell of stride 4 to the location.
        dy = (8 * row + 4 - (4 * torch.arange(12) + 2)) / 64
        dx = (8 * column + 4 - (4 * torch.arange(16) + 2)) / 64
        coordinates = torch.stack(torch.broadcast_tensors(dx[None], dy[:, None]))
        z = torch.cat([coordinates, features])[None]
        z = F.conv2d(z, w1.view(dim, -1, 1, 1), b1).relu()
        z = F.conv2d(z, w2.view(dim, -1, 1, 1), b2).relu()
        z = F.conv2d(z, w3.view(1, -1, 1, 1), b3)
        expected = literal_upsample(z, 2)[0, 0].sigmoid()
        assert expected.std() > 0.01
        torch.testing.assert_close(mask, expected, atol=1e-5, rtol=1e-4)


def test_backgrounds_place_and_frozen_norms_of_shapeprop():
    rows = torch.arange(81.0)[:, None].expand(81, 1024)
    sides = torch.arange(324.0)[:, None].expand(324, 1024)
    shapes = shapeprop_shapes()
    released = {k: torch.full((), 0.5).expand(shape) for k, shape in shapes.items()}
    released["roi_heads.box.predictor.cls_score.weight"] = rows
    released["roi_heads.box.predictor.bbox_pred.weight"] = sides
    state = convert_state(
        "shapeprop", {f"module.{k}": v for k, v in released.items()}, config("shapeprop_R50")
    )
    assert state["roi_heads.box_predictor.cls_score.weight"][:, 0].tolist() == [*range(1, 81), 0]
    found = state["roi_heads.box_predictor.bbox_pred.weight"][:, 0].tolist()
    assert found == list(range(4, 324))
    # 1 / sqrt(0.5) there, 1 / sqrt(variance + 1e-5) here.
    variance = state["backbone.bottom_up.res2.0.shortcut.norm.running_var"][0].item()
    assert variance + 1e-5 == pytest.approx(0.5, abs=1e-7)
    assert state["backbone.bottom_up.stem.conv1.norm.running_mean"][0].item() == 0.5


def convert(tmp_path, content, source="opmask", name="opmask_R50"):
    path = tmp_path / "released.pth"
    torch.save(content, path)
    convert_checkpoint(source, str(path), str(tmp_path / "new.pth"), config(name))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (
            lambda s: s.pop("roi_heads.mask_head.mask_up1.bias"),
            "lacks roi_heads.mask_head.predictor.0",
        ),
        (
            lambda s: s.update({"another.weight": torch.zeros(1)}),
            "not known to have: another.weight",
        ),
        (
            lambda s: s.update({"roi_heads.box_head.cls_score.bias": torch.zeros(21)}),
            r"is \[21\] in the checkpoint and \[81\] in the config's",
        ),
        (lambda s: s.update({"a": "text"}), "must hold tensors by name"),
        (
            lambda s: s.update({"module.backbone.fpn_output2.bias": torch.zeros(256)}),
            "has backbone.fpn_output2.bias twice",
        ),
        (
            lambda s: s.update({"backbone.res6.weight": torch.zeros(1)}),
            "has backbone.res6.weight, and the config's model has no such",
        ),
    ],
)
def test_what_does_not_fit_is_refused(spoil, words, tmp_path):
    state = {k: torch.zeros(()).expand(shape) for k, shape in opmask_shapes().items()}
    spoil(state)
    with pytest.raises(UserError, match=words):
        convert(tmp_path, {"model": state})
    assert not (tmp_path / "new.pth").exists()


class Malicious:
    """What a pickle may bring along."""

    def __reduce__(self):
        return (print, ("executed",))


def test_nothing_in_a_file_is_executed(tmp_path, capsys):
    with pytest.raises(UserError, match="cannot be read as weights alone"):
        convert(tmp_path, {"model": {}, "more": Malicious()})
    assert "executed" not in capsys.readouterr().out
    (tmp_path / "released.pth").write_bytes(b"no checkpoint")
    with pytest.raises(UserError, match="cannot be read as weights alone"):
        convert_checkpoint(
            "opmask", f"{tmp_path}/released.pth", f"{tmp_path}/new.pth", config("opmask_R50")
        )
    with pytest.raises(UserError, match="nowhere.pth does not exist"):
        convert_checkpoint("opmask", f"{tmp_path}/nowhere.pth", "new.pth", config("opmask_R50"))


def test_from_the_command_line(tmp_path, capsys):
    assert set(SOURCES) == {"adelaidet", "opmask", "shapeprop"}
    state = {k: torch.zeros(()).expand(shape) for k, shape in adelaidet_shapes(16).items()}
    torch.save({"model": state}, tmp_path / "released.pth")
    files = [str(CONFIGS / "boxinst_R50.yaml"), f"{tmp_path}/released.pth", f"{tmp_path}/new.pth"]
    cli.main(["convert", "--from", "adelaidet", "--config-file", *files])
    said = capsys.readouterr().out
    assert said.endswith(f"MODEL.WEIGHTS {tmp_path}/new.pth PSIS.CONDINST.RELEASED_GRIDS True\n")
    with pytest.raises(SystemExit) as caught:  # its masks have 8 channels
        files[0] = str(CONFIGS / "condinst_R50.yaml")
        cli.main(["convert", "--from", "adelaidet", "--config-file", *files])
    assert caught.value.code == 2
    assert "give the config of the model that was trained" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("source", "name", "shapes", "pairs"),
    [
        (
            *("opmask", "opmask_R50", opmask_shapes()),
            {
                "roi_heads.box_head.conv4.weight": "roi_heads.box_head.convs.3.weight",
                "roi_heads.box_head.cls_score.bias": "roi_heads.box_predictor.cls_score.bias",
                "roi_heads.mask_head.mask_down3.norm.bias": "roi_heads.mask_head.trunk.2.norm.bias",
                "roi_heads.mask_head.mask_up1.bias": "roi_heads.mask_head.predictor.0.bias",
            },
        ),
        (
            *("shapeprop", "shapeprop_R50", shapeprop_shapes()),
            {
                "backbone.body.layer3.5.conv2.weight": "backbone.bottom_up.res4.5.conv2.weight",
                "backbone.body.layer3.5.bn2.bias": "backbone.bottom_up.res4.5.conv2.norm.bias",
                "backbone.body.layer2.0.downsample.0.weight": (
                    "backbone.bottom_up.res3.0.shortcut.weight"
                ),
                "backbone.fpn.fpn_inner4.bias": "backbone.fpn_lateral5.bias",
                "backbone.fpn.fpn_layer1.bias": "backbone.fpn_output2.bias",
                "rpn.head.bbox_pred.bias": "proposal_generator.rpn_head.anchor_deltas.bias",
                "roi_heads.box.feature_extractor.fc7.bias": "roi_heads.box_head.fc2.bias",
                "roi_heads.shapeprop.feature_extractor_activating.shapeprop_feature2.bias": (
                    "roi_heads.mask_head.saliency_tower.1.bias"
                ),
                "roi_heads.shapeprop.feature_extractor_propagating.shapeprop_feature4.bias": (
                    "roi_heads.mask_head.shape_activation.tower.3.bias"
                ),
                "roi_heads.shapeprop.encoder.encoder.2.bias": (
                    "roi_heads.mask_head.shape_activation.encoder.2.bias"
                ),
                "roi_heads.mask.feature_extractor.encoder.4.bias": (
                    "roi_heads.mask_head.embedding.convs.4.bias"
                ),
                "roi_heads.mask.feature_extractor.mask_fcn3.bias": (
                    "roi_heads.mask_head.trunk.2.bias"
                ),
                "roi_heads.mask.predictor.mask_fcn_logits.bias": (
                    "roi_heads.mask_head.predictor.2.bias"
                ),
            },
        ),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_every_layer_goes_to_its_own(source, name, shapes, pairs):
    released = {k: torch.zeros(()).expand(shape) for k, shape in shapes.items()}
    released |= {theirs: torch.ones(()).expand(shapes[theirs]) for theirs in pairs}
    state = convert_state(source, released, config(name))
    assert {k for k, v in state.items() if v.eq(1).all()} == set(pairs.values())


def test_the_documented_names_of_shapemask_are_ours():
    text = (ROOT / "docs" / "checkpoints.md").read_text(encoding="utf-8")
    table = text.split("below `roi_heads.mask_head` |")[1].split("\n\n")[0]
    rows = [line.split("|")[2] for line in table.splitlines()[2:]]
    documented = {name for row in rows for name in re.findall(r"`([\w.]+)`", row)}
    cfg = config("shapemask_R50")
    cfg.merge_from_list(["MODEL.DEVICE", "meta", "MODEL.ROI_MASK_HEAD.NORM", "BN"])
    with torch.device("meta"):
        head = build_model(cfg).roi_heads.mask_head
    ours = {k.rpartition(".")[0] or k for k in head.state_dict()} | {"shape.priors"}
    known = {re.sub(r"(trunk)\.\d", r"\1.k", k) for k in ours} - {"shape"}
    assert documented == known
