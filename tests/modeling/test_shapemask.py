"""ShapeMask: crops by hand, the blend's properties, the embedding, losses, masks out of the box."""

import math

import psis_d2  # noqa: F401
from psis_d2.engine.setup import prepare_data
from psis_d2.errors import UserError
from psis_d2.modeling.context import RegionContext
from psis_d2.modeling.mask_heads.shapemask import (
    ShapeEstimation,
    ShapeMaskHead,
    UpsampleThenPredict,
    fixed_crops,
    masked_mean,
    outer_boxes,
)

import pytest
import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances

from head_contract import contract_config, register_data
from model_builders import (
    SHAPEMASK,
    annotated_boxes,
    partial_batch,
    tiny_model,
    training_losses,
    write_priors,
)

MIXED = [[True, False, True], [False, True]]
BOXES = torch.tensor([[10.0, 20, 26, 28], [30, 4, 50, 60]])


def random_priors(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, 8, 8, generator=torch.Generator().manual_seed(3))


def head_of(priors=None, side: int = 8, **overrides) -> ShapeMaskHead:
    """A narrow head whose features are used as they come."""
    torch.manual_seed(0)
    arguments = {"num_outputs": 1, "conv_dim": 4, "num_convs": 1, "norm": "", "upsampling": 2}
    head = ShapeMaskHead(
        ShapeSpec(channels=4, height=side, width=side), priors=priors, **(arguments | overrides)
    )
    with torch.no_grad():
        head.reduce.weight.copy_(torch.eye(4)[:, :, None, None])
        head.reduce.bias.zero_()
    return head


def context_of(head, boxes=BOXES, classes=(0, 1), masks=None, size=(64, 64), channels=4):
    """Regions of one image, in training if there are masks."""
    features = torch.randn(
        len(boxes), channels, head.side, head.side, generator=torch.Generator().manual_seed(1)
    )
    field = "pred" if masks is None else "gt"
    regions = Instances(size)
    regions.set("pred_boxes" if masks is None else "proposal_boxes", Boxes(boxes))
    regions.set(f"{field}_classes", torch.tensor(classes))
    targets = None
    if masks is not None:
        regions.gt_index = torch.arange(len(boxes))
        regions.gt_has_mask = torch.ones(len(boxes), dtype=torch.bool)
        targets = [Instances(size, gt_masks=BitMasks(masks))]
    return RegionContext(
        regions=[regions],
        features=features,
        pool=lambda _: features,
        targets=targets,
        wide_frames=[head.frames(Boxes(boxes), size)],
        all_annotated=masks is not None,
    )


# ---- crops --------------------------------------------------------------------------------------


def test_outer_box_is_enlarged_about_its_center_and_clipped():
    found = outer_boxes(Boxes(torch.tensor([[20.0, 20, 40, 28], [0, 0, 16, 64]])), 1.25, (64, 64))
    assert found.tensor.tolist() == [[17.5, 19, 42.5, 29], [0, 0, 18, 64]]


@pytest.mark.parametrize(
    ("longest", "level"), [(5, 3), (256, 3), (257, 4), (512, 4), (513, 5), (1024, 5), (1300, 5)]
)
def test_fixed_crop_is_on_the_level_of_equation_10(longest, level):
    # Eq. 10 with L = 1024 and m = 5, clamped to P3 and P5
    k = 5 - math.floor(math.log2(1024 / longest))
    assert min(max(k, 3), 5) == level
    box = torch.tensor([[100.0, 40, 100 + longest, 44]])
    crop = fixed_crops(Boxes(box), 32, (3, 5)).tensor[0]
    assert (crop[2:] - crop[:2]).tolist() == [32 * 2**level] * 2
    assert (crop % 2**level == 0).all()
    center = (crop[:2] + crop[2:]) / 2
    assert ((center - torch.tensor([100 + longest / 2, 42])).abs() <= 2**level / 2).all()


