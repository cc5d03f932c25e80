# SPDX-License-Identifier: Apache-2.0
"""The noise that a CT slice would have at a lower dose: drawn for its line integrals, reconstructed and added."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import torch
from monai.config import NdarrayOrTensor
from monai.data import MetaTensor, get_track_meta
from monai.transforms import Transform
from monai.utils import TransformBackends, convert_to_tensor

from monai_labelfx.transforms._keyed import Keyed
from monai_labelfx.transforms._projection_noise import (
    WATER,
    check_scan_options,
    default_angles,
    line_integrals,
    projection_noise,
    reconstruct,
)

__all__ = ["SimulateLowDose", "SimulateLowDosed"]

_SOURCES = ("full_dose", "clean")
_SQUARE = 0.01  # by how much the two sides of a pixel may differ


class SimulateLowDose(Transform):
    r"""Add the noise of a lower dose to CT slices in HU, one fixed realisation per image; sharpness and HU stay.

    Line integrals :math:`p = \int \mu\,dl` with :math:`\mu = \mu_w (HU / 1000 + 1)` are taken along parallel rays. A
    scan of dose :math:`a` counts :math:`N \sim Poisson(a I_0 e^{-p})` photons, plus electronic noise of standard
    deviation :math:`\sigma_e`. The error of :math:`-\log(N / a I_0)` goes through filtered back-projection, **alone**,
    and is added to the slice. So :math:`var(p) = e^p / (a I_0) + \sigma_e^2 e^{2p} / (a I_0)^2`, and a quarter of the
    dose doubles the standard deviation (a little more, where electronic noise counts).

    ==============  =================================================================================================
    ``source``      what is added
    ==============  =================================================================================================
    "full_dose"     The image is a scan of dose 1 with noise of its own, and only what lacks is added:
                    :math:`\frac{1 - a}{a} \frac{e^p}{I_0} \left(1 + \frac{1 + a}{a} \frac{\sigma_e^2 e^p}{I_0}\right)`
                    (Yu et al., J Comput Assist Tomogr 2012), which is the noise of an independent scan of dose
                    :math:`a / (1 - a)` with :math:`\sigma_e \sqrt{(1 + a) / (1 - a)}`. Nothing for :math:`a = 1`.
    "clean"         The image has no noise; all the noise of dose :math:`a` is added. :math:`a = 1` is the full dose.
    ==============  =================================================================================================

    The realisation is seeded by ``seed``, a checksum of the image and the other arguments. So the same image has the
    same noise whenever, wherever and in whichever worker it is loaded, and two images, or two doses of one image, have
    independent noise. The transform is not random in MONAI's sense: CacheDataset and PersistentDataset cache it.
    For several realisations of one image change ``seed``.

    Input (C, x, y[, z]) in HU with slices along the last axis, each on its own; output the same shape, float32 for
    integer dtypes, meta and device kept, values neither rounded nor clipped. Scan outside of the circle that is
    inscribed in the square around the slice counts as air and gets no noise, as outside of a scanner's field of view.
    Padding inside of it would get noise: replace it by air before, and restore it after.

    Args:
        dose_fraction: :math:`a` in (0, 1], share of the full dose.
        photons: :math:`I_0`, photons of one ray of one view at full dose before the patient. The standard deviation
            goes with 1 / sqrt(photons \* angles): choose it so that the noise of the full dose is that of the scan.
        electronic_sigma: :math:`\sigma_e` in photons; the default is the variance of about 10 that is common.
        source: "full_dose" or "clean".
        spacing: side of a pixel in mm; None: from the affine, which needs a MetaTensor.
        angles: views over 180 degrees; None: 720 for a slice of 512 pixels, in proportion for others.
        filter_name: scikit-image's filter of the reconstruction: "ramp", "shepp-logan", "cosine", "hamming" or "hann";
            it shapes the spectrum of the noise, not the slice.
        log_bias: keep the mean of the errors. The logarithm of few counts is too small on average, so that real scans
            of very low dose show shifted HU (streaks through shoulders and hips). By default this mean, which is known
            exactly, is taken off, so that added noise has mean 0 everywhere.
        water: :math:`\mu_w` in 1/mm.
        seed: another number gives another realisation for every image.

    Raises:
        ValueError: an argument out of range, an image without two in-plane axes, pixels that are not square or not
            known, or values that are not finite.

    Notes:
        Parallel beam, one energy, no scatter, no beam hardening, no correlation between detector elements or slices.
        Truncated objects have shorter paths than in truth, and so less noise. 512 x 512 with 720 views takes about
        2.5 s per slice on one core: simulate once and write, or cache.

    Example:
        >>> scan = torch.full((1, 64, 64), -1000.0)
        >>> scan[:, 16:48, 16:48] = 0  # 64 mm of water
        >>> simulate = SimulateLowDose(0.25, photons=1e5, spacing=2.0)
        >>> noise = simulate(scan) - scan
        >>> bool((simulate(scan) - scan == noise).all()), bool(noise[:, 16:48, 16:48].mean().abs() < 1)
        (True, True)
    """

    backend = [TransformBackends.NUMPY]

    def __init__(
        self,
        dose_fraction: float = 0.25,
        *,
        photons: float = 1e6,
        electronic_sigma: float = 3.0,
        source: str = "full_dose",
        spacing: float | None = None,
        angles: int | None = None,
        filter_name: str = "ramp",
        log_bias: bool = False,
        water: float = WATER,
        seed: int = 0,
    ) -> None:
        check_scan_options(
            dose_fraction,
            photons=photons,
            electronic_sigma=electronic_sigma,
            angles=angles,
            filter_name=filter_name,
        )
        if source not in _SOURCES:
            raise ValueError(f"source must be one of {', '.join(_SOURCES)}, got {source!r}")
        for name, value in (("spacing", spacing), ("water", water)):
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be a finite number above 0, got {value}")
        if seed < 0:
            raise ValueError(f"seed must be at least 0, got {seed}")
        self.dose_fraction, self.photons, self.electronic_sigma = dose_fraction, photons, electronic_sigma
        self.source, self.spacing, self.angles, self.filter_name = source, spacing, angles, filter_name
        self.log_bias, self.water, self.seed = log_bias, water, seed

    def __call__(self, img: NdarrayOrTensor) -> torch.Tensor:
        # a side of 0.7 mm is not quite 0.7 in every file, which must not draw another noise
        spacing = float(f"{self._spacing(img):.5g}")
        image: torch.Tensor = convert_to_tensor(img, track_meta=get_track_meta())
        if not image.is_floating_point():
            image = image.to(torch.float32)
        values = image.detach().cpu().as_subclass(torch.Tensor).to(torch.float64).numpy()
        slices = np.moveaxis(values, (1, 2), (-2, -1))  # in-plane axes last
        flat = np.ascontiguousarray(slices).reshape(-1, *slices.shape[-2:])
        if not np.isfinite(flat).all():
            raise ValueError("expected an image of finite HU, got values that are not")
        noise = self._noise(flat, spacing).reshape(slices.shape)
        added = np.ascontiguousarray(np.moveaxis(noise, (-2, -1), (1, 2)))
        return image + torch.as_tensor(added, dtype=image.dtype, device=image.device)

    def _noise(self, slices: np.ndarray, spacing: float) -> np.ndarray:
        """Noise in HU of slices (number, x, y)."""
        dose, electronic = self.dose_fraction, self.electronic_sigma
        if self.source == "full_dose":
            if dose == 1:
                return np.zeros_like(slices)
            dose, electronic = dose / (1 - dose), electronic * ((1 + dose) / (1 - dose)) ** 0.5
        shape = slices.shape[1], slices.shape[2]
        angles = self.angles or default_angles(max(shape))
        facts = (slices.shape, spacing, angles, *(getattr(self, name) for name in _FACTS))
        digest = hashlib.sha256(slices.astype("<f4").tobytes() + repr(facts).encode()).digest()
        generator = np.random.RandomState(np.frombuffer(digest, dtype="<u4"))
        noise = np.empty_like(slices)
        for number, one in enumerate(slices):
            integrals = line_integrals(one, spacing=spacing, angles=angles, water=self.water)
            errors = projection_noise(
                integrals,
                generator,
                photons=self.photons * dose,
                electronic_sigma=electronic,
                log_bias=self.log_bias,
            )
            noise[number] = reconstruct(errors, shape, spacing=spacing, filter_name=self.filter_name, water=self.water)
        return noise

    def _spacing(self, img: NdarrayOrTensor) -> float:
        if len(img.shape) not in (3, 4):
            raise ValueError(f"expected an image (C, x, y) or (C, x, y, z) in HU, got the shape {tuple(img.shape)}")
        if self.spacing is not None:
            return float(self.spacing)
        if not isinstance(img, MetaTensor):
            raise ValueError(
                f"expected a MetaTensor, whose affine gives the size of a pixel, got {type(img).__name__}: pass spacing"
            )
        first, second = (float(side) for side in img.pixdim[:2])
        if not (first > 0 and abs(first - second) <= _SQUARE * first):
            raise ValueError(f"expected square pixels for the rotation of the scan, got {first:g} x {second:g} mm")
        return first


_FACTS = ("dose_fraction", "photons", "electronic_sigma", "source", "filter_name", "log_bias", "water", "seed")


class SimulateLowDosed(Keyed):
    array = SimulateLowDose
