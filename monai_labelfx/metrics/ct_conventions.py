# SPDX-License-Identifier: Apache-2.0
"""PSNR and SSIM of CT images in HU under the named conventions of the literature."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import torch

from monai_labelfx.metrics._structural_similarity import SSIM_WINDOWS, structural_similarity
from monai_labelfx.metrics.per_image import PerImageMetric

KINDS = ("PSNR", "SSIM")
_CHUNK = 2**22  # voxels that are scored at once


class CTConvention(NamedTuple):
    """How a paper or its code makes the numbers that it compares: ``value = (clip(HU, *window) + offset) / scale``.

    Example:
        >>> CONVENTIONS["red_cnn"].window, CONVENTIONS["red_cnn"].data_range
        ((-160.0, 240.0), 400.0)
    """

    offset: float
    """In HU."""
    scale: float
    """HU per unit of the values."""
    window: tuple[float, float]
    """HU that both images are clipped to, infinite where they are not."""
    data_range: float | Literal["maximum"]
    """Range of PSNR and SSIM in these units; ``"maximum"`` is that of the reference's values, slice by slice."""
    ssim: Literal["uniform_7", "gaussian_11"]
    """Window of SSIM: scikit-image's default (7 x 7 box, variances of a sample, border left out), or an 11 x 11
    Gaussian of sigma 1.5 with zeros beyond the border."""
    source: str
    """Where it comes from."""


_ANY = (-math.inf, math.inf)
_LDCT = "Eulig et al., Med Phys 2024, ldct-benchmark 0.0.16"

CONVENTIONS: Mapping[str, CTConvention] = MappingProxyType(
    {
        "dml_ct": CTConvention(
            1000.0, 2000.0, _ANY, "maximum", "uniform_7", "Jung et al., MICCAI 2022; code DML_CT, main.py"
        ),
        "kwon_ye": CTConvention(
            0.0, 4000.0, (-1000.0, math.inf), "maximum", "uniform_7",
            "Kwon and Ye, IEEE TCI 2021; code TCI_CyclefreeCycleGAN, inference.py",
        ),
        "red_cnn": CTConvention(
            0.0, 1.0, (-160.0, 240.0), 400.0, "gaussian_11",
            "Chen et al., IEEE TMI 2017; code SSinyu/RED-CNN, solver.py and measure.py",
        ),
        "ldct_benchmark_chest": CTConvention(
            1350.0, 1499.0, (-1350.0, 149.0), 1.0, "uniform_7", f"{_LDCT}, test: centre -600, width 1500"
        ),
        "ldct_benchmark_abdomen": CTConvention(
            150.0, 399.0, (-150.0, 249.0), 1.0, "uniform_7", f"{_LDCT}, test: centre 50, width 400"
        ),
        "ldct_benchmark_neuro": CTConvention(
            0.0, 79.0, (0.0, 79.0), 1.0, "uniform_7", f"{_LDCT}, test: centre 40, width 80"
        ),
        "ldct_benchmark_training": CTConvention(
            1024.0, 1.0, (-1024.0, 1900.0), 2924.0, "uniform_7", f"{_LDCT}, training"
        ),
        "range_4096": CTConvention(0.0, 1.0, _ANY, 4096.0, "uniform_7", "the range of 12 bits, no window"),
    }
)  # fmt: skip
"""Name -> :py:class:`CTConvention`. One pair of images scores 16 to 45 dB between them: compare within one only."""


