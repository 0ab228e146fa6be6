"""What every mask head has to keep to, the moment it is registered."""

import json
import sys
from pathlib import Path

import psis_d2.modeling  # noqa: F401
from psis_d2.modeling.losses import mask_bce
from psis_d2.modeling.mask_heads.base import RegionMaskHead, RegionRegularizer
from psis_d2.modeling.roi_heads import MASK_TRAIN_BOXES

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import ROI_MASK_HEAD_REGISTRY
from detectron2.structures import ROIMasks
from torch import nn

from gloo_workers import run_in_two_processes
from head_contract import (
    DATA,
    FILES,
    all_configs,
    contract_model,
    meta_architectures,
    missing_pieces,
    quick_configs,
    region_configs,
    region_heads,
    register_data,
    write_files,
)
from model_builders import (
    annotated_boxes,
    as_foreign,
    as_rectangles,
    flip_masks,
    move_masks,
    partial_batch,
    training_context,
    training_losses,
)

ROOT = Path(__file__).parents[2]
MIXED = [[True, False, True], [False, True]]
UNMASKED = {"boxes": [[False, False], [False]], "empty": [[], []]}
REGION_HEADS = region_configs()
# (config, boxes that its mask head trains on); the meta-architectures have no such choice.
ROADS = [(config, boxes) for config in REGION_HEADS.values() for boxes in MASK_TRAIN_BOXES] + [
    (config, None) for config in all_configs() if config not in REGION_HEADS.values()
]


def name_of(value):
    """Short ids: the file of a config."""
    return Path(value).stem.removesuffix("_shapes") if str(value).endswith(".yaml") else None


def each_road(*boxes):
    roads = [road for road in ROADS if road[1] in boxes]
    return pytest.mark.parametrize(("config", "boxes"), roads, ids=name_of)


def each_region_head(function):
    return pytest.mark.parametrize("name", REGION_HEADS)(function)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the heads' data and what they prepare of it lie."""
    path = tmp_path_factory.mktemp("contract")
    register_data(path)
    yield path
    for catalog in (DatasetCatalog, MetadataCatalog):
        catalog.remove(DATA)


def keys_of(boxes):
    return () if boxes is None else ("PSIS.MASK_TRAIN_BOXES", boxes)


def losses_and_gradients(build, batch):
    """Of a new model: some keep statistics of what they saw."""
    model = build()
    losses = training_losses(model, batch)
    sum(losses.values()).backward()
    return losses, {name: p.grad for name, p in model.named_parameters()}


def assert_same_bits(one: dict, other: dict):
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


def assert_all_train(gradients: dict):
    for name, gradient in gradients.items():
        assert gradient is not None, name
        assert gradient.isfinite().all(), name


# ------------------------------------------------------------------------------ completeness


def test_no_head_lacks_a_config_or_a_test():
    heads = region_heads() | meta_architectures()
    assert len(heads) > 5
    missing = missing_pieces(heads, quick_configs(), ROOT / "tests" / "modeling")
    for path in (ROOT / "psis_d2" / "modeling" / "mask_heads").glob("*.py"):
        registers = "ROI_MASK_HEAD_REGISTRY.register" in path.read_text(encoding="utf-8")
        if registers and f"psis_d2.modeling.mask_heads.{path.stem}" not in sys.modules:
            missing.append(f"{path.name} is not imported: name it in mask_heads/__init__.py.")
    assert missing == [], "\n".join(missing)


def test_what_is_missing_is_said():
    kind = type("NewHead", (), {"__module__": "psis_d2.modeling.mask_heads.new"})
    assert missing_pieces({"NewHead": kind}, {}, ROOT / "tests") == [
        "NewHead has no config: add configs/quick/new_shapes.yaml.",
        "NewHead has no test: add tests/modeling/test_new.py.",
    ]


# ------------------------------------------------------------------------------ supervision


@each_road(*MASK_TRAIN_BOXES, None)
def test_garbage_in_unseen_masks_changes_no_bit(config, boxes, folder):
    def build():
        return contract_model(config, folder, *keys_of(boxes))

    clean, gradients = losses_and_gradients(build, partial_batch(MIXED))
    dirty, others = losses_and_gradients(build, partial_batch(MIXED, garbage_seed=5))
    assert_same_bits(clean, dirty)
    assert_same_bits(gradients, others)
    if "loss_mask" in clean:  # masks that training may see do count
        flipped = training_losses(build(), flip_masks(partial_batch(MIXED)))
        assert not torch.equal(flipped["loss_mask"], clean["loss_mask"])


