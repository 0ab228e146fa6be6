"""ContrastMask: parts and sampling by hand, its loss against a slow definition, what learns."""

import math
from dataclasses import replace

import psis_d2  # noqa: F401
from psis_d2.errors import UserError
from psis_d2.modeling.losses import mask_bce
from psis_d2.modeling.mask_heads import contrastmask
from psis_d2.modeling.mask_heads.contrastmask import (
    attend,
    contrast,
    cosines,
    mean_of_cells,
    merge,
    part_by_maps,
    part_by_masks,
    sample_cells,
)

import pytest
import torch
import torch.nn.functional as F
from detectron2.layers import ROIAlign, ShapeSpec
from detectron2.modeling.roi_heads.mask_head import build_mask_head
from detectron2.utils.events import EventStorage

from model_builders import (
    as_foreign,
    partial_batch,
    tiny_config,
    tiny_model,
    training_context,
    training_losses,
)

MIXED = [[True, False, True], [False, True]]


def model_of(*overrides):
    keys = [
        f"PSIS.CONTRASTMASK.{x}" if i % 2 == 0 and "." not in x else x
        for i, x in enumerate(overrides)
    ]
    narrow = ("MODEL.ROI_BOX_HEAD.CONV_DIM", 32, "PSIS.CONTRASTMASK.ENCODER_CONVS", 1)
    keys = (*narrow, "PSIS.MASK_TRAIN_BOXES", "gt", *keys)
    return tiny_model(*keys, config="quick/contrastmask_shapes.yaml")


# ------------------------------------------------------------------------------ which cells


def test_parts_of_a_mask_by_hand():
    """Left three of eight columns: the contour lies between columns 2 and 3."""
    masks = torch.zeros(1, 8, 8)
    masks[:, :, :3] = 1
    parts = part_by_masks(masks, hard_width=2, hard_gap=1)

    def columns(cells):
        cells = cells.view(8, 8)
        assert torch.equal(cells, cells[:1].expand(8, 8))
        return cells[0].nonzero()[:, 0].tolist()

    assert columns(parts.foreground) == [0, 1, 2]
    assert columns(parts.background) == [3, 4, 5, 6, 7]
    (easy_inside, easy_outside), (hard_inside, hard_outside) = parts.keys
    assert [columns(x) for x in (easy_inside, easy_outside)] == [[0], [5, 6, 7]]
    assert [columns(x) for x in (hard_inside, hard_outside)] == [[1], [4]]
    assert parts.smallest().tolist() == [8]
    ((inside, outside),) = part_by_masks(masks, hard_width=0, hard_gap=0).keys
    assert [columns(x) for x in (inside, outside)] == [[0, 1, 2], [3, 4, 5, 6, 7]]


def test_parts_of_a_map_by_hand():
    maps = torch.tensor([[[0.0, 0.09], [0.1, 0.2]], [[0.85, 0.9], [0.91, 1.0]]])
    parts = part_by_maps(maps, 0.1, kinds=2)
    assert parts.foreground.tolist() == [[False] * 4, [False, False, True, True]]
    assert parts.background.tolist() == [[True, True, False, False], [False] * 4]
    assert len(parts.keys) == 2
    for inside, outside in parts.keys:
        assert torch.equal(inside, parts.foreground)
        assert torch.equal(outside, parts.background)
    assert parts.smallest().tolist() == [0, 0]


def test_each_region_has_the_part_that_it_may_have():
    seen = part_by_masks(torch.ones(1, 2, 2), 2, 1)
    unseen = part_by_maps(torch.full((2, 2, 2), 0.5), 0.1, kinds=2)
    both = merge(seen, unseen, (torch.tensor([1]), torch.tensor([0, 2])))
    assert both.foreground.any(dim=1).tolist() == [False, True, False]
    assert torch.equal(both.rows(torch.tensor([1])).foreground, seen.foreground)


def test_sampling_by_hand():
    candidates = torch.zeros(3, 20, dtype=torch.bool)
    candidates[0, 2:12] = True  # of ten, three
    candidates[1, 5:12] = True  # of seven, 2.1 and so three
    candidates[2, 7] = True  # of one, one
    torch.manual_seed(0)
    draws = torch.stack([sample_cells(candidates, 0.3) for _ in range(300)])
    assert (draws.sum(dim=2) == torch.tensor([3, 3, 1])).all()
    assert not (draws & ~candidates).any()
    # Each as often as any other: 90 of 300, of which 5 sd are 40.
    often = draws[:, 0, 2:12].sum(dim=0)
    assert ((often - 90).abs() < 40).all()
    assert torch.equal(sample_cells(candidates, 1.0), candidates)
    nothing = torch.zeros_like(candidates)
    assert torch.equal(sample_cells(nothing, 0.3), nothing)


# ------------------------------------------------------------------------------ the loss