def test_fixed_crop_is_cut_out_of_its_level_without_interpolation():
    """What the ROI heads pool are the very cells of the map; outside of it there is nothing."""
    model = tiny_model(*SHAPEMASK, "PSIS.SHAPEMASK.CROP", "fixed").eval()
    heads = model.roi_heads
    heads.mask_in_features = ["p2", "p3", "p4", "p5"]
    generator = torch.Generator().manual_seed(0)
    maps = {
        f"p{k}": torch.randn(1, 16, 256 >> k, 256 >> k, generator=generator) for k in range(2, 6)
    }
    boxes = torch.tensor([[101.0, 90, 140, 130], [60, 60, 170, 150]])
    frames = heads.mask_head.frames(Boxes(boxes), (256, 256))
    sides = frames.tensor[:, 2] - frames.tensor[:, 0]
    pooled = heads._pool_from(maps)([frames])
    side = heads.mask_head.side
    assert sides.tolist() == [4 * side, 8 * side]  # P2, and P3 for what does not fit
    for row, (name, stride) in enumerate((("p2", 4), ("p3", 8))):
        x, y = (frames.tensor[row, :2] / stride).int().tolist()
        torch.testing.assert_close(pooled[row], maps[name][0, :, y : y + side, x : x + side])


@pytest.mark.parametrize("crop", ["outer_box", "fixed"])
def test_a_box_of_hardly_any_width_has_finite_masks_losses_and_gradients(crop):
    thin = torch.tensor([[20.0, 20, 20, 40], [30, 8, 30, 8], [8, 8, 40, 40]])
    thin[:2, 2] += 1e-5  # what float32 has of 1e-7 there, or a little more
    thin[0, 2] = torch.nextafter(thin[0, 0], torch.tensor(99.0))
    masks = torch.zeros(3, 64, 64, dtype=torch.bool)
    masks[:, 8:40, 8:40] = True
    head = head_of(random_priors(1, 3), crop=crop)
    losses = head.losses(context_of(head, thin, (0, 0, 0), masks))
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    assert all(p.grad is None or p.grad.isfinite().all() for p in head.parameters())


# ---- shape estimation ---------------------------------------------------------------------------


@pytest.mark.parametrize("pooling", ["crop", "box"])
def test_embedding_is_the_mean_inside_the_box(pooling):
    estimation = ShapeEstimation(2, torch.zeros(3, 8, 8), pooling)
    features, indicator = torch.rand(1, 2, 4, 4), torch.zeros(1, 1, 4, 4)
    indicator[..., 1:3, :2] = 1
    total = features[0, :, 1, :2].sum(dim=1) + features[0, :, 2, :2].sum(dim=1)
    embedding = total / (4 if pooling == "box" else 16)
    expected = estimation.weights.weight @ embedding
    torch.testing.assert_close(estimation(features, indicator, None)[0], expected)


def test_class_specific_logits_are_those_of_the_class():
    estimation = ShapeEstimation(2, torch.zeros(3, 5, 8, 8))
    features = torch.rand(4, 2, 4, 4)
    classes = torch.tensor([2, 0, 2, 1])
    logits = estimation(features, torch.ones(4, 1, 4, 4), classes)
    rows = estimation.weights(features.mean(dim=(2, 3))).view(4, 3, 5)
    assert torch.equal(logits, torch.stack([rows[i, c] for i, c in enumerate(classes)]))


def spread_weights(head, std: float = 3.0):
    torch.nn.init.normal_(head.shape.weights.weight, std=std)
    return head


def test_detection_prior_is_a_convex_combination():
    """Between the least and the largest of the placed priors, cell by cell."""
    head = spread_weights(head_of(random_priors(5)))
    context = context_of(head)
    prior = head.detection_prior(context, context.features)
    placed = []
    for k in range(5):
        with torch.no_grad():
            head.shape.weights.weight.zero_()
            head.shape.weights.bias.copy_(100.0 * F.one_hot(torch.tensor(k), 5))
        placed.append(head.detection_prior(context, context.features))
    low, high = torch.stack(placed).amin(dim=0), torch.stack(placed).amax(dim=0)
    assert (prior >= low - 1e-6).all()
    assert (prior <= high + 1e-6).all()
    assert (prior > low + 1e-3).any()


