# SPDX-License-Identifier: Apache-2.0
"""The loss of box supervision voxel by voxel and bag by bag, in float64 and plain loops."""

from __future__ import annotations

import itertools
import math

import numpy as np

DEFAULTS = {
    "kind": "softmax",
    "alpha": 6.0,
    "angles": (-40, -20, 0, 20, 40),
    "beta": 0.25,
    "gamma": 2.0,
    "normalization": "separate",
    "negatives": "voxels",
    "smoothness": 10.0,
    "affinity": 0.0,
    "affinity_options": {},
    "area": None,
    "area_weight": 1.0,
    "margin": 0.0,
    "ring": 1,
    "mask_weight": 1.0,
}


def reference_terms(logits, target, **options) -> dict[str, float]:
    """The terms before their weights; ``target`` holds lists with an entry for each image."""
    o = DEFAULTS | options
    logits = np.asarray(logits, dtype=np.float64)
    batch, classes, *space = logits.shape
    p = 1 / (1 + np.exp(-logits))
    boxes, masked, looked = _boxes_of_classes(target, batch, classes)
    inside, near = (_union(boxes, logits.shape, grow) for grow in (0, o["ring"]))
    outside = ~near & looked[(slice(None), *[None] * (logits.ndim - 1))]
    if target.get("ignore") is not None:
        outside &= ~np.broadcast_to(np.asarray(target["ignore"], dtype=bool), logits.shape)
    spacing = 1.0 if target.get("spacing") is None else np.asarray(target["spacing"])
    spacing = np.broadcast_to(spacing, (batch, len(space)))
    terms = {"unary": 0.0}
    for c in range(classes):
        positives, negatives = [], []
        for b, box, sides in boxes[c]:
            for bag in positive_bags(box, space, o["angles"], spacing[b], o["margin"], sides):
                positives.append(smooth_maximum([p[(b, c, *k)] for k in bag], o["kind"], o["alpha"]))
        for b in range(batch):
            for bag in negative_bags(outside[b, c], o["negatives"]):
                negatives.append(smooth_maximum([p[(b, c, *k)] for k in bag], o["kind"], o["alpha"]))
        weight = (1.0, 1.0) if o["beta"] is None else (o["beta"], 1 - o["beta"])
        hit = sum(-weight[0] * (1 - value) ** o["gamma"] * math.log(value) for value in positives)
        miss = sum(-weight[1] * value ** o["gamma"] * math.log(1 - value) for value in negatives)
        divisors = {
            "separate": (len(positives), len(negatives)),
            "positive_bags": (len(positives),) * 2,
            "all_bags": (len(positives) + len(negatives),) * 2,
        }[o["normalization"]]
        terms["unary"] += hit / max(divisors[0], 1) + miss / max(divisors[1], 1)
    if o["smoothness"]:
        terms["smoothness"] = smoothness(p, inside, spacing)
    if o["affinity"]:
        terms["affinity"] = affinity(p, np.asarray(target["image"]), inside, spacing, **o["affinity_options"])
    if o["area"] is not None and o["area_weight"]:
        terms["area"] = sum(area([(p[b, c], box) for b, box, _ in boxes[c]], *o["area"]) for c in range(classes))
    if masked.any():
        terms["masks"] = masks(p[masked], np.asarray(target["masks"])[masked])
    return terms


def reference_loss(logits, target, **options) -> float:
    """The weighted sum of the terms."""
    o = DEFAULTS | options
    weights = {"unary": 1, "area": o["area_weight"], "masks": o["mask_weight"], "smoothness": o["smoothness"]}
    terms = reference_terms(logits, target, **options)
    return sum(value * (weights | {"affinity": o["affinity"]})[name] for name, value in terms.items())