def ct_psnr(prediction: Any, reference: Any, *, convention: str, slicewise: bool = True) -> torch.Tensor:
    """Peak signal-to-noise ratio under a named convention: ``20 log10(range) - 10 log10(mean squared error)``, in dB.

    Args:
        prediction: (C, \\*spatial) in HU.
        reference: likewise, of the same shape.
        convention: a name in :py:data:`CONVENTIONS`.
        slicewise: score a volume slice by slice (all but the last spatial axis) and average the slices, as all papers
            behind the names do. False scores it as a whole. An image of two axes is one slice.

    Returns:
        A float64 number. A slice whose range is not positive (for instance no voxel above 0 HU under
        ``"kwon_ye"``) has no score and is left out; so is one without any error (infinity) as long as another has
        one. NaN when no slice has a score.

    Raises:
        ValueError: when ``convention`` is unknown, the images do not fit together, or hold NaN or infinity.

    Notes:
        The codes do not clip what their network returns to a window that they clip its input to (``"kwon_ye"``); here
        both images are clipped. The ``1e-8`` that ldct-benchmark adds to the squared error in training is left out.

    Example:
        >>> reference = torch.full((1, 8, 8), 40.0)
        >>> round(float(ct_psnr(reference + 5, reference, convention="range_4096")), 2)
        58.27
        >>> round(float(ct_psnr(reference + 5, reference, convention="ldct_benchmark_neuro")), 2)
        23.97
    """
    return mean_of_scores(_scores("PSNR", prediction, reference, convention, slicewise))


def ct_ssim(prediction: Any, reference: Any, *, convention: str, slicewise: bool = True) -> torch.Tensor:
    """Mean structural similarity under a named convention.

    With the window ``"uniform_7"`` it equals ``skimage.metrics.structural_similarity`` with its defaults and the
    convention's range to 1e-6; MONAI's ``SSIMMetric`` differs from both windows.

    Args:
        prediction: (C, \\*spatial) in HU.
        reference: likewise, of the same shape.
        convention: a name in :py:data:`CONVENTIONS`.
        slicewise: see :py:func:`ct_psnr`. False takes windows of all axes, 7 x 7 x 7 voxels in a volume.

    Returns:
        A float64 number, 1 for equal images. Slices whose range is not positive are left out; NaN when no other is
        there.

    Raises:
        ValueError: as in :py:func:`ct_psnr`, and when an axis is shorter than the window of ``"uniform_7"``.

    Example:
        >>> image = 100 * torch.rand(1, 16, 16, generator=torch.Generator().manual_seed(0))
        >>> round(float(ct_ssim(image + 20, image, convention="red_cnn")), 3)
        0.926
        >>> float(ct_ssim(image, image, convention="dml_ct"))
        1.0
    """
    return mean_of_scores(_scores("SSIM", prediction, reference, convention, slicewise))


class CTConventionMetric(PerImageMetric):
    """:py:func:`ct_psnr` or :py:func:`ct_ssim` of images, by the name of the convention.

    ``metric(y_pred, y)`` takes predictions and references in HU, batches (B, C, \\*spatial) or lists of
    (C, \\*spatial), and returns their scores (B, 1), NaN where an image has none; ``get_buffer()`` gives the same for
    all images. ``aggregate()`` averages the scores that are finite; it is infinite when all images are without error,
    and NaN when none has a score.

    Args:
        convention: a name in :py:data:`CONVENTIONS`.
        kind: ``"PSNR"`` (default) or ``"SSIM"``.
        slicewise: see :py:func:`ct_psnr`.

    Attributes:
        name: what its result is to be called wherever it is written, for instance ``"PSNR_dml_ct"``;
            ``"PSNR_dml_ct_volume"`` if not slicewise.

    Raises:
        ValueError: when ``convention`` or ``kind`` is unknown; in the call as the functions do; in ``aggregate()``,
            when no image was added.

    Example:
        >>> metric = CTConventionMetric("range_4096")
        >>> reference = torch.zeros(2, 1, 8, 8)
        >>> metric.name, metric(reference + 4.096, reference).round(decimals=3).tolist()
        ('PSNR_range_4096', [[60.0], [60.0]])
    """

    def __init__(self, convention: str, kind: Literal["PSNR", "SSIM"] = "PSNR", *, slicewise: bool = True) -> None:
        if kind not in KINDS:
            raise ValueError(f"kind must be one of {KINDS}, got {kind!r}.")
        _convention(convention)
        self.convention = convention
        self.kind = kind
        self.slicewise = slicewise
        self.name = f"{kind}_{convention}" + ("" if slicewise else "_volume")
        super().__init__(columns=2)

    def aggregate(self, reduction: str = "mean") -> torch.Tensor:
        """The mean over images whose score is finite, see the class.

        Args:
            reduction: ``"mean"`` for one number, ``"mean_batch"`` for the same as (1,).

        Raises:
            ValueError: when no image was added, or ``reduction`` is unknown.
        """
        super().aggregate(reduction)  # checks
        score = mean_of_scores(self.get_buffer().flatten())
        return score[None] if reduction == "mean_batch" else score

    def _measure(self, prediction: torch.Tensor, reference: torch.Tensor) -> Sequence[float]:
        score = float(mean_of_scores(_scores(self.kind, prediction, reference, self.convention, self.slicewise)))
        return [0.0, 0.0] if math.isnan(score) else [score, 1.0]

    def _score(self, rows: torch.Tensor) -> torch.Tensor:
        return torch.where(rows[:, 1:] > 0, rows[:, :1], torch.nan)