@pytest.mark.parametrize("crop", ["outer_box", "fixed"])
def test_one_hot_weights_return_that_prior_placed_as_by_grid_sample(crop):
    priors = random_priors(5)
    head = head_of(priors, crop=crop, levels=(2, 3))
    with torch.no_grad():
        head.shape.weights.weight.zero_()
        head.shape.weights.bias[3] = 200
    context = context_of(head)
    found = head.detection_prior(context, context.features)
    boxes, frames = context.boxes[0].tensor, context.frames[0].tensor
    assert not torch.equal(boxes, frames)
    cell = (torch.arange(8) + 0.5) / 8
    axes = []
    for axis in range(2):
        pixel = frames[:, axis, None] + cell * (frames[:, axis + 2] - frames[:, axis])[:, None]
        extent = (boxes[:, axis + 2] - boxes[:, axis])[:, None]
        axes.append(2 * (pixel - boxes[:, axis, None]) / extent - 1)
    grid = torch.stack(
        [axes[0][:, None, :].expand(-1, 8, -1), axes[1][:, :, None].expand(-1, -1, 8)], dim=3
    )
    expected = F.grid_sample(priors[3].expand(2, 1, 8, 8), grid, align_corners=False)[:, 0]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_a_prior_lies_in_its_box():
    """Nothing of it is further out than one cell of the prior; a prior of ones fills the box."""
    head = head_of(torch.ones(2, 8, 8), side=16, outer_box_scale=2.0)
    context = context_of(head, BOXES[:1] + 10, classes=(0,))
    prior = head.detection_prior(context, context.features)[0]
    assert torch.equal(prior[5:11, 5:11], torch.ones(6, 6))
    prior[3:13, 3:13] = 0
    assert (prior == 0).all()


def test_gradients_reach_the_prior_logits_from_every_loss():
    masks = torch.zeros(2, 64, 64, dtype=torch.bool)
    masks[:, 20:26, 12:40] = True
    for name in ("loss_prior", "loss_coarse", "loss_mask"):
        head = head_of(random_priors(5))
        for predictor in (head.coarse_predictor, head.predictor[-1]):
            torch.nn.init.normal_(predictor.weight)  # which starts near zero
        head.losses(context_of(head, masks=masks))[name].backward()
        assert head.shape.weights.bias.grad.abs().max() > 0, name


def test_without_priors_the_box_takes_their_place():
    head = head_of(None)
    context = context_of(head)
    same = head_of(torch.ones(1, 8, 8)).detection_prior(context, context.features)
    assert torch.equal(head.detection_prior(context, context.features), same)
    assert not any("shape" in name for name, _ in head.named_parameters())


# ---- masks --------------------------------------------------------------------------------------


def test_masked_mean_by_hand():
    features = torch.arange(8.0).view(1, 2, 2, 2)  # channel 0: 0 1 / 2 3, channel 1: 4 5 / 6 7
    mask = torch.tensor([[[[0.0, 1], [0, 1]]]])
    assert masked_mean(features, mask).flatten().tolist() == [2, 6]
    assert masked_mean(features, torch.zeros_like(mask)).flatten().tolist() == [0, 0]


@pytest.mark.parametrize("fine_features", ["crop", "prior"])
def test_fine_mask_starts_from_features_minus_the_masked_mean(fine_features):
    head = head_of(
        random_priors(3), fine_features=fine_features, add_coarse_mask=False, initial_prob=0.5
    )
    torch.nn.init.normal_(head.coarse_predictor.weight)
    seen = []
    head.trunk.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    context = context_of(head)
    prior, coarse, fine = head.masks(context)
    assert fine.shape == (2, 1, 16, 16)
    features = context.features
    if fine_features == "prior":
        features = features + head.embed_prior(prior[:, None])
    for row in range(2):
        inside = coarse[row, 0] > 0
        assert inside.any()
        assert not inside.all()
        mean = torch.stack([channel[inside].mean() for channel in features[row]])
        torch.testing.assert_close(seen[0][row], features[row] - mean[:, None, None])


def test_options_of_the_fine_mask():
    plain = head_of(random_priors(3), instance_embedding=False, add_coarse_mask=False)
    seen = []
    plain.trunk.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    context = context_of(plain)
    plain.masks(context)
    assert torch.equal(seen[0], context.features)
    adding = head_of(random_priors(3), instance_embedding=False)
    adding.trunk.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    _, coarse, _ = adding.masks(context)
    expected = context.features + adding.embed_coarse(coarse.sigmoid())
    torch.testing.assert_close(seen[1], expected)


