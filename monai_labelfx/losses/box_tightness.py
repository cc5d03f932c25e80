# SPDX-License-Identifier: Apache-2.0
"""The loss of box supervision: multiple instances in the bags of tight boxes, smoothness, affinity and area."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from monai_labelfx.losses._box_area import area_penalty
from monai_labelfx.losses._box_checks import (
    check_choice,
    check_margin_axes,
    check_not_negative,
    check_parts,
    checked_affinity_options,
    checked_alpha,
    checked_angles,
    checked_area,
    checked_margin,
    checked_ring,
    ignored,
    masked_images,
    tensor_part,
    voxel_sizes,
    without_boxes,
)
from monai_labelfx.losses._box_target import BoxTarget, read_box_target
from monai_labelfx.losses._box_unary import NEGATIVES, NORMALIZATIONS, unary_terms
from monai_labelfx.losses._neighbours import checked_logits
from monai_labelfx.losses.intensity_affinity import intensity_affinity_loss
from monai_labelfx.losses.pairwise_smoothness import pairwise_smoothness_loss
from monai_labelfx.ops.box_frames import frames_to_mask
from monai_labelfx.ops.crossing_lines import ANGLES, box_voxels
from monai_labelfx.ops.smooth_maxima import SMOOTH_MAX_KINDS

_SMOOTH = 1.0  # voxel, in the soft Dice of masks


class BoxTightnessLoss(torch.nn.Module):
    r"""Segmentation from tight boxes: generalised multiple instance learning with smooth maxima (Wang and Xia 2021).

    For each class channel the loss adds up (equation 1, with terms that the paper lacks behind its own)

    .. math::
        L_c = \phi_c + \lambda \varphi_c + \lambda_a A_c + \lambda_s V_c + \lambda_m M_c

    and sums over classes (equation 4). With :math:`P(b)` the smooth maximum (equations 6, 7) over a bag b:

    - unary, equation 5: every positive bag, a crossing line of a box in 2-D and a plane in 3-D, holds an object voxel;
      every voxel outside all boxes of the class is background, a negative bag of its own:
      :math:`\phi = -\mathrm{mean}_{b+}\, \beta (1 - P)^\gamma \log P
      - \mathrm{mean}_{b-}\, (1 - \beta) P^\gamma \log(1 - P)`.
    - smoothness :math:`\varphi`, equation 3, see :func:`~monai_labelfx.losses.pairwise_smoothness_loss`, in the boxes.
    - affinity A: neighbours of like intensity share a label, see
      :func:`~monai_labelfx.losses.intensity_affinity_loss`, in the boxes. Without it, or the next, the best
      segmentation of a box is the filled box.
    - area V: the predicted share of a box stays within bounds; squared distance to them, mean over boxes.
    - masks M: binary cross-entropy plus soft Dice for the images that have a mask.

    Args:
        kind: smooth maximum, one of ``SMOOTH_MAX_KINDS``. Default ``"softmax"``, equation 6.
        alpha: its strength. A number, or a pair (share, value): the smallest alpha with which a bag with that share of
            object voxels is sure to get that value, see :func:`~monai_labelfx.ops.alpha_for_target`. The higher, the
            fewer object voxels a bag is content with; thin diagonals meet all bags, and long trainings find them. The
            bundle has (0.3, 0.9). Default 6 (table 2 has 4, 6 and 8).
        angles: of the lines, in degrees; physical where the target has ``spacing``. Default -40 to 40 in steps of 20
            (table 1, the best on PROMISE12).
        beta: weight of positive bags; negative ones have 1 - beta. ``None``: both have 1. Default 0.25 (paper).
        gamma: focusing exponent. 0 is plain cross-entropy. Default 2 (paper).
        normalization: ``"separate"``: positive and negative bags have a mean each, so that a box of one voxel, or a
            batch without a box, weighs as much as any other. ``"positive_bags"``: both sums are divided by the number
            of positive bags (equation 5), ``"all_bags"``: by the number of all bags (equation 2).
        negatives: ``"voxels"``, or ``"lines"``: the axis-parallel lines of the image that meet no box (MIL baseline).
        smoothness: weight of the smoothness. Default 10 (paper).
        affinity: weight of the affinity. Default 0, off.
        affinity_options: keywords of :func:`~monai_labelfx.losses.intensity_affinity_loss`.
        area: (lower, upper) bounds of the share of a box that its object fills. The upper one is raised by the factor
            ``1 + 0.5 / side`` for each side, because digital ellipses fill more of small boxes. Default ``None``, off.
        area_weight: weight of the area. Default 1.
        margin: how many voxels boxes may be loose by, one number or one per axis: lines closer than this to the sides
            they tell apart are no sure bags, and are left out. Default 0, tight.
        ring: voxels around a box that are no negatives, because resampling moves edges by as much. Default 1;
            0 in the paper.
        mask_weight: weight of the masks. Default 1.

    Raises:
        ValueError: for an option out of its range.

    Notes:
        The paper says N+ per image; its code and this count bags in the whole batch. Its released code trains the
        proposed method with a power mean of exponent 4 whatever smooth maximum is asked for: ``kind="power_mean",
        alpha=4`` with ``normalization="positive_bags", ring=0`` is what it runs.
        With ``"separate"`` the loss of a batch is the mean over its bags: of two batches in one, the mean weighted by
        their numbers of bags.

    Example:
        >>> import torch
        >>> logits = torch.full((1, 1, 8, 8), -6.0, requires_grad=True)
        >>> target = {"boxes": [torch.tensor([[2, 2, 6, 5]])], "labels": [torch.tensor([0])]}
        >>> loss = BoxTightnessLoss(alpha=4.0, smoothness=1.0)  # 10 is too much for so small an object
        >>> before = loss(logits, target)
        >>> filled = torch.full((1, 1, 8, 8), -6.0)
        >>> filled[..., 2:6, 2:5] = 6.0
        >>> bool(loss(filled, target) < before)
        True
    """

    def __init__(
        self,
        *,
        kind: str = "softmax",
        alpha: float | Sequence[float] = 6.0,
        angles: Sequence[float] = ANGLES,
        beta: float | None = 0.25,
        gamma: float = 2.0,
        normalization: str = "separate",
        negatives: str = "voxels",
        smoothness: float = 10.0,
        affinity: float = 0.0,
        affinity_options: Mapping[str, Any] | None = None,
        area: Sequence[float] | None = None,
        area_weight: float = 1.0,
        margin: float | Sequence[float] = 0.0,
        ring: int = 1,
        mask_weight: float = 1.0,
    ) -> None:
        super().__init__()
        check_choice("kind", kind, SMOOTH_MAX_KINDS)
        check_choice("normalization", normalization, NORMALIZATIONS)
        check_choice("negatives", negatives, NEGATIVES)
        if beta is not None and not 0 <= beta <= 1:
            raise ValueError(f"beta must be between 0 and 1, or None, got {beta}.")
        self.weights = {"smoothness": smoothness, "affinity": affinity, "area": area_weight, "masks": mask_weight}
        for name, value in {"gamma": gamma, **self.weights}.items():
            check_not_negative({"area": "area_weight", "masks": "mask_weight"}.get(name, name), value)
        self.bags: dict[str, Any] = {
            "kind": kind,
            "alpha": checked_alpha(alpha, kind),
            "angles": checked_angles(angles),
            "margin": checked_margin(margin),
            "beta": beta,
            "gamma": gamma,
            "normalization": normalization,
            "negatives": negatives,
        }
        self.affinity_options = checked_affinity_options(affinity_options)
        self.area = checked_area(area)
        self.ring = checked_ring(ring)

    def forward(self, input: torch.Tensor, target: Mapping[str, Any]) -> torch.Tensor:
        r"""The loss.

        Args:
            input: logits (B, C, \*spatial), a channel per class of objects.
            target: a mapping with some of these parts:

                - ``boxes``: a list of B tensors (N_i, 2 \* spatial_dims) in voxels, low corner then high corner, half
                  open (MONAI's standard mode), ``None`` for an image that nobody looked at; or (B, N, 2 \*
                  spatial_dims), padded with boxes of label -1.
                - ``labels``: the class channel of each box, a list of (N_i,) or (B, N).
                - ``bags``: frames of boxes that spatial transforms have moved, from ``BoxesToBags``, (B, N,
                  spatial_dims + 1, spatial_dims) or a list; replaces ``boxes``.
                - ``has_boxes``: (B,) bool. False: nobody looked at the image, so nothing is known of it. True with no
                  box: all of it is background. Default: true where there are boxes or bags.
                - ``masks``: (B, C, \*spatial), above 0 in the object, and ``has_masks`` (B,) bool, default all true.
                  A mask takes the place of the image's boxes.
                - ``image``: (B, K, \*spatial) normalised intensities, for the affinity.
                - ``spacing``: voxel size (D,) or (B, D).
                - ``tight_sides``: whether each side of a box is tight, like ``boxes``, low sides first.
                - ``ignore``: (B, 1 or C, \*spatial) bool, voxels of which nothing is known: never negatives.

        Returns:
            A scalar of float32, or float64 for such input. 0, with a gradient of 0, for a batch without annotation.

        Raises:
            TypeError: when ``target`` is no mapping, or ``input`` or a part no tensor of numbers.
            ValueError: for unusable boxes, class labels out of range, missing or misshapen parts.
        """
        terms = self.terms(input, target)
        total = terms["unary"] + sum(self.weights[name] * terms[name] for name in self.weights if name in terms)
        return total

    def terms(self, input: torch.Tensor, target: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """The terms of the loss before their weights, those that are switched on, for logging."""
        check_parts(target)
        logits = checked_logits(input)
        if logits.ndim not in (4, 5):
            raise ValueError(f"input must be (B, C, *spatial) with 2 or 3 spatial axes, got {tuple(logits.shape)}.")
        check_margin_axes(self.bags["margin"], logits.ndim - 2)
        shape = logits.shape
        masked = masked_images(target, logits)
        boxes = read_box_target(without_boxes(target, masked), shape[0], shape[1], shape[2:], device=logits.device)
        spacing = voxel_sizes(target, logits)

        inside = _union(boxes, shape, 0)
        near = _union(boxes, shape, self.ring) if self.ring else inside
        outside = boxes.looked.view(-1, *[1] * (logits.ndim - 1)) & ~near
        if target.get("ignore") is not None:
            outside &= ~ignored(target, logits)
        positives, negatives = unary_terms(logits, boxes, outside, spacing=spacing, **self.bags)
        terms = {"unary": positives + negatives}
        if self.weights["smoothness"]:
            terms["smoothness"] = pairwise_smoothness_loss(logits, inside, spacing=spacing)
        if self.weights["affinity"]:
            if target.get("image") is None:
                raise ValueError("the affinity needs the image in the target; without it set affinity=0.")
            image = tensor_part(target, "image", logits.device)
            terms["affinity"] = intensity_affinity_loss(logits, image, inside, spacing=spacing, **self.affinity_options)
        if self.area is not None and self.weights["area"]:
            terms["area"] = area_penalty(logits, boxes, *self.area)
        if masked.any():
            terms["masks"] = _mask_loss(logits[masked], tensor_part(target, "masks", logits.device)[masked])
        return terms

    def extra_repr(self) -> str:
        """The options, for printing."""
        weights = {"area": "area_weight", "masks": "mask_weight"}
        options = {
            **self.bags,
            **{weights.get(name, name): weight for name, weight in self.weights.items()},
            "affinity_options": self.affinity_options,
            "area": self.area,
            "ring": self.ring,
        }
        return ", ".join(f"{name}={value!r}" for name, value in options.items())


def box_tightness_loss(
    input: torch.Tensor,
    *,
    boxes: Any = None,
    labels: Any = None,
    bags: Any = None,
    has_boxes: Any = None,
    masks: torch.Tensor | None = None,
    has_masks: Any = None,
    image: torch.Tensor | None = None,
    spacing: Any = None,
    tight_sides: Any = None,
    ignore: torch.Tensor | None = None,
    **options: Any,
) -> torch.Tensor:
    r""":class:`BoxTightnessLoss` as a function: the parts of its target and its options as keywords.

    Args:
        input: logits (B, C, \*spatial).
        boxes, labels, bags, has_boxes, masks, has_masks, image, spacing, tight_sides, ignore: parts of the target, see
            :meth:`BoxTightnessLoss.forward`.
        options: those of :class:`BoxTightnessLoss`.

    Returns:
        A scalar.

    Raises:
        TypeError: for an option that the class does not have.
        ValueError: as the class.

    Example:
        >>> import torch
        >>> background = torch.full((1, 1, 8, 8, 8), -9.0)
        >>> box_tightness_loss(background, boxes=[torch.zeros(0, 6)], labels=[torch.zeros(0)]).item() < 1e-6
        True
    """
    parts = {
        "boxes": boxes,
        "labels": labels,
        "bags": bags,
        "has_boxes": has_boxes,
        "masks": masks,
        "has_masks": has_masks,
        "image": image,
        "spacing": spacing,
        "tight_sides": tight_sides,
        "ignore": ignore,
    }
    given = {name: value for name, value in parts.items() if value is not None}
    return BoxTightnessLoss(**options)(input, given)


def _union(boxes: BoxTarget, shape: torch.Size, ring: int) -> torch.Tensor:
    """True inside the boxes of each class, or nearer to one than ``ring`` voxels (B, C, *spatial)."""
    maps = boxes.image * shape[1] + boxes.label
    if boxes.frames is not None:
        return frames_to_mask(boxes.frames, maps, shape[0] * shape[1], shape[2:], grow=ring).view(shape)
    corners, ndim = cast(torch.Tensor, boxes.boxes), len(shape) - 2
    grown = corners + corners.new_tensor([-ring] * ndim + [ring] * ndim) if ring else corners
    index = box_voxels(grown, shape[2:], image_index=maps)
    mask = torch.zeros(shape.numel() + 1, dtype=torch.bool, device=maps.device)
    return mask.index_fill_(0, index.flatten() + 1, True)[1:].view(shape)  # padding, -1, falls in front


def _mask_loss(logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy plus soft Dice of each class, summed over classes."""
    truth = (masks > 0).to(logits.dtype)
    space = [0, *range(2, logits.ndim)]
    entropy = binary_cross_entropy_with_logits(logits, truth, reduction="none").mean(space)
    probability = logits.sigmoid()
    shared, all_of_it = (probability * truth).sum(space), probability.sum(space) + truth.sum(space)
    return (entropy + 1 - (2 * shared + _SMOOTH) / (all_of_it + _SMOOTH)).sum()
