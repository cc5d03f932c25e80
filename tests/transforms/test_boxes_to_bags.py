# SPDX-License-Identifier: Apache-2.0
"""Boxes carried by MONAI's own spatial transforms: exactly, or up to what resampling moves."""

from __future__ import annotations

import itertools
import pickle

import numpy as np
import pytest
import torch
from connected_objects import objects, tight_box
from dicom_samples import affine_of
from monai import transforms as mt
from monai.data import CacheDataset, DataLoader, Dataset, MetaTensor
from scipy import ndimage
from testers import AFFINE

from monai_labelfx.ops.box_frames import boxes_to_frames, frame_voxels
from monai_labelfx.transforms.boxes_to_bags import BoxesToBags, BoxesToBagsd
from monai_labelfx.transforms.labels_to_tight_boxes import LabelsToTightBoxes, LabelsToTightBoxesd

SHAPES = {2: (14, 17), 3: (9, 10, 11)}


def rigid(ndim: int) -> dict[str, mt.Transform]:
    """Everything that moves whole voxels."""
    found = {f"flip {axis}": mt.Flip(axis) for axis in range(ndim)}
    for axes in itertools.combinations(range(ndim), 2):
        found |= {f"rot90 {axes} {k}": mt.Rotate90(k, axes) for k in (1, 2, 3)}
        found[f"transpose {axes}"] = mt.Compose([mt.Rotate90(1, axes), mt.Flip(axes[0])])
    found["pad"] = mt.BorderPad([1, 4] * ndim)
    found["divisible"] = mt.DivisiblePad(8)
    found["crop"] = mt.SpatialCrop(roi_start=[2] * ndim, roi_end=[8 + axis for axis in range(ndim)])
    found["pad, flip, turn, crop"] = mt.Compose(
        [mt.SpatialPad([15] * ndim), mt.Flip(0), mt.Rotate90(1, (0, 1)), mt.CenterSpatialCrop([7] * ndim)]
    )
    if ndim == 3:
        found |= {code: mt.Orientation(code, labels=None) for code in ("LPS", "SAR", "PIL", "IRA")}
    return found


def with_affine(mask: np.ndarray, affine=None) -> MetaTensor:
    return MetaTensor(torch.as_tensor(mask)[None].float(), affine=affine)


def carried(label: MetaTensor, moved: MetaTensor) -> torch.Tensor:
    frames = BoxesToBags()(LabelsToTightBoxes()(label)["_boxes"], moved)
    assert type(frames) is torch.Tensor and frames.dtype == torch.float32
    return frames


@pytest.mark.parametrize(("ndim", "name"), [(ndim, name) for ndim in (2, 3) for name in rigid(ndim)])
def test_whole_voxel_moves_carry_the_tight_box(ndim, name):
    """The frame is the tight box of the moved mask, and its lattice holds the object as the old box did."""
    affine = AFFINE[[0, 1, 3]][:, [0, 1, 3]] if ndim == 2 and "flip" in name else torch.as_tensor(affine_of("oblique"))
    for mask in objects(ndim, SHAPES[ndim], 4):
        label = with_affine(mask, affine)
        moved = rigid(ndim)[name](label)
        frame = carried(label, moved)
        assert torch.equal(frame, frame.round())
        ends = torch.stack([frame[0, 0], frame[0].sum(0)])
        box = torch.cat([ends.amin(0), ends.amax(0)])
        found = frame_voxels(frame, moved.shape[1:])
        old = tight_box(mask)[0]
        before = torch.as_tensor(mask)[tuple(slice(a, b) for a, b in zip(old[:ndim], old[ndim:], strict=True))]
        after = moved.as_tensor().flatten()[found.voxels[0].clamp(min=0)] > 0
        assert after.shape == before.shape and torch.equal(after[found.inside[0]], before[found.inside[0]])
        assert int((moved > 0).sum()) == int(after[found.inside[0]].sum())
        if "crop" not in name:
            assert torch.equal(box, tight_box(moved[0].numpy() > 0)[0].float()) and found.inside.all()
        else:
            whole = (box[:ndim] >= 0).all() and (box[ndim:] <= torch.tensor(moved.shape[1:])).all()
            assert bool(found.inside.all()) == bool(whole)