@pytest.mark.parametrize("outputs", [1, 5])
def test_upsampling_and_predictor_are_two_layers(outputs):
    torch.manual_seed(0)
    merged = UpsampleThenPredict(3, outputs, 2, initial_prob=0.01).double()
    for layer in merged:
        layer.bias.data.normal_()
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(2, outputs, 8, 8, dtype=torch.float64)
    results = []
    for logits in (merged(x), merged[1](merged[0](x))):
        inputs = [x, *merged.parameters()]
        results.append([logits, *torch.autograd.grad((logits * weights).sum(), inputs)])
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("normalizer", ["foreground", "cells"])
def test_losses_by_hand(normalizer):
    """Two objects; the first one's mask fills its box, the second has none of its crop."""
    head = head_of(random_priors(3), loss_normalizer=normalizer, initial_prob=0.2)
    for predictor in (head.coarse_predictor, head.predictor[-1]):
        torch.nn.init.zeros_(predictor.weight)
    masks = torch.zeros(2, 64, 64, dtype=torch.bool)
    masks[0, 20:28, 10:26] = True
    context = context_of(head, masks=masks)
    losses = head.losses(context)
    for side, name in ((8, "loss_coarse"), (16, "loss_mask")):
        target = context.mask_targets(side)
        inside, cells = int(target.sum()), target.numel()
        assert 0 < inside < cells / 2
        total = -inside * math.log(0.2) - (cells - inside) * math.log(0.8)
        expected = total / (inside if normalizer == "foreground" else cells)
        assert losses[name].item() == pytest.approx(expected, rel=1e-5)
    target = context.mask_targets(8)
    squares = (head.detection_prior(context, context.features) - target).square().sum().item()
    expected = squares / 2 / target.sum().item() if normalizer == "foreground" else squares / 128
    assert losses["loss_prior"].item() == pytest.approx(0.1 * expected, rel=1e-5)


@pytest.mark.parametrize("normalizer", ["foreground", "cells"])
def test_box_annotated_objects_count_for_nothing(normalizer):
    """The losses are those of the batch without them: no normalizer knows of them."""
    keys = (*SHAPEMASK, "PSIS.MASK_TRAIN_BOXES", "gt")
    keys += ("PSIS.SHAPEMASK.LOSS_NORMALIZER", normalizer)
    with_others = partial_batch(MIXED)
    alone = partial_batch(MIXED)
    model = tiny_model(*keys)
    contexts = []
    head = model.roi_heads.mask_head
    original = head.losses
    head.losses = lambda context: (contexts.append(context), original(context))[1]
    losses = training_losses(model, with_others)
    for item in alone:
        item["instances"] = item["instances"][item["instances"].gt_has_mask]
    fewer = training_losses(tiny_model(*keys), alone)
    for name in ("loss_prior", "loss_coarse", "loss_mask"):
        assert torch.equal(losses[name], fewer[name])
    assert len(contexts[0]) == 3


@pytest.mark.parametrize(
    "keys",
    [
        (),
        ("PSIS.SHAPEMASK.SHAPE_PRIOR", False),
        ("PSIS.SHAPEMASK.INSTANCE_EMBEDDING", False),
        ("PSIS.SHAPEMASK.CROP", "fixed", "PSIS.SHAPEMASK.FINE_FEATURES", "prior"),
        ("PSIS.SHAPEMASK.LOSS_NORMALIZER", "cells", "PSIS.SHAPEMASK.ADD_COARSE_MASK", False),
        ("MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK", False),
    ],
    ids=["released", "no_prior", "no_embedding", "fixed", "cells", "class_specific"],
)
def test_variants_train_every_parameter(keys, tmp_path):
    specific = "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK" in keys
    path = write_priors(str(tmp_path / "p.npz"), *((20, 3) if specific else (3,)))
    model = tiny_model(*SHAPEMASK, "PSIS.SHAPEMASK.PRIORS", path, *keys)
    losses = training_losses(model, partial_batch(MIXED))
    assert ("loss_prior" in losses) == ("PSIS.SHAPEMASK.SHAPE_PRIOR" not in keys)
    sum(losses.values()).backward()
    for name, parameter in model.roi_heads.mask_head.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    model.eval()
    with torch.no_grad():
        masks = model.inference(partial_batch([[True]]), annotated_boxes(partial_batch([[True]])))
    assert masks[0]["instances"].pred_masks.shape == (1, 64, 64)