def _boxes_of_classes(target, batch: int, classes: int):
    """(image, whole corners, tight sides) of the boxes of each class; images with a mask; images whose boxes count."""
    masked = np.zeros(batch, bool)
    if target.get("masks") is not None:
        masked[:] = True if target.get("has_masks") is None else np.asarray(target["has_masks"])
    boxes = target.get("boxes")
    looked = np.array([boxes is not None and boxes[b] is not None for b in range(batch)])
    if target.get("has_boxes") is not None:
        looked &= np.asarray(target["has_boxes"])
    looked &= ~masked
    found = [[] for _ in range(classes)]
    for b in np.flatnonzero(looked):
        for n, (box, label) in enumerate(zip(np.asarray(boxes[b]), np.asarray(target["labels"][b]), strict=True)):
            box, half = box.astype(np.float64), len(box) // 2
            whole = [*(math.floor(x + 1e-3) for x in box[:half]), *(math.ceil(x - 1e-3) for x in box[half:])]
            sides = target.get("tight_sides")
            sides = np.ones(len(box), bool) if sides is None or sides[b] is None else np.asarray(sides[b])[n]
            found[int(label)].append((b, whole, sides))
    return found, masked, looked


def _union(boxes, shape, grow: int) -> np.ndarray:
    inside = np.zeros(shape, bool)
    ndim = len(shape) - 2
    for c, of_class in enumerate(boxes):
        for b, box, _ in of_class:
            for k in np.ndindex(*shape[2:]):
                inside[(b, c, *k)] |= all(box[a] - grow <= k[a] < box[ndim + a] + grow for a in range(ndim))
    return inside


def plane_lines(box, angles, spacing):
    """(axis along, whether straight, voxels) of each line of a box in the plane, wherever the image ends.

    The line through column ``middle`` halfway up takes, in each row, all columns from where it enters to where it
    leaves; of two columns equally near to a place that nearer to ``middle``.
    """
    for along, angle in itertools.product((0, 1), angles):
        across = 1 - along
        rows = box[2 + along] - box[along]
        tilt = math.tan(math.radians(angle)) * spacing[along] / spacing[across]
        for middle in range(box[across], box[2 + across]):

            def column(place, middle=middle):
                away = max(0, math.ceil(abs(place - middle) - 0.5 - 1e-9))
                return middle + (away if place > middle else -away)

            voxels = []
            for row in range(rows):
                enter, leave = (min(max(row + e, 0), rows - 1) - (rows - 1) / 2 for e in (-0.5, 0.5))
                ends = sorted(column(middle + t * tilt) for t in (enter, leave))
                voxels += [(row + box[along], j) for j in range(ends[0], ends[1] + 1)]
            if all(box[across] <= j < box[2 + across] for _, j in voxels):
                straight = all(j == middle for _, j in voxels)
                yield along, straight, [v if along == 0 else v[::-1] for v in voxels]


def positive_bags(box, shape, angles, spacing, margin=0.0, sides=None) -> list[list[tuple[int, ...]]]:
    """The bags of a box: lines in 2-D; planes in 3-D, where a slab across an axis counts once."""
    ndim = len(shape)
    slack = np.tile(np.broadcast_to(np.asarray(margin, dtype=float), ndim), 2)
    slack = np.where(True if sides is None else sides, slack, np.inf)
    bags, slabs = [], set()
    for depth_axis in range(3) if ndim == 3 else (None,):
        axes = [a for a in range(ndim) if a != depth_axis]
        flat = [*(box[a] for a in axes), *(box[ndim + a] for a in axes)]
        for along, straight, line in plane_lines(flat, angles, [spacing[a] for a in axes]):
            across = axes[1 - along]
            places = [voxel[1 - along] for voxel in line]
            first, end = box[across] + slack[across], box[ndim + across] - slack[ndim + across]
            if min(places) < first or max(places) + 1 > end:
                continue
            if depth_axis is None:
                voxels = line
            elif straight and (across, places[0]) in slabs:
                continue
            else:
                slabs |= {(across, places[0])} if straight else set()
                depth = range(box[depth_axis], box[ndim + depth_axis])
                voxels = [(*v[:depth_axis], k, *v[depth_axis:]) for v in line for k in depth]
            if all(0 <= x < size for voxel in voxels for x, size in zip(voxel, shape, strict=True)):
                bags.append(voxels)
    return bags


