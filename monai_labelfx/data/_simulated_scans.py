# SPDX-License-Identifier: Apache-2.0
"""Several simulated scans of one clean CT slice, at different doses, that share its line integrals."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from monai_labelfx.transforms._projection_noise import (
    check_scan_options,
    default_angles,
    line_integrals,
    projection_noise,
    reconstruct,
)

_AIR = -1000.0


class SimulatedScans:
    """Scans of slices (x, y) in HU that have no noise; see :py:class:`monai_labelfx.transforms.SimulateLowDose`.

    Args:
        affine: of the volume, for the side of a pixel in mm.
        photons: per ray and view at full dose.
        electronic_sigma: electronic noise in photons.
        angles: views; None: by the size of the slice.
        seed: of the noise; each slice number and place among the doses has its own stream.
    """

    def __init__(
        self,
        affine: np.ndarray,
        *,
        photons: float,
        electronic_sigma: float = 3.0,
        angles: int | None = None,
        seed: int = 0,
    ) -> None:
        self.spacing = float(np.linalg.norm(np.asarray(affine)[:3, 0]))
        self.photons, self.electronic_sigma = photons, electronic_sigma
        self.angles, self.seed = angles, seed

    def __call__(
        self, clean: np.ndarray, number: int, doses: Sequence[float], *, filter_name: str = "ramp"
    ) -> list[np.ndarray]:
        """The slice at each dose, float32.

        With the ramp, noise alone is added to the slice. With another filter the slice is replaced by a reconstruction
        of its noisy line integrals, so that its sharpness changes too. (The difference of two reconstructions of the
        slice would bring in the ripple of the sharper one.)
        """
        for dose in doses:
            check_scan_options(
                dose,
                photons=self.photons,
                electronic_sigma=self.electronic_sigma,
                angles=self.angles,
                filter_name=filter_name,
            )
        angles = self.angles or default_angles(max(clean.shape))
        integrals = line_integrals(clean, spacing=self.spacing, angles=angles)
        shape, scans = (clean.shape[0], clean.shape[1]), []
        for place, dose in enumerate(doses):
            errors = projection_noise(
                integrals,
                np.random.RandomState([self.seed, number, place]),
                photons=self.photons * dose,
                electronic_sigma=self.electronic_sigma,
            )
            own = integrals + errors if filter_name != "ramp" else errors
            image = reconstruct(own, shape, spacing=self.spacing, filter_name=filter_name)
            # where nothing was reconstructed, outside of the scan circle, the slice stays
            base = np.where(image != 0, _AIR, clean) if filter_name != "ramp" else clean
            scans.append((base + image).astype(np.float32))
        return scans