@pytest.mark.parametrize("width", [128, 64, 32, 16])
def test_widths_of_the_light_weight_table(width):
    # 8 convolutions of 3 x 3, reduction, upsampling; embeddings, estimation and predictors are thin
    head = ShapeMaskHead(
        ShapeSpec(channels=256, height=32, width=32),
        priors=torch.zeros(100, 32, 32),
        **{"num_outputs": 1, "conv_dim": width, "num_convs": 4, "norm": "GN"},
    )
    count = sum(p.numel() for p in head.parameters())
    wide = 8 * 9 * width**2 + 256 * width + 16 * width**2
    assert wide < count < wide + 130 * width + 200


# ---- priors -------------------------------------------------------------------------------------


def test_a_checkpoint_brings_its_priors(tmp_path):
    without = tiny_model(*SHAPEMASK[:-1], str(tmp_path / "gone.npz"))
    with pytest.raises(UserError, match="shape priors .*gone.npz do not exist; make them with"):
        training_losses(without, partial_batch(MIXED))
    trained = tiny_model(*SHAPEMASK)
    without.load_state_dict(trained.state_dict())
    assert without.roi_heads.mask_head.shape.priors.max() > 0.9
    training_losses(without, partial_batch(MIXED))


def test_priors_of_another_number_are_refused(tmp_path):
    path = write_priors(str(tmp_path / "p.npz"), 5)
    with pytest.raises(UserError, match=r"are \[5\], but this config needs \[3\]"):
        tiny_model(*SHAPEMASK[:-1], path)
    with pytest.raises(UserError, match=r"are \[5\], but this config needs \[20, 3\]"):
        tiny_model(*SHAPEMASK[:-1], path, "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK", False)


# ---- on the road --------------------------------------------------------------------------------


def test_masks_reach_outside_of_their_boxes():
    """A head that says yes everywhere fills the outer box, not only the box."""
    model = tiny_model(*SHAPEMASK).eval()
    predictor = model.roi_heads.mask_head.predictor[-1]
    torch.nn.init.constant_(predictor.bias, 9)
    batch = partial_batch([[True]])
    box = torch.tensor([[20.0, 16, 40, 32]])
    given = Instances(
        (64, 64), pred_boxes=Boxes(box), pred_classes=torch.tensor([1]), scores=torch.ones(1)
    )
    batch[0] |= {"height": 128, "width": 128}  # the original image is twice as large
    with torch.no_grad():
        found = model.inference(batch, [given])[0]["instances"]
    rows, columns = found.pred_masks[0].any(dim=1).nonzero(), found.pred_masks[0].any(dim=0)
    # 1.25 x 1.25 of the box around (30, 24), times two
    assert (rows.min().item(), rows.max().item() + 1) == (28, 68)
    columns = columns.nonzero()
    assert (columns.min().item(), columns.max().item() + 1) == (35, 85)
    assert found.pred_boxes.tensor.tolist() == [[40, 32, 80, 64]]


def test_what_a_teacher_and_a_student_need_is_prepared(tmp_path, catalogs):
    register_data(tmp_path)
    key = "PSIS.TEACHER_STUDENT"
    head = ("MODEL.ROI_MASK_HEAD.NAME", "TeacherStudentMaskHead", "PSIS.SHAPEMASK.PRIORS", "")
    head += ("DATALOADER.CHECK_FILES", False)  # there are annotations alone
    for student, files in (
        ("FCNMaskHead", {"shape_priors.npz"}),
        ("ShapeMaskHead", {"shape_priors.npz", "class_shape_priors.npz"}),
    ):
        keys = (*head, f"{key}.TEACHER", "ShapeMaskHead", f"{key}.STUDENT", student)
        cfg = contract_config("quick/shapemask_shapes.yaml", tmp_path, *keys)
        prepare_data(cfg)
        assert {path.name for path in tmp_path.glob("*.npz")} == files
        losses = training_losses(build_model(cfg), partial_batch(MIXED))
        assert losses.keys() >= {"loss_mask", "loss_mask_teacher", "loss_prior_teacher"}
        assert all(loss.isfinite() for loss in losses.values())
    for path in tmp_path.glob("*.npz"):
        path.unlink()
    options = (f"{key}.TEACHER_OPTS", ["PSIS.SHAPEMASK.SHAPE_PRIOR", False])
    keys = (*head, f"{key}.TEACHER", "ShapeMaskHead", *options)
    prepare_data(contract_config("quick/shapemask_shapes.yaml", tmp_path, *keys))
    alone = ("DATALOADER.CHECK_FILES", False)
    prepare_data(contract_config("quick/agnostic_shapes.yaml", tmp_path, *alone))
    assert not list(tmp_path.glob("*.npz"))