def negative_bags(outside: np.ndarray, kind: str) -> list[list[tuple[int, ...]]]:
    """Single voxels, or the lines along each axis that lie outside as a whole."""
    if kind == "voxels":
        return [[tuple(k)] for k in np.argwhere(outside)]
    bags = []
    for axis in range(outside.ndim):
        for k in np.ndindex(*np.delete(outside.shape, axis)):
            line = [(*k[:axis], j, *k[axis:]) for j in range(outside.shape[axis])]
            bags += [line] if all(outside[v] for v in line) else []
    return bags


def smooth_maximum(values, kind: str, alpha: float) -> float:
    """Equations 6 and 7, the power mean and the maximum, as they are printed."""
    x = np.asarray(values, dtype=np.float64)
    if kind == "max":
        return float(x.max())
    if kind == "softmax":
        return float((x * np.exp(alpha * x)).sum() / np.exp(alpha * x).sum())
    if kind == "quasimax":
        return float((math.log(np.exp(alpha * x).sum()) - math.log(len(x))) / alpha)
    return float((x**alpha).mean() ** (1 / alpha))


def _pairs(inside: np.ndarray, step: int, spacing):
    """(c, index, index of neighbour, weight) from each voxel inside to each neighbour ``step`` away in the image."""
    space = inside.shape[2:]
    for b, c, *k in np.argwhere(inside):
        for move in itertools.product((-step, 0, step), repeat=len(space)):
            other = np.add(k, move)
            if any(move) and (other >= 0).all() and (other < space).all():
                sizes = np.asarray(spacing[b], dtype=float)
                weight = (np.linalg.norm(move) * sizes.min() / np.linalg.norm(move * sizes)) ** 2
                yield c, (b, c, *k), (b, c, *other), weight


def smoothness(p, inside, spacing) -> float:
    """Equation 3 from the voxels inside, a weighted mean for each class."""
    sums = np.zeros((p.shape[1], 2))
    for c, k, other, weight in _pairs(inside, 1, spacing):
        sums[c] += weight * (p[k] - p[other]) ** 2, weight
    return float((sums[:, 0] / np.where(sums[:, 1] > 0, sums[:, 1], 1)).sum())


def affinity(p, image, inside, spacing, *, sigma: float, threshold: float = 0.3, dilation: int = 2) -> float:
    """Minus the log probability that like neighbours have one label, a weighted mean for each class."""
    sums = np.zeros((p.shape[1], 2))
    for c, k, other, weight in _pairs(inside, dilation, spacing):
        difference = image[(k[0], slice(None), *k[2:])] - image[(k[0], slice(None), *other[2:])]
        if math.exp(-(difference**2).sum() / (2 * sigma**2)) >= threshold:
            sums[c] += -weight * math.log(p[k] * p[other] + (1 - p[k]) * (1 - p[other])), weight
    return float((sums[:, 0] / np.where(sums[:, 1] > 0, sums[:, 1], 1)).sum())


def area(boxes, lower: float, upper: float) -> float:
    """Mean over the whole boxes of the squared distance of the share to its bounds, the upper one wider if small."""
    penalties = []
    for p, box in boxes:
        low, high = box[: p.ndim], box[p.ndim :]
        if all(0 <= a and b <= size for a, b, size in zip(low, high, p.shape, strict=True)):
            share = p[tuple(slice(a, b) for a, b in zip(low, high, strict=True))].mean()
            most = upper * math.prod(1 + 0.5 / (b - a) for a, b in zip(low, high, strict=True))
            penalties.append(max(share - most, lower - share, 0) ** 2)
    return sum(penalties) / max(len(penalties), 1)


def masks(p, truth) -> float:
    """Binary cross-entropy and soft Dice, each class by itself over all of the images."""
    total = 0.0
    for c in range(p.shape[1]):
        q, t = p[:, c], (truth[:, c] > 0).astype(float)
        total += -(t * np.log(q) + (1 - t) * np.log(1 - q)).mean()
        total += 1 - (2 * (q * t).sum() + 1) / (q.sum() + t.sum() + 1)
    return float(total)