@each_road("proposals", "gt", None)
def test_masks_kept_as_rectangles_change_no_bit(config, boxes, folder):
    def build():
        return contract_model(config, folder, *keys_of(boxes))

    def batch():  # a true mask, foreign ones, and none
        masks = partial_batch([[True] * 3, [True, False]])
        return as_foreign(masks, [[None, 0.5, None], [0.25, None]])

    whole, gradients = losses_and_gradients(build, batch())
    cropped, others = losses_and_gradients(build, as_rectangles(batch()))
    assert_same_bits(whole, cropped)
    assert_same_bits(gradients, others)


@each_road("proposals", "gt", None)
def test_foreign_masks_of_weight_zero_are_not_there_and_of_weight_one_are_true(
    config, boxes, folder
):
    def build():
        return contract_model(config, folder, *keys_of(boxes))

    true, gradients = losses_and_gradients(build, partial_batch(MIXED))
    garbage = partial_batch(MIXED, garbage_seed=5)
    weights = [[None if has else 0.0 for has in of_image] for of_image in MIXED]
    zero = losses_and_gradients(build, as_foreign(garbage, weights))
    assert_same_bits(true, zero[0])
    assert_same_bits(gradients, zero[1])
    one = losses_and_gradients(build, as_foreign(partial_batch(MIXED), [[1, None, 1], [None, 1]]))
    assert_same_bits(true, one[0])
    assert_same_bits(gradients, one[1])


@each_road("proposals", None)
def test_mask_losses_scale_with_the_weight_of_foreign_masks_and_others_stay(config, boxes, folder):
    def run(weight, change=lambda batch: batch):
        model = contract_model(config, folder, *keys_of(boxes))
        batch = change(partial_batch([[True] * 3, []]))
        return model, training_losses(model, as_foreign(batch, [[weight] * 3, []]))

    (one, whole), (other, half), (_, moved) = run(1.0), run(0.5), run(1.0, move_masks)
    scaled = {name for name in whole if not torch.equal(whole[name], half[name])}
    assert scaled == {name for name in whole if not torch.equal(whole[name], moved[name])}
    if "loss_mask" not in whole:  # learned from boxes alone
        assert not scaled
        return
    assert "loss_mask" in scaled
    # The weights are powers of two, so that nothing is rounded.
    assert_same_bits({k: whole[k] / 2 for k in scaled}, {k: half[k] for k in scaled})
    for losses in (whole, half):
        sum(losses[name] for name in scaled).backward()
    gradients = [
        {k: p.grad for k, p in x.named_parameters() if p.grad is not None} for x in (one, other)
    ]
    assert any(gradient.ne(0).any() for gradient in gradients[0].values())
    assert_same_bits({k: gradient / 2 for k, gradient in gradients[0].items()}, gradients[1])


@pytest.mark.parametrize("has_mask", UNMASKED.values(), ids=UNMASKED)
@each_road("proposals", "gt", None)
def test_a_batch_without_masks_trains_every_parameter(config, boxes, has_mask, folder):
    losses, gradients = losses_and_gradients(
        lambda: contract_model(config, folder, *keys_of(boxes)), partial_batch(has_mask)
    )
    assert_all_train(gradients)
    taught = any(has_mask) and "loss_mask_teacher" in losses
    for name in ("loss_mask_teacher" if taught else "loss_mask",):
        assert name not in losses or losses[name].item() == 0, name
    if taught:  # regions without a mask are learned from, by the student
        assert losses["loss_mask"].item() > 0


@each_region_head
def test_no_region_at_all(name, folder):
    """The same losses as ever, zero if they are the mask's, and connected to every parameter."""
    model = contract_model(REGION_HEADS[name], folder)
    head, context = model.roi_heads.mask_head, training_context(model, partial_batch(MIXED))
    nothing = context.select(torch.zeros(len(context), dtype=torch.bool))
    assert len(context) > 0 == len(nothing)
    losses = head.losses(nothing)
    assert losses["loss_mask"].item() == 0
    sum(losses.values()).backward()
    assert_all_train({name: p.grad for name, p in head.named_parameters()})
    usual = training_losses(model, partial_batch(MIXED))
    assert losses.keys() == {name for name in usual if name in losses}
    assert all(loss.isfinite() for loss in losses.values())


def configs_of(request, fixture: str) -> list[str]:
    """Configs of the tests that will ask for a fixture, each once."""
    tests = [x for x in request.session.items if fixture in x.fixturenames]
    return list(dict.fromkeys(test.callspec.params["config"] for test in tests))