# ---- as released --------------------------------------------------------------------------------


def test_embeddings_start_as_released():
    torch.manual_seed(0)
    options = {"num_outputs": 1, "conv_dim": 512, "num_convs": 1, "norm": "", "priors": None}
    heads = {
        init: ShapeMaskHead(ShapeSpec(channels=4, width=8), embedding_init=init, **options)
        for init in ("glorot", "fan_in")
    }
    for name in ("embed_prior", "embed_coarse"):
        scales = {k: getattr(head, name).weight.std().item() for k, head in heads.items()}
        # Glorot and Bengio: sqrt(2 / (fan-in + fan-out)).
        assert scales["glorot"] == pytest.approx(math.sqrt(2 / 513), rel=0.15)
        assert scales["fan_in"] == pytest.approx(1, rel=0.15)
        assert getattr(heads["glorot"], name).bias.eq(0).all()


@pytest.mark.parametrize(("offset", "cells"), [(0.0, 4), (0.5, 3)])
def test_targets_sit_in_their_cells_where_the_offset_says(offset, cells):
    """A box of eight cells of 4 pixels that is its own frame, 13 of its 32 columns are the mask."""
    head = head_of(None, sample_offset=offset, outer_box_scale=1.0)
    masks = torch.zeros(1, 64, 64, dtype=torch.bool)
    masks[0, :, :29] = True
    context = context_of(head, torch.tensor([[16.0, 16, 48, 48]]), (0,), masks)
    # The fourth cell is 12 to 16, a quarter of it the mask; or around 12, three quarters.
    assert head.mask_targets(context, 8)[0, 4].tolist() == [1] * cells + [0] * (8 - cells)


@pytest.mark.parametrize("offset", [0.0, 0.5])
def test_priors_are_placed_with_the_offset(offset):
    priors = random_priors(1)
    head = head_of(priors, sample_offset=offset)
    boxes = torch.tensor([[16.0, 16, 48, 48]])
    context = context_of(head, boxes, (0,))
    found = head.detection_prior(context, context.features)[0]
    frame = outer_boxes(Boxes(boxes), 1.25, (64, 64)).tensor[0].tolist()

    def value(y, x):
        """The prior between its values, 0 around it."""
        total = 0.0
        for row in (math.floor(y), math.floor(y) + 1):
            for column in (math.floor(x), math.floor(x) + 1):
                if 0 <= row < 8 and 0 <= column < 8:
                    weight = (1 - abs(y - row)) * (1 - abs(x - column))
                    total += weight * priors[0, row, column].item()
        return total

    for i in range(8):
        for j in range(8):
            y, x = (
                (frame[k] + (n + offset) * (frame[k + 2] - frame[k]) / 8 - 16) * 8 / 32 - offset
                for k, n in ((1, i), (0, j))
            )
            assert found[i, j].item() == pytest.approx(value(y, x), abs=1e-5)


def test_the_crop_may_be_pooled_without_the_half_cell():
    aligned = tiny_model(*SHAPEMASK).roi_heads.mask_pooler
    released = tiny_model(*SHAPEMASK, "MODEL.ROI_MASK_HEAD.POOLER_TYPE", "ROIAlign")
    kinds = [
        pooler.level_poolers[0].aligned for pooler in (aligned, released.roi_heads.mask_pooler)
    ]
    assert kinds == [True, False]
