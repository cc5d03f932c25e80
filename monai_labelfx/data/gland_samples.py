# SPDX-License-Identifier: Apache-2.0
"""Small data sets of glands in H&E stain, synthetic and real, for segmentation that is learnt from patch labels.

Each builder writes masks and a datalist below a folder and returns the path of the datalist. The masks are always
there: patch labels are derived from them, and the price of weak labels is measured by them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from monai_labelfx.data._balanced_split import balanced_split
from monai_labelfx.data._gland_pictures import draw_stain, gland_picture
from monai_labelfx.data._reading import reading
from monai_labelfx.data.datalist import save_datalist
from monai_labelfx.data.nifti_writer import NiftiWriter

__all__ = ["histology_glands", "synthetic_glands"]

PATH_KEYS = ("image", "label", "instances")
"""For ``load_datalist(path, path_keys=PATH_KEYS)``, where instances are read too."""

_SPLITS = ("training", "validation", "test")
_SIZE = {2: 256, 3: 64}
_SCALE = {2: 1.0, 3: 0.5}
_MICROMETRES = 0.62  # of a pixel of GlaS, whose glands are as large as ours at scale 1
_EBHI = Path("histology", "ebhi_seg")


def synthetic_glands(
    destination: str | Path,
    *,
    counts: Sequence[int] = (24, 6, 12),
    size: int | Sequence[int] | None = None,
    spatial_dims: int = 2,
    per_patient: int = 3,
    empty: float = 0.1,
    scale: float | None = None,
    seed: int = 0,
    test_seed: int = 0,
) -> Path:
    r"""Synthetic pictures of colon glands in H&E stain, from nothing and without a licence to mind.

    Glands are rings of nuclei, cytoplasm and, in the middle, a lumen; all of it is gland, as in GlaS. Of patients with
    an even number they are round and have goblet cells ("benign"), of the others they are irregular, with crowded
    nuclei and torn lumens ("malignant"). Around them lies stroma: fibres, spindle and round nuclei, blood, tears and
    clefts that are as white as lumens. Glands lie in a part of each picture only, 0.15 to 0.8 of it, and may be
    cut by its border, so that there are patches without gland. Each patient has a stain: hues, strengths and white
    balance.

    Args:
        destination: folder to write into.
        counts: training, validation and test pictures.
        size: pixels of each axis, one number or one per axis, at least 32; None: 256 in 2-D, 64 in 3-D.
        spatial_dims: 2 or 3. Volumes are stacks of what pictures show, in colours.
        per_patient: pictures of a patient; the last one of a split may have fewer.
        empty: share of the pictures without any gland.
        scale: factor of all lengths; 1 are glands of 40 to 100 pixels, about those of GlaS. None: 1, in 3-D 0.5.
        seed: draws the training and validation pictures.
        test_seed: draws the test pictures, so that they do not change with ``seed``.

    Returns:
        Path of ``datalist.json``: ``image`` (8-bit RGB PNG with its pixel size, in 3-D NIfTI with the colours as fourth
        axis), ``label`` (0 and 1), ``instances`` (each gland has its number, 1 to N), ``patient`` and ``grade``.
        Picture n of a split is the same whatever ``counts``. No patient is in two splits.

    Raises:
        ValueError: an argument out of range.

    Notes:
        About 0.1 s for a picture of 256 x 256 on one core. In the default training pictures, 36 % of which are gland,
        of patches of 112, 48 and 32 pixels 19, 36 and 42 % have no gland, and 0, 2 and 8 % nothing but gland (5 % rule,
        half a patch of stride). For a demo of minutes take ``size=192`` and patches of 32 to 48 pixels.

    Example:
        >>> import tempfile
        >>> from monai_labelfx.data import load_datalist
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     items = load_datalist(synthetic_glands(folder, counts=(4, 0, 0), size=64))["training"]
        >>> [(item["patient"], item["grade"]) for item in items][2:]
        [('training_00', 'benign'), ('training_01', 'malignant')]
    """
    if spatial_dims not in _SIZE:
        raise ValueError(f"spatial_dims must be 2 or 3, got {spatial_dims}")
    shape = _shape(_SIZE[spatial_dims] if size is None else size, spatial_dims)
    scale = _SCALE[spatial_dims] if scale is None else scale
    if len(counts) != 3 or min(counts) < 0 or per_patient < 1:
        raise ValueError(
            f"expected three counts of at least 0 and per_patient of at least 1, got {tuple(counts)}, {per_patient}"
        )
    if not 0 <= empty <= 1 or not 0.2 <= scale <= 4:
        raise ValueError(f"expected a share empty of 0 to 1 and a scale of 0.2 to 4, got {empty} and {scale}")
    folder = Path(destination).absolute()
    splits: dict[str, list[dict[str, Any]]] = {}
    for number, (split, count) in enumerate(zip(_SPLITS, counts, strict=True)):
        for index in range(count):
            patient, picture = divmod(index, per_patient)
            root = [test_seed if split == "test" else seed, number, patient]
            stain, malignant = draw_stain(np.random.default_rng(root)), bool(patient % 2)
            generator = np.random.default_rng([*root, picture])
            extent = 0.0 if generator.random() < empty else generator.uniform(0.15, 0.8)
            image, glands = gland_picture(generator, shape, stain, malignant=malignant, extent=extent, scale=scale)
            item = _write(folder, f"{split}_{index:03d}", image, glands, _MICROMETRES / scale)
            grade = "malignant" if malignant else "benign"
            splits.setdefault(split, []).append(item | {"patient": f"{split}_{patient:02d}", "grade": grade})
    notes = {"name": "synthetic glands", "seed": seed, "test_seed": test_seed, "scale": scale}
    return save_datalist(folder / "datalist.json", splits, notes=notes, path_keys=PATH_KEYS)


def histology_glands(
    destination: str | Path,
    source: str | Path | None = None,
    *,
    validation: float = 0.2,
    test: float = 0.3,
    seed: int = 0,
) -> Path:
    """Real colorectal biopsies in H&E stain with masks of their glands, from the folder of samples: EBHI-Seg.

    42 pictures of 224 x 224 pixels at a magnification of 400, seven each of six classes (normal, polyp, low-grade and
    high-grade neoplasia, serrated adenoma, adenocarcinoma). Stain and white balance vary strongly. The masks are of
    glands or epithelium, and have no instances. On average 0.64 of a picture is gland, so large patches tell
    nothing: of patches of 112 pixels 99 % have both labels, of 48 pixels 84 %, of 32 pixels 67 % (5 % rule).

    The source does not tell the patients. File names suggest cases ("GT2012149-3-400-008" would be case GT2012149), and
    two classes share one of these, so pictures whose names begin alike stay in one split; the classes are spread
    evenly. Results are no proof for new patients.

    Args:
        destination: folder to write into.
        source: the folder of samples; by default the one named by the environment variable ``LABELFX_DATA``.
        validation: share of the pictures for validation.
        test: share of the pictures for the test.
        seed: of the split.

    Returns:
        Path of ``datalist.json``: ``image`` (where it is), ``label`` (0 and 1, PNG, written), ``patient`` (the part of
        the name that suggests a case), ``grade`` (the class) and ``magnification``.

    Raises:
        FileNotFoundError: if the folder of samples is missing, or a mask.
        ValueError: a mask of another size than its picture or with other values than 0 and 255, or shares out of range.

    Notes:
        Licence of the pictures and masks: CC BY 4.0, Shi et al., Frontiers in Medicine 2023, doi
        10.3389/fmed.2023.1114673.
    """
    base = source or os.environ.get("LABELFX_DATA")
    root = Path(base or "", _EBHI)
    if not base or not root.is_dir():
        raise FileNotFoundError(f"no folder {_EBHI.as_posix()} of samples: set LABELFX_DATA, or pass source")
    folder = Path(destination).absolute()
    items = []
    for image in sorted((root / "images").glob("*.png")):
        grade, _, name = image.stem.partition("__")
        label = folder / "label" / image.name
        case = name.split("-")[0].upper()  # some names of one series are written GTxc, others GTXC
        item: dict[str, Any] = {"image": str(image.absolute()), "label": str(label), "patient": case, "grade": grade}
        items.append(item | {"magnification": 400})
    splits = balanced_split(items, {"validation": validation, "test": test}, group="patient", kind="grade", seed=seed)
    for item in items:
        image = Path(item["image"])
        _save_picture(Path(item["label"]), _binary(root / "masks" / image.name, image))
    notes = {"name": "EBHI-Seg, 42 pictures", "licence": "CC BY 4.0", "seed": seed}
    return save_datalist(folder / "datalist.json", splits, notes=notes)


def _shape(size: int | Sequence[int], spatial_dims: int) -> tuple[int, ...]:
    shape = (size,) * spatial_dims if isinstance(size, int) else tuple(size)
    if len(shape) != spatial_dims or min(shape) < 32:
        raise ValueError(f"size must be one number of pixels of at least 32, or {spatial_dims} of them, got {size}")
    return shape


def _binary(mask: Path, image: Path) -> np.ndarray:
    """0 and 1 (y, x) of a mask of 0 and 255."""
    from PIL import Image

    with reading(str(mask), "PNG"), Image.open(mask) as picture, Image.open(image) as other:
        sizes, values = (picture.size, other.size), np.asarray(picture)
    if sizes[0] != sizes[1]:
        raise ValueError(f"mask {str(mask)!r} has {sizes[0]} pixels, but its image has {sizes[1]}")
    if values.ndim != 2 or not np.isin(values, (0, 255)).all():
        raise ValueError(f"mask {str(mask)!r} has {np.unique(values)[:5].tolist()}, expected grey values of 0 and 255")
    return (values > 0).astype(np.uint8)


def _write(folder: Path, name: str, image: np.ndarray, glands: np.ndarray, micrometres: float) -> dict[str, str]:
    """Write colours (*spatial, 3) and numbers of glands; the keys of the item."""
    glands = glands.astype(np.uint8) if glands.max(initial=0) < 256 else glands
    arrays = {"image": image, "label": (glands > 0).astype(np.uint8), "instances": glands}
    suffix = "png" if glands.ndim == 2 else "nii.gz"
    item = {key: str(folder / key / f"{name}.{suffix}") for key in arrays}
    for key, array in arrays.items():
        if glands.ndim == 2:  # x is the first axis here, and runs along a row of a picture
            _save_picture(Path(item[key]), np.swapaxes(array, 0, 1), micrometres)
        else:
            _save_volume(Path(item[key]), array, micrometres)
    return item


def _save_volume(path: Path, array: np.ndarray, micrometres: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = NiftiWriter()
    writer.set_data_array(array, channel_dim=None if array.ndim == 3 else -1)
    writer.affine = np.diag([micrometres / 1000] * 3 + [1.0])  # mm
    writer.write(path, verbose=False)


def _save_picture(path: Path, array: np.ndarray, micrometres: float | None = None) -> None:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    resolution: dict[str, Any] = (
        {} if micrometres is None else {"dpi": (25400 / micrometres,) * 2}
    )  # PNG stores it per metre
    Image.fromarray(np.ascontiguousarray(array)).save(path, **resolution)
