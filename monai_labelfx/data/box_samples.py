# SPDX-License-Identifier: Apache-2.0
"""Small data sets of compact objects, for demonstrations and benchmarks of learning from tight boxes.

Each builder writes NIfTI images, their reference masks and a datalist below a folder and returns the path of the
datalist. The masks are always written: boxes are derived from them, and the price of weak labels is measured by them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import nibabel
import numpy as np
from scipy import ndimage

from monai_labelfx.data._blob_image import blob_image, largest_part
from monai_labelfx.data._nifti_reader import read_nifti
from monai_labelfx.data.datalist import save_datalist
from monai_labelfx.data.prepare._volumes import save_volume

__all__ = ["blobs", "brain_slices", "mr_volumes"]

_SPLITS = ("training", "validation", "test")
_COLLECTIONS = {  # files of images and masks, their numbers in the splits, the axis across which slices look best
    "hippocampus": ("images/*.nii.gz", ("images/", "labels/"), (16, 4, 8), 1),
    "sarcoma_mr": ("*_image.nii.gz", ("_image", "_mask"), (3, 1, 2), 2),
}


def blobs(
    destination: str | Path,
    *,
    spatial_dims: int = 2,
    counts: Sequence[int] = (96, 16, 48),
    size: int | None = None,
    second_object: float = 0.0,
    noise: float = 0.7,
    seed: int = 0,
    test_seed: int = 0,
) -> Path:
    r"""Synthetic images of one smooth, irregular blob each, in noise and an uneven background.

    The object is the largest component of :math:`1 - \rho + 0.15\,g > 0`, with :math:`\rho` the distance from its
    centre in units of an ellipsoid of random axes and rotation and :math:`g` smooth noise of variance 1. The image is
    the object (1, blurred by half a voxel), a smooth background of standard deviation 0.3 and white noise. In 2-D the
    object covers about 0.7 of its tight box, in 3-D 0.4, so that a filled box is plainly wrong. It never touches the
    border of the image.

    Args:
        destination: folder to write into.
        spatial_dims: 2 or 3.
        counts: training, validation and test images.
        size: length of each axis in voxels, at least 16; None: 96 in 2-D, 32 in 3-D.
        second_object: share of the images that have two objects, at least two voxels apart.
        noise: standard deviation of the white noise; the object's contrast is 1.
        seed: draws the training and validation images.
        test_seed: draws the test images, so that they do not change with ``seed``.

    Returns:
        Path of ``datalist.json``: ``image`` (float32), ``label`` (0 and 1) and ``subject``, the name of the image.
        Image n of a split is the same whatever ``counts``.

    Raises:
        ValueError: an argument out of range.
    """
    size = size or {2: 96, 3: 32}.get(spatial_dims, 0)
    if spatial_dims not in (2, 3) or size < 16:
        raise ValueError(f"blobs need spatial_dims 2 or 3 and a size of at least 16, got {spatial_dims} and {size}")
    if not 0 <= second_object <= 1 or not noise >= 0 or len(counts) != 3 or min(counts) < 0:
        raise ValueError(
            f"blobs need a share second_object, noise of at least 0 and three counts, got {second_object}, {noise} "
            f"and {tuple(counts)}"
        )
    folder = Path(destination).absolute()
    splits: dict[str, list[dict[str, str]]] = {}
    for number, (split, count) in enumerate(zip(_SPLITS, counts, strict=True)):
        splits[split] = []
        for index in range(count):
            generator = np.random.default_rng([test_seed if split == "test" else seed, number, index])
            image, label = blob_image(generator, (size,) * spatial_dims, second_object, noise)
            splits[split].append(_write(folder, f"{split}_{index:03d}", image, label, np.eye(4)))
    return save_datalist(folder / "datalist.json", {name: items for name, items in splits.items() if items})


def brain_slices(destination: str | Path, *, spatial_dims: int = 2) -> Path:
    """One real brain MR volume that nibabel ships: slices of one half for training, the other half as test volume.

    The object is the brain in an echo-planar MR volume (2 x 2 x 2.2 mm), cut at the midline: one compact organ of half
    an ellipse in a slice, which covers 0.78 of its tight box (0.72 in 3-D). With ``spatial_dims=2`` the 21 axial slices
    of one half are 2-D files of 48 x 96 voxels, every fifth for validation, the others for training. With 3 they are
    six blocks of 48 x 48 x 7, one for validation. The other half is one test volume of 48 x 96 x 21 in both cases:
    train on slices, evaluate in 3-D. The cut is the last row of the one half and the first of the other, so flip
    training images along their first axis.

    The reference is **not manual**: it is the largest part above 0.6 of Otsu's threshold of the volume, opened and with
    its holes filled. On dark air it is easy to find, so the data show how a method works, not which one is best.

    Args:
        destination: folder to write into.
        spatial_dims: 2 for slices, 3 for blocks, in training and validation.

    Returns:
        Path of ``datalist.json``: ``image`` (float32, intensities as stored) and ``label`` (0 and 1). There is no
        ``subject``: all parts come from one person.

    Raises:
        FileNotFoundError: if the installed nibabel lacks its test data.
        ValueError: if ``spatial_dims`` is not 2 or 3.

    Notes:
        Axial slices, since the volume is 24 slices high: a sagittal or coronal slice is cut above and below, and the
        brain fills 0.9 of its box. The lowest three slices, at the skull base, are left out.
    """
    if spatial_dims not in (2, 3):
        raise ValueError(f"spatial_dims must be 2 for slices or 3 for blocks, got {spatial_dims}")
    source = Path(nibabel.__file__).parent / "tests" / "data" / "example4d.nii.gz"
    if not source.is_file():
        raise FileNotFoundError(f"the installed nibabel {nibabel.__version__} does not ship {source.name}")
    volume = nibabel.nifti1.load(source)
    whole = np.asarray(volume.dataobj[..., 0], dtype=np.float32)
    corner = (16, 0, 3)
    affine = _moved(volume.affine, corner)
    image, label = (array[16:112, :, 3:] for array in (whole, _brain(whole)))
    folder = Path(destination).absolute()
    near, far = slice(0, 48), slice(48, 96)
    splits: dict[str, list[dict[str, str]]] = {"training": [], "validation": []}
    if spatial_dims == 2:
        for index in range(image.shape[2]):
            split = "validation" if index % 5 == 2 else "training"
            plane = np.s_[near, :, index]
            item = _write(folder, f"{split}_{index:02d}", image[plane], label[plane], _slice_affine(affine, 2, index))
            splits[split].append(item)
    else:
        for index, (y, z) in enumerate((y, z) for y in (0, 48) for z in (0, 7, 14)):
            split = "validation" if index == 1 else "training"
            part = (near, slice(y, y + 48), slice(z, z + 7))
            item = _write(folder, f"{split}_{index}", image[part], label[part], _moved(affine, (0, y, z)))
            splits[split].append(item)
    splits["test"] = [_write(folder, "test_0", image[far], label[far], _moved(affine, (48, 0, 0)))]
    return save_datalist(folder / "datalist.json", _without_subject(splits))


def _brain(volume: np.ndarray) -> np.ndarray:
    from skimage.filters import threshold_otsu

    inside = ndimage.binary_opening(volume > 0.6 * threshold_otsu(volume), iterations=2)
    return ndimage.binary_fill_holes(largest_part(inside))


def mr_volumes(
    destination: str | Path,
    *,
    collection: str = "hippocampus",
    source: str | Path | None = None,
    counts: Sequence[int] | None = None,
    spatial_dims: int = 3,
    axis: int | None = None,
    min_voxels: int = 10,
    empty: float = 0.25,
    merge: bool = True,
    seed: int = 0,
    test_seed: int = 0,
) -> Path:
    """Real MR volumes with manual masks from the folder of samples: hippocampus, or tumours of arms and legs.

    Intensities and grids stay as stored: those of the hippocampus differ widely between volumes (normalise), the voxels
    of the tumours are 0.98 x 0.98 x 3.27 mm. Splits are by volume.

    Args:
        destination: folder to write into.
        collection: ``"hippocampus"`` (28 volumes) or ``"sarcoma_mr"`` (6 volumes).
        source: the folder with the collections; by default ``volume3d`` in the folder that the environment variable
            ``LABELFX_DATA`` names.
        counts: training, validation and test volumes; by default 16, 4, 8 and 3, 1, 2.
        spatial_dims: 3; or 2 to write the training volumes as 2-D slices. Validation and test stay volumes.
        axis: array axis across which the slices are cut; by default 1 (coronal) for the hippocampus, where a slice
            shows one part of the organ, and 2 (as acquired) for the tumours.
        min_voxels: slices with fewer voxels of the object, but not none, are left out.
        empty: empty slices that are kept for each slice with the object, at most all; drawn by ``seed``.
        merge: make all values of the mask 1; else the hippocampus has 1, anterior, and 2, posterior.
        seed: draws the training and validation volumes.
        test_seed: draws the test volumes, so that they do not change with ``seed``.

    Returns:
        Path of ``datalist.json``: ``image``, ``label`` and ``subject``, the name of the volume.

    Raises:
        FileNotFoundError: if the folder of samples is missing.
        ValueError: if an argument is out of range or the collection has too few volumes.
    """
    if collection not in _COLLECTIONS:
        raise ValueError(f"collection must be one of {', '.join(_COLLECTIONS)}, got {collection!r}")
    pattern, (image_part, label_part), default_counts, default_axis = _COLLECTIONS[collection]
    axis = default_axis if axis is None else axis
    if spatial_dims not in (2, 3) or axis not in (0, 1, 2) or not empty >= 0:
        raise ValueError(
            "expected spatial_dims 2 or 3, axis 0, 1 or 2, and empty of at least 0, "
            f"got {spatial_dims}, {axis} and {empty}"
        )
    base = os.environ.get("LABELFX_DATA")
    root = Path(source or Path(base or "", "volume3d"), collection)
    if not (source or base) or not root.is_dir():
        raise FileNotFoundError(f"no folder {collection} of samples: set LABELFX_DATA, or pass source")
    images = sorted(root.glob(pattern))
    folder = Path(destination).absolute()
    splits: dict[str, list[dict[str, str]]] = {}
    for split, index in _draw(len(images), counts or default_counts, seed, test_seed, str(root)):
        path = images[index]
        name = path.name.removesuffix(".nii.gz").removesuffix("_image")
        image, meta = read_nifti(str(path))
        relative = path.relative_to(root).as_posix().replace(image_part, label_part)
        label = read_nifti(str(root / relative))[0]
        label = label > 0 if merge else label
        items = splits.setdefault(split, [])
        if spatial_dims == 3 or split != "training":
            items.append(_write(folder, name, image, label, meta["affine"]))
            continue
        for k in _chosen_slices(label, axis, min_voxels, empty, np.random.default_rng([seed, 2, index])):
            planes = [np.take(array, k, axis) for array in (image, label)]
            item = _write(folder, f"{name}_{k:03d}", planes[0], planes[1], _slice_affine(meta["affine"], axis, k))
            items.append(item | {"subject": name})
    return save_datalist(folder / "datalist.json", splits)


def _draw(total: int, counts: Sequence[int], seed: int, test_seed: int, where: str) -> Iterator[tuple[str, int]]:
    if len(counts) != 3 or min(counts) < 0 or sum(counts) > total:
        raise ValueError(f"{where} holds {total} volumes, {tuple(counts)} were asked for")
    train, validation, test = counts
    order = np.random.default_rng(test_seed).permutation(total)
    rest = order[test:][np.random.default_rng([seed, 1]).permutation(total - test)]
    parts = (rest[:train], rest[train : train + validation], order[:test])
    for split, part in zip(_SPLITS, parts, strict=True):
        yield from ((split, int(index)) for index in sorted(part))


def _chosen_slices(
    label: np.ndarray, axis: int, min_voxels: int, empty: float, generator: np.random.Generator
) -> list[int]:
    voxels = np.moveaxis(label, axis, 0).reshape(label.shape[axis], -1).astype(bool).sum(1)
    full, none = np.flatnonzero(voxels >= max(min_voxels, 1)), np.flatnonzero(voxels == 0)
    some = generator.permutation(none)[: round(empty * len(full))]
    return sorted(np.concatenate([full, some]).tolist())


def _moved(affine: np.ndarray, corner: Sequence[int]) -> np.ndarray:
    """The affine of a part that begins at voxel ``corner``."""
    return affine @ nibabel.affines.from_matvec(np.eye(3), corner)


def _slice_affine(affine: np.ndarray, axis: int, index: int) -> np.ndarray:
    """The affine of slice ``index`` across ``axis``: its own two axes first, then the step to the next slice."""
    corner = np.zeros(3, dtype=int)
    corner[axis] = index
    order = [*(a for a in range(3) if a != axis), axis, 3]
    return _moved(affine, corner.tolist())[:, order]


def _write(folder: Path, name: str, image: np.ndarray, label: np.ndarray, affine: np.ndarray) -> dict[str, str]:
    item = {key: str(folder / key / f"{name}.nii.gz") for key in ("image", "label")}
    save_volume(Path(item["image"]), image, affine)
    save_volume(Path(item["label"]), label.astype(np.uint8), affine)
    return item | {"subject": name}


def _without_subject(splits: dict[str, list[dict[str, str]]]) -> dict[str, list[dict[str, str]]]:
    return {
        name: [{key: value for key, value in item.items() if key != "subject"} for item in items]
        for name, items in splits.items()
    }
