# SPDX-License-Identifier: Apache-2.0
"""Small data sets of volumes with an organ, for segmentation that is learnt from labels of blocks.

Each builder writes volumes, masks and a datalist below a folder and returns the path of the datalist. The masks are
always there: block labels are derived from them, and the price of weak labels is measured by them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from monai_labelfx.data._gland_pictures import smooth
from monai_labelfx.data.box_samples import mr_volumes
from monai_labelfx.data.datalist import load_datalist, save_datalist
from monai_labelfx.data.prepare._volumes import save_volume

__all__ = ["organ_blocks", "synthetic_organs"]

_SPLITS = ("training", "validation", "test")
_SIZE = {2: (96, 96), 3: (64, 64, 32)}
_SPACING = {2: (2.0, 2.0), 3: (2.0, 2.0, 4.0)}  # mm
_AIR, _FAT, _MUSCLE, _BONE = -1000.0, -95.0, 45.0, 420.0  # HU
_TISSUE = ((110.0, 26.0, 3.5), (165.0, 7.0, 8.0))  # of the organs: mean, deviation and grain (mm) of the texture
_MOST = len(_TISSUE)


def organ_blocks(
    destination: str | Path,
    source: str | Path | None = None,
    *,
    collection: str = "hippocampus",
    counts: Sequence[int] | None = None,
    seed: int = 0,
    test_seed: int = 0,
) -> Path:
    """Real MR volumes with an organ that lies in some blocks and not in others, from the folder of samples.

    These are the volumes of :py:func:`~monai_labelfx.data.mr_volumes` with masks of 0 and 1: crops around one
    hippocampus (28 volumes of 1 mm), or tumours of arms and legs (6 volumes of 0.98 x 0.98 x 3.27 mm). Shares of
    blocks that have more than 5 % of the organ, and less than 0.5 %, at a stride of half a block:

    ===========  =====  =======  ======
    collection   block  present  absent
    ===========  =====  =======  ======
    hippocampus  8 mm   22 %     68 %
    hippocampus  12 mm  35 %     47 %
    hippocampus  16 mm  51 %     24 %
    sarcoma_mr   16 mm  19 %     76 %
    sarcoma_mr   32 mm  41 %     44 %
    ===========  =====  =======  ======

    No block of the hippocampus is without background, so only the label of the organ tells anything.

    Args:
        destination: folder to write into.
        source: the folder with the collections; by default ``volume3d`` in the folder that the environment variable
            ``LABELFX_DATA`` names.
        collection: ``"hippocampus"`` or ``"sarcoma_mr"``.
        counts: training, validation and test volumes; by default 16, 4, 8 and 3, 1, 2.
        seed: draws the training and validation volumes.
        test_seed: draws the test volumes, so that they do not change with ``seed``.

    Returns:
        Path of ``datalist.json``: ``image``, ``label`` (0 and 1) and ``patient``, the name of the volume.

    Raises:
        FileNotFoundError: if the folder of samples is missing.
        ValueError: if an argument is out of range or the collection has too few volumes.

    Notes:
        Licences: CC BY-SA 4.0 (hippocampus: Medical Segmentation Decathlon, Antonelli et al. 2022, which does not say
        which volumes are two sides of one person) and CC BY 3.0 (sarcoma_mr: Vallieres et al. 2015, one volume per
        patient).
    """
    path = mr_volumes(destination, collection=collection, source=source, counts=counts, seed=seed, test_seed=test_seed)
    splits = {
        split: [{"image": item["image"], "label": item["label"], "patient": item["subject"]} for item in items]
        for split, items in load_datalist(path).items()
    }
    licence = {"hippocampus": "CC BY-SA 4.0", "sarcoma_mr": "CC BY 3.0"}[collection]
    return save_datalist(path, splits, notes={"name": collection, "licence": licence, "seed": seed})


def synthetic_organs(
    destination: str | Path,
    *,
    counts: Sequence[int] = (8, 2, 4),
    size: Sequence[int] | None = None,
    spacing: Sequence[float] | None = None,
    spatial_dims: int = 3,
    organs: int = 1,
    seed: int = 0,
    test_seed: int = 0,
) -> Path:
    r"""Synthetic CT of a body with one or two organs, from nothing and without a licence to mind.

    In air lies a body with a rim of fat, muscle and a spine. Organ 1 has 110 HU and a coarse grain; around it lie
    loops that are as bright but even, some with gas, so that brightness does not tell them apart. Organ 2, on the other
    side, is brighter and almost even. White noise has 12 HU, and each patient another contrast.

    Args:
        destination: folder to write into.
        counts: training, validation and test volumes, one per patient.
        size: voxels of each axis, at least 16; None: 64 x 64 x 32, in 2-D 96 x 96. Everything is in proportion.
        spacing: voxel size in mm; None: 2 x 2 x 4, in 2-D 2 x 2.
        spatial_dims: 3, or 2 for slices.
        organs: 1 or 2.
        seed: draws the training and validation volumes.
        test_seed: draws the test volumes, so that they do not change with ``seed``.

    Returns:
        Path of ``datalist.json``: NIfTI ``image`` (int16, HU), ``label`` (0, the number of the organ) and ``patient``.
        Volume n of a split is the same whatever ``counts``.

    Raises:
        ValueError: an argument out of range.

    Example:
        >>> import tempfile
        >>> from monai_labelfx.data import check_datalist
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     report = check_datalist(synthetic_organs(folder, counts=(1, 0, 0), organs=2))
        >>> [(row["shape"], row["spacing"], row["labels"]) for row in report["rows"]]
        [([64, 64, 32], [2.0, 2.0, 4.0], 2)]
    """
    if spatial_dims not in _SIZE or not 1 <= organs <= _MOST:
        raise ValueError(f"expected spatial_dims 2 or 3 and 1 to {_MOST} organs, got {spatial_dims} and {organs}")
    shape = _SIZE[spatial_dims] if size is None else tuple(size)
    step = _SPACING[spatial_dims] if spacing is None else tuple(spacing)
    if {len(shape), len(step)} != {spatial_dims} or min(shape) < 16 or not min(step) > 0:
        raise ValueError(
            f"expected {spatial_dims} sizes of at least 16 and {spatial_dims} spacings above 0, got {shape} and {step}"
        )
    if len(counts) != 3 or min(counts) < 0:
        raise ValueError(f"counts must be three numbers of volumes of at least 0, got {tuple(counts)}")
    folder = Path(destination).absolute()
    affine = np.diag([*step, *[1.0] * (4 - spatial_dims)])
    splits: dict[str, list[dict[str, Any]]] = {}
    for number, (split, count) in enumerate(zip(_SPLITS, counts, strict=True)):
        for index in range(count):
            generator = np.random.default_rng([test_seed if split == "test" else seed, number, index])
            image, label = organ_volume(generator, shape, step, organs)
            name = f"{split}_{index:03d}"
            item = {key: str(folder / key / f"{name}.nii.gz") for key in ("image", "label")}
            save_volume(Path(item["image"]), image, affine)
            save_volume(Path(item["label"]), label, affine)
            splits.setdefault(split, []).append(item | {"patient": name})
    notes = {"name": "synthetic organs", "seed": seed, "test_seed": test_seed}
    return save_datalist(folder / "datalist.json", splits, notes=notes)


def organ_volume(
    generator: np.random.Generator, shape: Sequence[int], spacing: Sequence[float], organs: int
) -> tuple[np.ndarray, np.ndarray]:
    """Image (int16, HU) and label (uint8) of one patient."""
    shape, step = tuple(shape), np.asarray(spacing, dtype=float)
    extent = np.array(shape) * step / 2
    axes = [(np.arange(n) + 0.5) * s - e for n, s, e in zip(shape, step, extent, strict=True)]
    place = np.stack(np.meshgrid(*axes, indexing="ij"), -1) / extent  # -1 to 1 along each axis
    unit = float(extent[:2].mean())  # mm; what "in proportion" refers to

    def noise(width: float) -> np.ndarray:
        """Smooth noise as coarse as a share of the body, along all axes in mm."""
        return smooth(generator, shape, width * unit / step)

    wave = noise(0.15)
    body = 1 - np.linalg.norm(place[..., :2] / generator.uniform(0.82, 0.95, 2), axis=-1) + 0.03 * wave
    image = np.where(body > 0, _FAT + 8 * noise(0.03), _AIR)
    within = body > generator.uniform(0.08, 0.16)
    image[within] = (_MUSCLE + 14 * noise(0.08) + 5 * noise(0.02))[within]
    lobes = (noise(0.1) + noise(0.25)) / 2
    label, taken = np.zeros(shape, np.uint8), ~within
    side = generator.choice((-1, 1))
    for number in range(1, _MOST + 1):  # both are drawn, so that organ 1 does not depend on their number
        centre = generator.uniform(-0.12, 0.12, len(shape))
        centre[0] += 0.42 * side * (1 if number == 1 else -1)
        radii = generator.uniform(0.26, 0.36, len(shape)) * np.array([1.0, 1.2, 1.4])[: len(shape)]
        mean, deviation, grain = _TISSUE[number - 1]
        texture = mean + generator.uniform(-8, 8) + deviation * noise(grain / 64)
        organ = _blob(place, centre, radii, 0.18 * lobes) & ~taken
        if number <= organs:
            image[organ], label[organ] = texture[organ], number
            taken |= organ
    for _ in range(int(generator.integers(2, 6))):
        centre, radius = generator.uniform(-0.5, 0.5, len(shape)), generator.uniform(0.1, 0.2)
        loop = _blob(place, centre, np.full(len(shape), radius), 0.1 * lobes) & ~taken
        image[loop] = _TISSUE[0][0] + generator.uniform(-15, 15)
        if generator.random() < 0.4:
            image[_blob(place, centre, np.full(len(shape), 0.5 * radius), 0.1 * lobes) & ~taken] = -700
        taken |= loop
    spine = _blob(place[..., :2], np.array([0.0, 0.6]), np.array([0.13, 0.11]), 0.05 * lobes)
    image[spine & ~taken] = _BONE
    image = image + generator.normal(0, 12, shape)
    return np.rint(image.clip(-1024, 3071)).astype(np.int16), label


def _blob(place: np.ndarray, centre: np.ndarray, radii: np.ndarray, waves: np.ndarray) -> np.ndarray:
    return 1 - np.linalg.norm((place - centre) / radii, axis=-1) + waves > 0