def slow_loss(keys, queries, pairs, temperatures, *, shared, released, weights):
    """Cell by cell: keys [R, D, N], a (foreground, background) pair of cells a kind of keys."""

    def cosine(q, k):
        difference = [b - a for a, b in zip(q, k, strict=True)] if released else k
        lengths = [math.sqrt(sum(x * x for x in v)) for v in (q, difference)]
        dot = sum(a * b for a, b in zip(q, difference, strict=True))
        return dot / (lengths[0] * lengths[1]) if all(lengths) else 0.0

    def one(query, positives, negatives, t):
        others = sum(math.exp(cosine(query, k) / t) for k, _ in negatives)
        terms = []
        for key, weight in positives:
            c = cosine(query, key)
            own = math.exp(c) if released else math.exp(c / t)
            terms.append(-weight * math.log(math.exp(c / t) / (own + others)))
        return sum(terms) / len(terms)

    regions = range(len(keys))
    groups = [list(regions)] if shared else [[r] for r in regions]
    result = []
    for group in groups:
        total = 0.0
        for own, cells in enumerate(queries):
            means = [keys[r][:, cells[r]].mean(dim=1) for r in group]
            query = torch.stack(means).mean(dim=0).tolist()
            for pair, t in zip(pairs, temperatures, strict=True):
                chosen = [
                    [
                        (keys[r][:, n].tolist(), weights[r])
                        for r in group
                        for n in pair[side][r].nonzero()[:, 0]
                    ]
                    for side in (own, 1 - own)
                ]
                total += one(query, *chosen, t)
        result.append(total)
    return sum(result) / len(result)


@pytest.mark.parametrize(("shared", "released"), [(True, True), (True, False), (False, True)])
def test_the_loss_is_the_slow_one(shared, released, monkeypatch):
    """Of a model's own regions, every key drawn: masks, maps, a weight, regions left out."""
    name = "released" if released else "infonce"
    model = model_of("LOSS", name, "SHARED_QUERY", shared, "MIN_KEYS", 1, "ENCODER_DIM", 4)
    head = model.roi_heads.mask_head
    batch = as_foreign(partial_batch(MIXED), [[None, None, 0.5], [None, None]])
    context = training_context(model, batch)
    monkeypatch.setattr(contrastmask, "sample_cells", lambda candidates, share: candidates)
    encoded = torch.rand(5, 4, 8, 8)
    found = head.contrast_loss(context, encoded).item()

    parts = head.partition(context, 8)
    rows = (parts.smallest() >= 1).nonzero()[:, 0]
    assert {True, False} == set(context.has_mask[rows].tolist())
    parts = parts.rows(rows)
    expected = slow_loss(
        head.projector(encoded[rows]).flatten(2).double().detach(),
        (parts.foreground, parts.background),
        parts.keys,
        (0.3, 0.7),
        shared=shared,
        released=released,
        weights=torch.tensor([1.0, 1, 0.5, 1, 1])[rows].tolist(),
    )
    assert found == pytest.approx(0.1 * expected, rel=1e-4)


def test_cosines_by_hand():
    query = torch.tensor([[3.0, 4.0]])
    keys = torch.tensor([[[6.0, -4.0, 3.0], [8.0, 3.0, 4.0]]])
    torch.testing.assert_close(cosines(query, keys, False), torch.tensor([[1.0, 0, 1]]))
    less = F.cosine_similarity(query[:, :, None], keys - query[:, :, None], dim=1)
    assert cosines(query, keys, True)[0, 2] == 0  # no difference, no angle
    torch.testing.assert_close(cosines(query, keys, True)[:, :2], less[:, :2])


def test_keys_on_the_querys_side_have_a_small_loss():
    similarity = torch.tensor([[1.0, 1.0, -1.0, -1.0]])
    inside = torch.tensor([[True, True, False, False]])
    for released in (True, False):
        keys = {"temperature": 0.3, "shared": True, "released": released}
        good = contrast(similarity, inside, ~inside, **keys)
        assert good < contrast(-similarity, inside, ~inside, **keys)


def test_the_mean_of_cells():
    x = torch.arange(12.0).view(1, 2, 6)
    cells = torch.tensor([[True, False, False, True, False, False]])
    assert mean_of_cells(x, cells).tolist() == [[1.5, 7.5]]


def test_attention_by_hand():
    """Two cells at a right angle, whose cosines are 1 and 0."""
    x = torch.tensor([2.0, 0, 0, 5]).view(1, 2, 1, 2)
    own = math.e / (math.e + 1)
    expected = torch.tensor([2 * own, 2 - 2 * own, 5 - 5 * own, 5 * own]).view(1, 2, 1, 2)
    torch.testing.assert_close(attend(x), expected)


# ------------------------------------------------------------------------------ the head


def test_one_pooling_gives_both_resolutions():
    x, box = torch.rand(1, 3, 20, 20), torch.tensor([[0, 2.0, 3, 17, 19]])
    fine = ROIAlign((28, 28), 1.0, 1, aligned=True)(x, box)
    coarse = ROIAlign((14, 14), 1.0, 2, aligned=True)(x, box)
    torch.testing.assert_close(F.avg_pool2d(fine, 2), coarse)