def smooth_object(rng, ndim: int) -> np.ndarray:
    """The largest component of smooth noise that falls off towards the border."""
    shape = (48, 52) if ndim == 2 else (26, 24, 28)
    noise = ndimage.gaussian_filter(rng.standard_normal(shape), 5 - ndim / 2)
    radius = np.linalg.norm(np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")), axis=0)
    field = noise / noise.std() - 3 * radius**2
    parts, _ = ndimage.label(field > np.quantile(field, rng.uniform(0.8, 0.95)), np.ones([3] * ndim))
    return parts == 1 + np.bincount(parts.ravel())[1:].argmax()


def empty_slabs(mask: torch.Tensor, frames: torch.Tensor) -> tuple[int, int]:
    """Of the slabs of the lattice (in 2-D its lines) that lie inside the image: all, and those without object."""
    found, total, empty = frame_voxels(frames, mask.shape), 0, 0
    for voxels, inside, extents in zip(found.voxels, found.inside, found.extents.tolist(), strict=True):
        part = tuple(map(slice, extents))
        hit = (mask.flatten()[voxels[part].clamp(min=0)] > 0) & inside[part]
        for axis in range(mask.ndim):
            complete = inside[part].movedim(axis, 0).flatten(1).all(1)
            total += int(complete.sum())
            empty += int((complete & ~hit.movedim(axis, 0).flatten(1).any(1)).sum())
    return total, empty


RESAMPLED = {
    "rotated": mt.RandRotated(
        "image", 0.8, 0.8, 0.8, prob=1.0, mode="nearest", padding_mode="zeros", keep_size=False
    ),
    "affine": mt.RandAffined(
        "image", prob=1.0, rotate_range=(0.4,) * 3, shear_range=(0.1,) * 2, translate_range=(1,) * 3,
        scale_range=(0.15,) * 3, mode="nearest", padding_mode="zeros",
    ),
    "zoomed": mt.RandZoomd("image", prob=1.0, min_zoom=0.7, max_zoom=1.5, mode="nearest-exact", keep_size=False),
    "zoomed, then padded or cut": mt.RandZoomd("image", prob=1.0, min_zoom=0.7, max_zoom=1.2, mode="nearest-exact"),
    "spacing": mt.Spacingd("image", (0.8, 0.8, 2.0), mode="nearest"),
}  # fmt: skip


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("name", RESAMPLED)
def test_bags_survive_resampling_and_the_hull_does_not(ndim, name):
    rng, transform = np.random.default_rng(5), RESAMPLED[name]
    if isinstance(transform, mt.Randomizable):
        transform.set_random_state(7)
    kept, hull = np.zeros(2, int), np.zeros(2, int)
    for _ in range(24 if ndim == 2 else 8):
        label = with_affine(smooth_object(rng, ndim), AFFINE)
        moved = transform({"image": label})["image"]
        assert not torch.equal(torch.as_tensor(moved.affine), torch.as_tensor(label.affine))
        frames = carried(label, moved)
        kept += empty_slabs(moved[0].as_tensor(), frames)
        around = torch.cat(
            [frames[:, 0] + frames[:, 1:].clamp(max=0).sum(1), frames[:, 0] + frames[:, 1:].clamp(min=0).sum(1)], 1
        )
        hull += empty_slabs(moved[0].as_tensor(), boxes_to_frames(around))
    assert kept[0] > 100 and kept[1] < 0.01 * kept[0]
    if name in ("rotated", "affine"):
        assert hull[1] > 0.1 * hull[0]


@pytest.mark.parametrize("ndim", [2, 3])
def test_pending_operations_count_as_done(ndim):
    mask = next(objects(1, SHAPES[ndim], 1))
    label = with_affine(mask, AFFINE)
    moves = [mt.Flip(0), mt.Rotate90(1, (0, 1)), mt.SpatialCrop(roi_start=[1] * ndim, roi_end=[9] * ndim)]
    eager, lazy = label, label
    for move in moves:
        eager, lazy = move(eager), move(lazy, lazy=True)
    assert lazy.pending_operations and not eager.pending_operations
    assert torch.equal(carried(label, lazy), carried(label, eager))
    steps = [LabelsToTightBoxesd("label"), mt.RandFlipd("image", 1.0, 0), mt.Rotate90d("image"), BoxesToBagsd("label")]
    item = {"image": label.clone(), "label": label}
    both = [mt.Compose(steps, lazy=lazy)(item)["label_bags"] for lazy in (False, True)]
    assert torch.equal(both[0], both[1]) and not torch.equal(both[0], carried(label, label))


@pytest.mark.parametrize("ndim", [2, 3])
def test_containers_and_the_identity(ndim):
    """Without affines nothing has happened; fractions are rounded outwards, as those of crossing lines."""
    box = torch.tensor([[1.2] * ndim + [4.0004] * ndim, [0.0] * 2 * ndim, [2.0] * ndim + [3.0] * ndim])
    image = torch.zeros(1, *SHAPES[ndim])
    expected = boxes_to_frames(
        torch.tensor([[1.0] * ndim + [4.0] * ndim, [0.0] * 2 * ndim, [2.0] * ndim + [3.0] * ndim])
    )
    for boxes, plain in ((box, image), (box.numpy(), image.numpy()), (box.double(), image.numpy())):
        assert torch.equal(BoxesToBags()(boxes, plain), expected)
    meta = MetaTensor(image, affine=AFFINE), MetaTensor(box, affine=AFFINE.double())
    assert torch.equal(BoxesToBags()(meta[1], meta[0]), expected)
    noise = AFFINE + 1e-6 * torch.rand(4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(BoxesToBags()(meta[1], MetaTensor(image, affine=noise)), expected)
    hidden = BoxesToBags(max_boxes=5)(box, image, np.array([0, -1, -1]))
    assert hidden.shape == (5, ndim + 1, ndim) and torch.equal(hidden[0], expected[0]) and not hidden[1:].any()
    assert BoxesToBags()(box[:0], image).shape == (0, ndim + 1, ndim)


def test_a_picture_may_have_any_kind_of_affine():
    """A slice of a sagittal scan has no 2x2 affine of its own; a 3x3 one is that of the plane."""
    mask = next(objects(4, (9, 12), 1))
    for affine in (affine_of("sagittal"), affine_of("tilted"), np.diag([0.5, -2.0, 1.0])):
        label = with_affine(mask, torch.as_tensor(affine))
        moved = mt.Rotate90(1)(mt.Flip(0)(label))
        box = tight_box(moved[0].numpy() > 0)[0]
        frame = carried(label, moved)[0]
        assert torch.stack([frame[0], frame.sum(0)]).amin(0).tolist() == box[:2].tolist()
    other = torch.as_tensor(affine_of("sagittal"))
    other[:3, 3] += other[:3, 2]
    label = with_affine(mask, torch.as_tensor(affine_of("sagittal")))
    with pytest.raises(ValueError, match="another plane than the boxes"):
        carried(label, with_affine(mask, other))


@pytest.mark.parametrize("ndim", [2, 3])
def test_items_make_a_batch_and_caching_ends_before_it(ndim):
    items = [
        {"image": with_affine(mask, AFFINE), "label": with_affine(mask, AFFINE)} for mask in objects(2, SHAPES[ndim], 2)
    ]
    items[0]["label"] = items[0]["label"] * 0
    chain = mt.Compose(
        [
            LabelsToTightBoxesd("label", max_boxes=3),
            mt.RandFlipd(["image", "label"], 0.5, 0),
            mt.RandRotate90d("image", 1.0),
            mt.SpatialPadd("image", [20] * ndim),
            BoxesToBagsd("label"),
        ]
    )
    for workers in (0, 2):
        batch = next(iter(DataLoader(Dataset(items, chain.set_random_state(1)), batch_size=6, num_workers=workers)))
        assert batch["label_bags"].shape == (6, 3, ndim + 1, ndim) and type(batch["label_bags"]) is torch.Tensor
        assert batch["label_boxes"].shape == (6, 3, 2 * ndim)
        for row in range(6):
            assert batch["label_box_labels"][row].tolist() == ([0, -1, -1] if row else [-1] * 3)
            ends = torch.stack([batch["label_bags"][row, 0, 0], batch["label_bags"][row, 0].sum(0)])
            moved = batch["image"][row, 0].as_tensor().numpy() > 0
            assert not row or torch.cat([ends.amin(0), ends.amax(0)]).tolist() == tight_box(moved)[0].tolist()
            assert not batch["label_bags"][row, 1:].any()
    cached = CacheDataset(items, chain.set_random_state(3), progress=False)
    assert torch.equal(cached[1]["label_boxes"], cached[1]["label_boxes"])
    assert len({tuple(cached[1]["label_bags"].flatten().tolist()) for _ in range(12)}) > 1
    first, second = (mt.Compose(chain.transforms).set_random_state(9)(items[1])["label_bags"] for _ in range(2))
    assert torch.equal(first, second)


def test_the_twin_reads_and_writes_its_own_names():
    label = with_affine(next(objects(4, (9, 12), 1)), AFFINE)
    made = LabelsToTightBoxesd(["label", "second"])({"label": label, "second": mt.Flip(0)(label), "picture": label})
    before = dict(made)
    twin = pickle.loads(
        pickle.dumps(BoxesToBagsd(["label", "second", "none"], "picture", max_boxes=2, allow_missing_keys=True))
    )
    out = twin(made)
    assert made == before and set(out) - set(made) == {"label_bags", "second_bags"}
    assert out["label_boxes"].shape == (2, 4) and isinstance(out["label_boxes"], MetaTensor)
    assert torch.equal(out["label_boxes"].affine, made["label_boxes"].affine)
    assert out["label_box_labels"].tolist() == [0, -1] and out["label"] is label
    found = frame_voxels(out["second_bags"], (9, 12)).voxels[0]
    assert torch.equal(found.flip(0), frame_voxels(out["label_bags"], (9, 12)).voxels[0])
    for missing in ("label_boxes", "label_box_labels", "picture"):
        with pytest.raises(KeyError, match=f"has no '{missing}'; keys"):
            BoxesToBagsd("label", "picture")({key: value for key, value in made.items() if key != missing})


IMAGE = torch.zeros(1, 6, 6)
BOX = torch.tensor([[1.0, 1.0, 3.0, 3.0]])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: BoxesToBags(max_boxes=0), "max_boxes must be 1 or above"),
        (
            lambda: BoxesToBags()(BOX, MetaTensor(IMAGE)),
            "only the image came with an affine.*LabelsToTightBoxesd or Pack",
        ),
        (lambda: BoxesToBags()(MetaTensor(BOX), IMAGE), "only the boxes came with an affine"),
        (
            lambda: BoxesToBags()(MetaTensor(BOX), MetaTensor(IMAGE, affine=torch.zeros(4, 4))),
            "must be finite and have an",
        ),
        (lambda: BoxesToBags()(MetaTensor(BOX, affine=torch.eye(4) * torch.nan), MetaTensor(IMAGE)), "must be finite"),
        (
            lambda: BoxesToBags()(MetaTensor(BOX, affine=torch.diag(torch.tensor([1.0, 0, 1, 1]))), MetaTensor(IMAGE)),
            "inverse",
        ),
        (lambda: BoxesToBags()(BOX, IMAGE[None]), r"\(N, 6\) for an image of 3 spatial axes, got \(1, 4\)"),
        (lambda: BoxesToBags()(BOX[0], IMAGE), r"got \(4,\)"),
        (lambda: BoxesToBags()(BOX, IMAGE, torch.zeros(2)), r"labels must be one for each of 1 boxes, got \(2,\)"),
        (lambda: BoxesToBags()(-BOX, IMAGE), "box 0 must be finite, with every high corner above"),
        (lambda: BoxesToBags(max_boxes=1)(BOX.repeat(2, 1), IMAGE), "2 boxes, more than max_boxes=1"),
    ],
)
def test_errors_say_what_is_wrong(call, words):
    with pytest.raises(ValueError, match=words):
        call()
