# SPDX-License-Identifier: Apache-2.0
"""Small real data sets with added noise and few labels, for demonstrations and benchmarks of DenoiSeg.

Each builder writes images, labels and a datalist below a folder and returns the path of the datalist. Noise is added
once per image and written, so that every method and every epoch sees the same realisation.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import nibabel
import numpy as np
from scipy import ndimage

from monai_labelfx.data.datalist import save_datalist


def brain_mr(destination: str | Path, *, sigma: float = 60.0, labelled: int = 1, seed: int = 0) -> Path:
    """One real brain MR volume that nibabel ships, its left half in training blocks, its right half for testing.

    The volume (echo-planar MR, 2 x 2 x 2.2 mm) is cut at the midline. The left half becomes six blocks of about
    34 x 32 x 9 voxels: one for validation and five for training, of which ``labelled`` carry labels. The right half is
    one test volume. The reference labels are **not manual**: they are a classical segmentation of the clean volume,
    dark tissue (mostly white matter) below the lower of two Otsu thresholds of the bias-corrected brain. So the task
    asks how much of what is plain in the clean volume survives the noise.

    Args:
        destination: folder to write into.
        sigma: standard deviation of the added Gaussian noise, in intensity units (brain tissue is 300 to 700).
        labelled: training blocks that keep their labels, 0 to 5.
        seed: of the noise.

    Returns:
        Path of ``datalist.json``: NIfTI ``image`` (noisy), ``clean`` and ``label``.

    Raises:
        FileNotFoundError: if the installed nibabel lacks its test data.
        ValueError: if ``labelled`` is out of range.
    """
    if not 0 <= labelled <= 5:
        raise ValueError(f"labelled must be 0 to 5 training blocks, got {labelled}")
    source = Path(nibabel.__file__).parent / "tests" / "data" / "example4d.nii.gz"
    if not source.is_file():
        raise FileNotFoundError(f"the installed nibabel {nibabel.__version__} does not ship {source.name}")
    volume = nibabel.nifti1.load(source)
    clean = np.asarray(volume.dataobj[30:98, :, 6:, 0], dtype=np.float32)
    affine = volume.affine @ nibabel.affines.from_matvec(np.eye(3), [30, 0, 6])
    label = _dark_tissue(clean)
    noisy = clean + np.random.default_rng(seed).normal(0, sigma, clean.shape).astype(np.float32)

    destination = Path(destination).absolute()
    blocks = [(slice(0, 34), slice(y, y + 32), slice(z, z + 9)) for y, z in product((0, 32, 64), (0, 9))]
    regions = {
        "validation": [blocks[4]],
        "training": [blocks[3], *blocks[:3], blocks[5]],  # the labelled block is a central one
        "test": [(slice(34, 68), slice(None), slice(None))],
    }
    splits: dict[str, list[dict]] = {}
    for split, parts in regions.items():
        splits[split] = []
        for number, part in enumerate(parts):
            corner = [p.start or 0 for p in part]
            local = affine @ nibabel.affines.from_matvec(np.eye(3), corner)
            arrays = {"image": noisy[part], "clean": clean[part]}
            if split != "training" or number < labelled:
                arrays["label"] = label[part]
            item = {}
            for key, array in arrays.items():
                path = destination / key / f"{split}_{number}.nii.gz"
                path.parent.mkdir(parents=True, exist_ok=True)
                nibabel.save(nibabel.Nifti1Image(array, local), path)
                item[key] = str(path)
            splits[split].append(item)
    return save_datalist(destination / "datalist.json", splits)


def _dark_tissue(clean: np.ndarray) -> np.ndarray:
    from skimage.filters import threshold_multiotsu, threshold_otsu

    brain = ndimage.binary_opening(clean > 0.6 * threshold_otsu(clean), iterations=2)
    brain = ndimage.binary_fill_holes(_largest(brain))
    weight = brain.astype(np.float32)
    wide = (8, 8, 4)
    bias = ndimage.gaussian_filter(clean * weight, wide) / np.maximum(ndimage.gaussian_filter(weight, wide), 1e-3)
    flat = ndimage.gaussian_filter(clean / np.maximum(bias, 1), 0.6)
    core = ndimage.binary_erosion(brain, np.ones((3, 3, 1)), iterations=2)
    dark = ndimage.binary_opening(core & (flat < threshold_multiotsu(flat[core], 3)[0]))
    components, count = ndimage.label(dark)
    sizes = np.bincount(components.ravel(), minlength=count + 1)
    keep = sizes >= 30
    keep[0] = False
    return ndimage.label(keep[components])[0].astype(np.uint16)


def _largest(mask: np.ndarray) -> np.ndarray:
    components, _ = ndimage.label(mask)
    sizes = np.bincount(components.ravel())
    sizes[0] = 0
    return components == sizes.argmax()


def nuclei(
    destination: str | Path,
    *,
    collection: str = "nuclei2d",
    source: str | Path | None = None,
    sigma: float = 20.0,
    labelled: int = 2,
    counts: Sequence[int] = (30, 4, 20),
    seed: int = 0,
    test_seed: int = 0,
) -> Path:
    """Real nuclei with instance labels from the folder of samples, with noise added once per image.

    Args:
        destination: folder to write into.
        collection: ``"nuclei2d"`` (fluorescence images, their first 256 x 256 pixels) or ``"nuclei3d"`` (a confocal
            volume, cut along its first file axis into a test half and training blocks).
        source: the folder of samples; by default the one named by the environment variable ``LABELFX_DATA``.
        sigma: standard deviation of the added Gaussian noise, in grey values of 0 to 255.
        labelled: training images that keep their labels.
        counts: training, validation and test images (``nuclei2d``).
        seed: draws the training and validation images and the labelled ones among them.
        test_seed: draws the test images, and the noise, so that they do not change with ``seed``.

    Returns:
        Path of ``datalist.json``: TIFF ``image`` (noisy, float32), ``clean`` and ``label``. All validation images keep
        their labels: count them in the label budget.

    Raises:
        FileNotFoundError: if the folder of samples is missing.
        ValueError: if the collection is unknown or has too few images.
    """
    root = Path(source or os.environ.get("LABELFX_DATA", ""), collection)
    if collection not in ("nuclei2d", "nuclei3d"):
        raise ValueError(f"collection must be 'nuclei2d' or 'nuclei3d', got {collection!r}")
    if not (source or os.environ.get("LABELFX_DATA")) or not root.is_dir():
        raise FileNotFoundError(f"no folder {collection} of samples: set LABELFX_DATA, or pass source")
    pictures = _planes(root, counts, seed, test_seed) if collection == "nuclei2d" else _blocks(root)
    destination = Path(destination).absolute()
    splits: dict[str, list[dict]] = {"training": [], "validation": [], "test": []}
    for split, name, clean, label, spacing in pictures:
        generator = np.random.default_rng([test_seed, *name.encode()])
        arrays = {
            "image": clean + generator.normal(0, sigma, clean.shape).astype(np.float32),
            "clean": clean,
        }
        if split != "training" or len(splits[split]) < labelled:
            arrays["label"] = label
        item = {key: str(_write_tiff(destination / key / f"{name}.tif", a, spacing)) for key, a in arrays.items()}
        splits[split].append(item)
    return save_datalist(destination / "datalist.json", splits)


def _planes(root: Path, counts: Sequence[int], seed: int, test_seed: int):
    from PIL import Image

    names = [path.stem for path in sorted((root / "images").glob("*.png")) if min(Image.open(path).size) >= 256]
    window = np.s_[:256, :256]
    train, validation, test = counts
    if len(names) < sum(counts):
        raise ValueError(f"{root} holds {len(names)} images of at least 256 x 256, {sum(counts)} were asked for")
    names = [names[i] for i in np.random.default_rng(test_seed).permutation(len(names))]
    rest = [names[test:][i] for i in np.random.default_rng([seed, 1]).permutation(len(names) - test)]
    chosen = {"training": rest[:train], "validation": rest[train : train + validation], "test": names[:test]}
    for split, members in chosen.items():
        for name in members:
            clean = np.asarray(Image.open(root / "images" / f"{name}.png").convert("L"), dtype=np.float32)[window]
            label = np.asarray(Image.open(root / "masks" / f"{name}.png"))[window].astype(np.uint16)
            yield split, name, clean, label, None


def _blocks(root: Path):
    import tifffile

    clean = tifffile.imread(root / "ovule_nuclei_1135_image.tif").astype(np.float32)
    label = tifffile.imread(root / "ovule_nuclei_1135_label.tif").astype(np.uint16)
    spacing = (0.2837e-3, 0.1268e-3, 0.1268e-3)
    half, side = slice(0, 50), (slice(0, 50), slice(50, 100))
    parts = {
        "training": [(half, side[0], side[0]), (half, side[0], side[1]), (half, side[1], side[0])],
        "validation": [(half, side[1], side[1])],
        "test": [(slice(50, 100), slice(None), slice(None))],
    }
    for split, regions in parts.items():
        for number, region in enumerate(regions):
            yield split, f"{split}_{number}", clean[region], label[region], spacing


def _write_tiff(path: Path, array: np.ndarray, spacing: Sequence[float] | None) -> Path:
    import tifffile

    path.parent.mkdir(parents=True, exist_ok=True)
    if spacing is None:
        tifffile.imwrite(path, array)
    else:
        z, y, x = (s * 1e3 for s in spacing)  # ImageJ stores micrometres
        metadata = {"axes": "ZYX", "spacing": z, "unit": "um"}
        tifffile.imwrite(path, array, imagej=True, resolution=(1 / x, 1 / y), metadata=metadata)
    return path
