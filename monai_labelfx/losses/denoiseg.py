# SPDX-License-Identifier: Apache-2.0
"""The joint loss of DenoiSeg: denoising at blind spots and three-class segmentation where there are labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from monai.data import MetaTensor

_CLASSES = 3  # background, foreground, border
_NORMALIZATIONS = ("labelled", "paper")
_UNLABELLED = -100  # cross_entropy's ignore_index


def denoiseg_loss_terms(
    input: torch.Tensor,
    image: torch.Tensor | None = None,
    blind_spots: torch.Tensor | None = None,
    label: torch.Tensor | None = None,
    has_label: torch.Tensor | Sequence[bool] | None = None,
    ignore: torch.Tensor | None = None,
    *,
    class_weights: Sequence[float] = (1.0, 1.0, 5.0),
    normalization: str = "labelled",
) -> tuple[torch.Tensor, torch.Tensor]:
    """The denoising and the segmentation term of :py:func:`denoiseg_loss`, unweighted, for logging.

    Arguments, errors and formulas are those of :py:func:`denoiseg_loss`. A term without targets (no ``image`` and
    ``blind_spots``, or no ``label`` and ``has_label``) is zero and does not touch its channels.

    Returns:
        Two scalars: the denoising term and the segmentation term.

    Example:
        >>> import torch
        >>> output, label = torch.zeros(2, 4, 8, 8), torch.zeros(2, 1, 8, 8, dtype=torch.long)
        >>> denoising, segmentation = denoiseg_loss_terms(output, label=label, has_label=[True, False])
        >>> float(denoising), round(float(segmentation), 4)
        (0.0, 1.0986)
    """
    _check_options(class_weights=class_weights, normalization=normalization)
    if input.ndim < 3 or input.shape[1] < _CLASSES:
        raise ValueError(f"input must be (B, C + {_CLASSES}, *spatial), got {tuple(input.shape)}.")
    input = _plain(input)
    input = input if input.dtype == torch.float64 else input.float()
    denoising = segmentation = input.new_zeros(())
    if image is not None or blind_spots is not None:
        denoising = _denoising(input[:, :-_CLASSES], _plain(image), _plain(blind_spots), normalization)
    if label is not None or has_label is not None:
        classes = input[:, -_CLASSES:]
        segmentation = _segmentation(
            classes, _plain(label), _plain(has_label), _plain(ignore), class_weights, normalization
        )
    return denoising, segmentation


def denoiseg_loss(
    input: torch.Tensor,
    image: torch.Tensor | None = None,
    blind_spots: torch.Tensor | None = None,
    label: torch.Tensor | None = None,
    has_label: torch.Tensor | Sequence[bool] | None = None,
    ignore: torch.Tensor | None = None,
    *,
    alpha: float = 0.5,
    class_weights: Sequence[float] = (1.0, 1.0, 5.0),
    normalization: str = "labelled",
) -> torch.Tensor:
    r"""Joint denoising and segmentation loss (Buchholz et al. 2020, equation 1).

    .. math::
        L = \alpha L_d + (1 - \alpha) L_s

    The denoising term is the mean squared error between the denoised channels and the unmasked image over the blind
    spots, pooled over the batch (Krull et al. 2019): with the blind spots :math:`M_c` of channel c,

    .. math::
        L_d = \frac{1}{C} \sum_c \frac{1}{|M_c|} \sum_{v \in M_c} (f_{cv} - x_{cv})^2

    The segmentation term is the weighted cross-entropy over the voxels V which are annotated: those of images whose
    ``has_label`` is true, less those that ``ignore`` marks,

    .. math::
        L_s = \frac{1}{N} \sum_{v \in V} w_{y_v} \left(-\log \mathrm{softmax}(z_v)_{y_v}\right)

    ``normalization`` sets N. ``"labelled"``: the number of voxels in V, so alpha means the same for any share of
    labels. ``"paper"``: the number of all voxels of the batch, annotated or not, as the paper's code; the effect of
    alpha then depends on the share of labels. The two agree when every voxel of the batch is annotated, because neither
    divides by the weights. ``"paper"`` also sums the denoising term over the channels instead of averaging.

    With no annotated voxel :math:`L_s`, and with no blind spot :math:`L_d`, is exactly 0 with zero gradient.
    alpha 0 and 1 are the pure losses: the other term is not computed, its targets may be missing and its channels get
    exactly zero gradient. Half-precision input is computed in float32, float64 in float64.

    Args:
        input: network output (B, C + 3, *spatial): C denoised channels, then the logits of background, foreground and
            border. C may be 0 when alpha is 0.
        image: the unmasked image (B, C, *spatial).
        blind_spots: true at blind spots, (B, C, *spatial), or (B, 1, *spatial) for the same in all channels.
        label: class indices 0 background, 1 foreground, 2 border, (B, 1, *spatial). At voxels that are not annotated
            any value may stand.
        has_label: per image, whether it is annotated: (B,). An annotated image without objects trains background.
        ignore: true at voxels without annotation, (B, 1, *spatial).
        alpha: weight of the denoising term, from 0 (segmentation only) to 1 (Noise2Void); the paper's default is 0.5.
        class_weights: weights of background, foreground and border; (1, 1, 5) in the paper's code.
        normalization: ``"labelled"`` or ``"paper"``.

    Returns:
        A scalar.

    Raises:
        ValueError: for arguments out of range, shapes that do not fit, a missing target that alpha needs, and for
            a class other than 0, 1 and 2 at an annotated voxel.

    Notes:
        Equation 1 averages the denoising term per image; the paper's code pools the batch, and so does this. The class
        weights and N are not in the paper either. In its code an all-background image counts as unlabelled;
        here ``has_label`` alone decides.

    Example:
        >>> import torch
        >>> output = torch.zeros(2, 4, 8, 8, requires_grad=True)
        >>> image = torch.ones(2, 1, 8, 8)
        >>> blind_spots = torch.rand(2, 1, 8, 8) < 0.1
        >>> label = torch.zeros(2, 1, 8, 8, dtype=torch.long)
        >>> loss = denoiseg_loss(output, image, blind_spots | (label == 0), label, [True, False], alpha=0.5)
        >>> round(float(loss), 4)  # (1 + log 3) / 2
        1.0493
    """
    _check_options(alpha)
    if alpha > 0 and (image is None or blind_spots is None):
        raise ValueError(f"With alpha={alpha} the loss needs image and blind_spots; only alpha=0 does without.")
    if alpha < 1 and (label is None or has_label is None):
        raise ValueError(f"With alpha={alpha} the loss needs label and has_label; only alpha=1 does without.")
    if alpha == 0:
        image = blind_spots = None
    if alpha == 1:
        label = has_label = ignore = None
    denoising, segmentation = denoiseg_loss_terms(
        input,
        image,
        blind_spots,
        label,
        has_label,
        ignore,
        class_weights=class_weights,
        normalization=normalization,
    )
    return alpha * denoising + (1 - alpha) * segmentation


class DenoiSegLoss(torch.nn.Module):
    """:py:func:`denoiseg_loss` as a module: ``loss(input, target)`` with a mapping of targets.

    Args:
        alpha: weight of the denoising term, from 0 to 1 (paper: 0.5).
        class_weights: weights of background, foreground and border (the paper's code: 1, 1, 5).
        normalization: ``"labelled"`` or ``"paper"``.

    Raises:
        ValueError: as :py:func:`denoiseg_loss`.
        TypeError: when the target is no mapping.

    Example:
        >>> import torch
        >>> target = {"label": torch.zeros(1, 1, 4, 4, 4, dtype=torch.long), "has_label": torch.tensor([True])}
        >>> round(float(DenoiSegLoss(alpha=0)(torch.zeros(1, 3, 4, 4, 4), target)), 4)
        1.0986
    """

    def __init__(
        self,
        alpha: float = 0.5,
        *,
        class_weights: Sequence[float] = (1.0, 1.0, 5.0),
        normalization: str = "labelled",
    ) -> None:
        super().__init__()
        _check_options(alpha, class_weights, normalization)
        self.alpha = float(alpha)
        self.options: dict[str, Any] = {"class_weights": tuple(class_weights), "normalization": normalization}

    def forward(self, input: torch.Tensor, target: Mapping[str, Any]) -> torch.Tensor:
        """The loss of a network output (B, C + 3, *spatial).

        Args:
            input: network output.
            target: a mapping with ``image``, ``blind_spots``, ``label``, ``has_label`` and optionally ``ignore``;
                alpha 0 needs only the last three, alpha 1 only the first two.
        """
        return denoiseg_loss(input, **_parts(target), alpha=self.alpha, **self.options)

    def terms(self, input: torch.Tensor, target: Mapping[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """The unweighted denoising and segmentation terms, for logging; zero for a term without targets."""
        return denoiseg_loss_terms(input, **_parts(target), **self.options)

    def extra_repr(self) -> str:
        """The arguments, for printing."""
        return ", ".join(f"{name}={value!r}" for name, value in {"alpha": self.alpha, **self.options}.items())


def _check_options(
    alpha: float = 0.5, class_weights: Sequence[float] = (1, 1, 1), normalization: str = "labelled"
) -> None:
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be from 0 to 1, got {alpha}.")
    if len(class_weights) != _CLASSES or not all(0 <= w < float("inf") for w in class_weights):
        raise ValueError(f"class_weights must be {_CLASSES} finite numbers of 0 or more, got {class_weights!r}.")
    if normalization not in _NORMALIZATIONS:
        raise ValueError(f"normalization must be one of {_NORMALIZATIONS}, got {normalization!r}.")


def _denoising(denoised: torch.Tensor, image: Any, blind_spots: Any, normalization: str) -> torch.Tensor:
    """Squared error at blind spots: per channel the mean over the batch, then mean or sum over the channels."""
    if image is None or blind_spots is None:
        raise ValueError("The denoising term needs both image and blind_spots.")
    if denoised.shape[1] == 0:
        raise ValueError(f"The denoising term needs more than {_CLASSES} output channels; without any, set alpha=0.")
    same = (denoised.shape[0], 1, *denoised.shape[2:])
    if image.shape != denoised.shape or blind_spots.shape not in (denoised.shape, same):
        raise ValueError(
            f"image and blind_spots must have the shape of the denoised channels, {tuple(denoised.shape)}, "
            f"got {tuple(image.shape)} and {tuple(blind_spots.shape)}."
        )
    blind_spots = blind_spots.bool().expand_as(denoised)
    batch_and_space = [0, *range(2, denoised.ndim)]
    # where, not a product: a NaN in the image outside the blind spots must not reach the sum
    errors = torch.where(blind_spots, denoised - image.to(denoised.dtype), 0).square().sum(batch_and_space)
    means = errors / blind_spots.sum(batch_and_space).clamp(min=1)
    return means.sum() if normalization == "paper" else means.mean()


def _segmentation(
    logits: torch.Tensor,
    label: Any,
    has_label: Any,
    ignore: Any,
    class_weights: Sequence[float],
    normalization: str,
) -> torch.Tensor:
    """Weighted cross-entropy over the annotated voxels, divided by their number or by that of all voxels."""
    if label is None or has_label is None:
        raise ValueError("The segmentation term needs both label and has_label.")
    batch, space = logits.shape[0], logits.shape[2:]
    has_label = torch.as_tensor(has_label, device=logits.device).bool()
    shape = (batch, 1, *space)
    if label.shape != shape or has_label.numel() != batch:
        raise ValueError(
            f"label must be {tuple(shape)} and has_label ({batch},) for an output of {batch} images, "
            f"got {tuple(label.shape)} and {tuple(has_label.shape)}."
        )
    annotated = has_label.reshape(batch, *(1 for _ in space)).expand(batch, *space)
    if ignore is not None:
        if ignore.shape != shape:
            raise ValueError(f"ignore must be {tuple(shape)}, as the label, got {tuple(ignore.shape)}.")
        annotated = annotated & ~ignore.bool().squeeze(1)
    classes = torch.where(annotated, label.squeeze(1), 0).long()
    lowest, highest = classes.aminmax()
    if lowest < 0 or highest >= _CLASSES:
        raise ValueError(
            f"label holds classes from {int(lowest)} to {int(highest)} at annotated voxels, expected 0 background, "
            "1 foreground, 2 border; InstancesToBorderClasses makes them from instances."
        )
    weights = torch.tensor(tuple(class_weights), dtype=logits.dtype, device=logits.device)
    classes = classes.masked_fill(~annotated, _UNLABELLED)
    # summed apart: the fused sum adds voxel by voxel in float32 and loses digits on large volumes
    total = F.cross_entropy(logits, classes, weight=weights, ignore_index=_UNLABELLED, reduction="none").sum()
    return total / (classes.numel() if normalization == "paper" else annotated.sum().clamp(min=1))


def _plain(value: Any) -> Any:
    """A MetaTensor as a plain tensor, which is several times faster to compute with."""
    return value.as_tensor() if isinstance(value, MetaTensor) else value


def _parts(target: Any) -> dict[str, Any]:
    """The keywords of denoiseg_loss in a mapping of targets."""
    if not isinstance(target, Mapping):
        raise TypeError(
            "DenoiSegLoss takes a mapping with image, blind_spots, label, has_label and optionally ignore as target, "
            f"got {type(target).__name__}."
        )
    return {name: target.get(name) for name in ("image", "blind_spots", "label", "has_label", "ignore")}