def mean_of_scores(scores: torch.Tensor) -> torch.Tensor:
    """Mean of the finite ones of (N,); without any, infinity if there is one, else NaN."""
    finite = scores[scores.isfinite()]
    if len(finite):
        return finite.mean()
    return scores.new_tensor(math.inf if scores.isinf().any() else math.nan)


def _convention(name: str) -> CTConvention:
    if name not in CONVENTIONS:
        raise ValueError(f"convention must be one of {', '.join(CONVENTIONS)}, got {name!r}.")
    return CONVENTIONS[name]


def _scores(kind: str, prediction: Any, reference: Any, name: str, slicewise: bool) -> torch.Tensor:
    """Scores (S,) of all slices of all channels; NaN where the range is not positive."""
    convention = _convention(name)
    pair = [torch.as_tensor(image).detach().as_subclass(torch.Tensor) for image in (prediction, reference)]
    if pair[0].shape != pair[1].shape or pair[0].ndim < 3 or not pair[0].numel():
        raise ValueError(
            "prediction and reference must have one shape (C, *spatial) with two or more spatial axes, "
            f"got {tuple(pair[0].shape)} and {tuple(pair[1].shape)}."
        )
    pair[1] = pair[1].to(pair[0].device)
    if slicewise and pair[0].ndim > 3:
        pair = [image.movedim(-1, 1).flatten(end_dim=1) for image in pair]
    step = max(1, _CHUNK // pair[0][0].numel())
    parts = [_score_of(kind, a, b, convention) for a, b in zip(*(i.split(step) for i in pair), strict=True)]
    return torch.cat(parts)


def _score_of(kind: str, prediction: torch.Tensor, reference: torch.Tensor, convention: CTConvention) -> torch.Tensor:
    """Scores (N,) of images (N, \\*spatial)."""
    wide = torch.float32 if prediction.device.type == "mps" else torch.float64
    values = []
    for image in (prediction, reference):
        image = image.to(wide)
        if not image.isfinite().all():
            raise ValueError("prediction and reference must hold finite HU, got NaN or infinity.")
        values.append((image.clamp(*convention.window) + convention.offset) / convention.scale)
    prediction, reference = values
    if convention.data_range == "maximum":
        extent = reference.flatten(start_dim=1).amax(dim=1)
    else:
        extent = reference.new_full((len(reference),), convention.data_range)
    if kind == "SSIM":
        score = structural_similarity(prediction, reference, extent, SSIM_WINDOWS[convention.ssim])
    else:
        error = (prediction - reference).square().flatten(start_dim=1).mean(dim=1)
        score = 10 * (extent.square() / error).log10()
    return torch.where(extent > 0, score, torch.nan).double()