def gradients_of(model, name):
    losses = training_losses(model, partial_batch(MIXED))
    losses[name].backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("detach", [True, False])
def test_the_contrast_trains_the_contrastive_head_and_if_asked_the_backbone(detach):
    model = model_of("DETACH", detach, "MIN_KEYS", 1)
    moved = {k for k, g in gradients_of(model, "loss_contrast").items() if g.abs().max() > 0}
    assert all(any(part in name for name in moved) for part in ("encoder", "projector"))
    assert any("backbone" in name for name in moved) == (not detach)
    assert not any("trunk" in name or "box_head" in name for name in moved)


def test_the_masks_train_the_encoder():
    moved = gradients_of(model_of(), "loss_mask")
    assert moved["roi_heads.mask_head.encoder.0.weight"].abs().max() > 0
    assert all("projector" not in k or g.eq(0).all() for k, g in moved.items())


def test_objects_without_a_mask_count_only_if_asked():
    batch = partial_batch([[False, False], [False]])
    for unseen in (True, False):
        loss = training_losses(model_of("UNSEEN", unseen, "MIN_KEYS", 1), batch)["loss_contrast"]
        assert (loss.item() != 0) == unseen


def test_small_parts_are_left_out():
    losses = training_losses(model_of("MIN_KEYS", 785), partial_batch(MIXED))
    assert losses["loss_contrast"].item() == 0
    losses["loss_contrast"].backward()


def test_the_weight_grows():
    head = model_of("WARMUP", 100, "START", 0.25).roi_heads.mask_head
    found = []
    for iteration in (0, 20, 50, 100, 1000):
        with EventStorage(iteration):
            found.append(head._growth())
    assert found == [0.25, 0.25, 0.5, 1, 1]
    assert model_of("WARMUP", 0).roi_heads.mask_head._growth() == 1


def test_the_mask_loss_of_annotated_boxes_alone():
    model = model_of("PSIS.MASK_TRAIN_BOXES", "proposals", "MASK_MIN_IOU", 1.0)
    head = model.roi_heads.mask_head
    context = training_context(model, partial_batch(MIXED))
    same = torch.cat(
        [
            (a.tensor == b.tensor).all(dim=1)
            for a, b in zip(context.boxes, context.object_boxes, strict=True)
        ]
    )
    keep = same & context.has_mask
    assert 0 < keep.sum() < context.has_mask.sum()
    head.eval()  # no dropout, no statistics of the batch
    seen = context.select(keep)
    seen = replace(seen, all_annotated=True)
    expected = mask_bce(head.predict(seen), seen.mask_targets(28), seen.classes)
    with EventStorage():
        torch.testing.assert_close(head.losses(context)["loss_mask"], expected)


@pytest.mark.parametrize(
    ("keys", "lacks"),
    [
        (("FUSION", "none"), "fuse"),
        (("WEIGHT", 0.0), "projector"),
        (("FUSION", "none", "WEIGHT", 0.0), "encoder"),
        (("FUSION", "concat", "ATTENTION", False, "CLASS_MAP", False), None),
        (("HARD_WIDTH", 0, "HARD_GAP", 0, "PROJECTOR_NORM", ""), None),
    ],
)
def test_every_switch_trains_and_leaves_out_what_it_has_no_use_for(keys, lacks):
    model = model_of(*keys)
    head = model.roi_heads.mask_head
    assert lacks is None or getattr(head, lacks) is None
    losses = training_losses(model, partial_batch(MIXED))
    assert ("loss_contrast" in losses) == (head.projector is not None)
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())


def test_released_architecture():
    cfg = tiny_config(config="contrastmask_R50.yaml")
    cfg.merge_from_list(["MODEL.FPN.OUT_CHANNELS", 256, "MODEL.ROI_MASK_HEAD.CONV_DIM", 256])
    with torch.device("meta"):
        head = build_mask_head(cfg, ShapeSpec(channels=256, height=28, width=28))
    assert [conv.out_channels for conv in head.encoder] == [256] * 8
    assert [type(conv.norm).__name__ for conv in head.projector] == ["BatchNorm2d"] * 2 + [
        "NoneType"
    ]
    assert head.fuse.weight.shape == (256, 256, 1, 1)
    assert [conv.in_channels for conv in head.trunk] == [256] * 4


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (("MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION", 7), "POOLER_RESOLUTION is 7.* even one"),
        (("HARD_WIDTH", 1), "HARD_GAP is 1 and HARD_WIDTH 1.* make the gap smaller"),
        (
            ("PSIS.MASK_TRAIN_BOXES", "jittered_gt", "MASK_MIN_IOU", 1.0),
            "MASK_MIN_IOU is 1.0, which no jittered box reaches",
        ),
    ],
)
def test_settings_that_cannot_be(keys, message):
    with pytest.raises(UserError, match=message):
        model_of(*keys)