@pytest.fixture(scope="module")
def two_processes(request, folder):
    """{config: the parameters of both ranks} after training with masks on the first rank alone."""
    configs = configs_of(request, "two_processes")
    run_in_two_processes("train_heads_with_masks_on_rank_zero", folder, configs)
    ranks = [torch.load(folder / f"heads{rank}.pth") for rank in range(2)]
    return {config: [rank[config] for rank in ranks] for config in configs}


@pytest.mark.parametrize("config", all_configs(), ids=name_of)
def test_a_process_without_masks_trains_along(config, two_processes):
    first, second = two_processes[config]
    assert len(first["trained"]) > 50
    assert_same_bits(first["trained"], second["trained"])
    moved = [k for k, x in first["trained"].items() if not torch.equal(x, first["start"][k])]
    assert any("mask_head" in name for name in moved)


@pytest.mark.parametrize("config", all_configs(), ids=name_of)
def test_garbage_in_hidden_masks_changes_no_bit_in_two_processes(config, two_processes):
    for rank in two_processes[config]:
        assert_same_bits(rank["clean"], rank["dirty"])


@pytest.fixture(scope="module")
def on_files(request, tmp_path_factory):
    """Losses and gradients of both ranks, {kind: {config: ...}}, and the folder of the files."""
    path = tmp_path_factory.mktemp("files")
    write_files(path)
    run_in_two_processes("train_on_files", path, configs_of(request, "on_files"))
    return [torch.load(path / f"files{rank}.pth") for rank in range(2)], path


@pytest.mark.parametrize("config", all_configs(), ids=name_of)
def test_garbage_in_hidden_masks_of_files_changes_no_bit_in_two_processes(config, on_files):
    """From the json to the gradient; priors and GrabCut masks are made by both at once."""
    ranks, folder = on_files
    for rank in ranks:
        assert_same_bits(rank["clean"][config], rank["garbage"][config])
    if config in ranks[0]["other"]:  # masks that training may see do count
        first, _ = ranks
        assert first["clean"][config].keys() == first["other"][config].keys()
        with pytest.raises(AssertionError, match="loss_mask"):
            assert_same_bits(first["clean"][config], first["other"][config])

    def made(kind):
        out = folder / kind / "out" / Path(config).stem
        return {path.name: path.read_bytes() for path in out.rglob("*") if path.is_file()}

    assert made("clean") == made("garbage")


@pytest.mark.parametrize("config", all_configs()[:1], ids=name_of)
def test_garbage_in_hidden_masks_of_files_changes_no_grabcut_mask(config, on_files):
    _, folder = on_files
    caches = []
    for kind in FILES:
        paths = [path for path in (folder / kind / "cache").rglob("*") if path.is_file()]
        caches.append({path.name: path.read_bytes() for path in paths})
    assert caches[0] == caches[1] == caches[2]  # they are drawn from boxes alone
    (cache,) = caches[0].values()
    assert len(json.loads(cache)["images"]) == 4


class ForegroundHead(RegionMaskHead):
    """Asks for all foreground, and does nothing else about it."""

    trains_on = "foreground"

    def __init__(self, cfg, input_shape):
        super().__init__(**self.from_config(cfg, input_shape))
        self.predictor = nn.Sequential(
            nn.Conv2d(input_shape.channels, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 1, 1)
        )

    def predict(self, context):
        return self.predictor(context.features)


@pytest.fixture
def foreground_head():
    ROI_MASK_HEAD_REGISTRY.register(ForegroundHead)
    yield ("MODEL.ROI_MASK_HEAD.NAME", "ForegroundHead")
    ROI_MASK_HEAD_REGISTRY._obj_map.pop("ForegroundHead")


@pytest.mark.parametrize("boxes", MASK_TRAIN_BOXES)
def test_a_head_on_all_foreground_learns_from_masks_alone(boxes, foreground_head, folder):
    def build():
        keys = (*foreground_head, *keys_of(boxes))
        return contract_model("quick/Base-shapes.yaml", folder, *keys)

    clean, gradients = losses_and_gradients(build, partial_batch(MIXED))
    dirty, others = losses_and_gradients(build, partial_batch(MIXED, garbage_seed=5))
    assert_same_bits(clean, dirty)
    assert_same_bits(gradients, others)
    model = build()
    context = training_context(model, partial_batch(MIXED))
    seen = context.has_mask
    assert 0 < seen.sum() < len(seen)
    logits = model.roi_heads.mask_head.predict(context)
    expected = mask_bce(
        logits[seen], context.annotated.mask_targets(logits.shape[-1]), context.classes[seen]
    )
    assert torch.equal(clean["loss_mask"], expected)
    none, gradients = losses_and_gradients(build, partial_batch(UNMASKED["boxes"]))
    assert none["loss_mask"].item() == 0
    assert_all_train(gradients)


def test_a_head_has_to_predict():
    with pytest.raises(TypeError, match="abstract.* predict"):
        RegionMaskHead()


# ------------------------------------------------------------------------------ regularizer


@each_region_head
def test_channel_dropout_acts_in_training_only(name, folder):
    key = "PSIS.ROI_CHANNEL_DROPOUT"
    plain, noisy = (
        training_losses(contract_model(REGION_HEADS[name], folder, key, p), partial_batch(MIXED))
        for p in (0.0, 0.5)
    )
    assert not torch.equal(noisy["loss_mask"], plain["loss_mask"])
    model = contract_model(REGION_HEADS[name], folder, key, 0.5)
    modules = model.roi_heads.mask_head.modules()
    regularizers = [m for m in modules if isinstance(m, RegionRegularizer)]
    assert regularizers
    for regularize in regularizers:
        x = torch.randn(3, 16, 14, 14)
        dropped = regularize(x)
        zero = dropped.eq(0).all(dim=(2, 3))
        assert zero.any()
        assert torch.allclose(dropped[~zero], 2 * x[~zero])
        assert torch.equal(regularize.eval()(x), x)


# ------------------------------------------------------------------------------ test time


def assert_masks_of_boxes(model, flags):
    """Soft masks of annotated boxes, before and after they are pasted into the images."""
    batch, sizes = partial_batch(flags), [len(x) for x in flags]
    for item in batch:
        item["height"], item["width"] = 96, 80
    with torch.no_grad():
        raw = model.eval().inference(batch, annotated_boxes(batch), do_postprocess=False)
        pasted = model.inference(batch, annotated_boxes(batch))
    for n, soft, hard in zip(sizes, raw, pasted, strict=True):
        masks = soft.pred_masks
        masks = masks.tensor[:, None] if isinstance(masks, ROIMasks) else masks
        assert masks.shape[:2] == (n, 1)
        assert masks.is_floating_point()
        assert ((masks >= 0) & (masks <= 1)).all()
        assert hard["instances"].pred_masks.shape == (n, 96, 80)
        assert hard["instances"].pred_masks.dtype == torch.bool


@pytest.mark.parametrize("config", all_configs(), ids=name_of)
def test_masks_of_given_boxes(config, folder):
    model = contract_model(config, folder)
    for flags in ([[True, True], []], [[], []]):
        assert_masks_of_boxes(model, flags)


@each_region_head
def test_masks_depend_on_classes_only_where_the_head_says_so(name, folder):
    model = contract_model(REGION_HEADS[name], folder).eval()
    batch = partial_batch([[True, True, True]])
    found = []
    for shift in (0, 1):
        given = annotated_boxes(batch)
        for instances in given:
            instances.pred_classes = (instances.pred_classes + shift) % model.roi_heads.num_classes
        with torch.no_grad():
            (drawn,) = model.inference(batch, given, do_postprocess=False)
        masks = drawn.pred_masks
        found.append(masks.tensor if isinstance(masks, ROIMasks) else masks)
    if not model.roi_heads.mask_head.reads_classes:
        assert torch.equal(*found)


# ------------------------------------------------------------------------------ any head teaches


@each_region_head
def test_every_head_is_a_teacher_and_a_student(name, folder):
    if hasattr(region_heads()[name], "student_loss"):
        pytest.skip("it is made of both")
    key = "PSIS.TEACHER_STUDENT"
    keys = (f"{key}.TEACHER", name, f"{key}.STUDENT", name)

    def build():
        head = ("MODEL.ROI_MASK_HEAD.NAME", "TeacherStudentMaskHead")
        return contract_model(REGION_HEADS[name], folder, *head, *keys)

    clean, gradients = losses_and_gradients(build, partial_batch(MIXED))
    dirty, others = losses_and_gradients(build, partial_batch(MIXED, garbage_seed=5))
    assert_same_bits(clean, dirty)
    assert_same_bits(gradients, others)
    assert_all_train({k: g for k, g in gradients.items() if "mask_head.student." not in k})
    assert any(g.ne(0).any() for k, g in gradients.items() if "mask_head.student." in k)
    alone = training_losses(contract_model(REGION_HEADS[name], folder), partial_batch(MIXED))
    of_teacher = {x.removesuffix("_teacher") for x in clean if x.endswith("_teacher")}
    assert "loss_mask" in of_teacher
    assert of_teacher | clean.keys() >= alone.keys()
    model = build()
    assert_masks_of_boxes(model, [[True, True], []])
