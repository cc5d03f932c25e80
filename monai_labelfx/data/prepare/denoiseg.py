# SPDX-License-Identifier: Apache-2.0
"""The DenoiSeg releases: npz archives with X_train, Y_train, X_val, Y_val and X_test, Y_test."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from monai_labelfx._atomic import replacing
from monai_labelfx.data._reading import ImageFileError, reading
from monai_labelfx.data.datalist import save_datalist
from monai_labelfx.data.prepare._splits import check_destination, hide_labels
from monai_labelfx.data.tiff_writer import TiffWriter

__all__ = ["prepare"]

_SPLITS = {"train": "training", "val": "validation", "test": "test"}
_ARRAY_PARTS = {
    (module, name)
    for package in ("numpy.core", "numpy._core")
    for module, name in ((f"{package}.multiarray", "_reconstruct"), (f"{package}.numeric", "_frombuffer"))
} | {("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")}


def prepare(
    source: str | os.PathLike,
    destination: str | os.PathLike,
    *,
    labelled: int | None = None,
    seed: int = 0,
) -> Path:
    """Turn a DenoiSeg release (DSB2018, Fly Wing, Mouse; n0, n10, n20) into TIFFs and a datalist.

    Expected: one npz file, or a folder that holds them at any depth (the releases unpack to ``train/train_data.npz``
    and ``test/test_data.npz``). The arrays X_train, X_val, X_test hold images (N, *spatial), in numpy's order; Y_train,
    Y_val, Y_test the instance labels of the same shape; a missing Y means no labels. Written:
    ``images/<split>_<n>.tif``, with floating values as float32, ``labels/<split>_<n>.tif`` as 16 bit, and the datalist.

    Args:
        source: the npz file or the folder.
        destination: new or empty folder to write; it appears complete or not at all.
        labelled: number of training images that keep their label in the datalist, drawn by ``seed``; None: all.
        seed: seed of the draw.

    Returns:
        The path of ``datalist.json``.

    Raises:
        FileNotFoundError: ``source`` does not exist.
        FileExistsError: ``destination`` is not empty.
        ValueError: no archive with X_train, an unusable array, labels that do not match their images, or a ``labelled``
            out of range: one sentence naming the file or argument.

    Notes:
        The splits are those of the release: patches of 128 x 128 that may overlap, so that training and validation can
        share pixels under different noise; a fair split by image needs the original images (``prepare.dsb2018``).
        The test images have several sizes and are stored as pickled object arrays. They are read by an unpickler that
        knows numpy arrays and nothing else, so that an archive from the net cannot run code.

    Example:
        >>> import tempfile
        >>> from monai_labelfx.data import load_datalist
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     images = np.zeros((3, 8, 8), np.float32)
        ...     np.savez(f"{folder}/train_data.npz", X_train=images, Y_train=images.astype(int))
        ...     splits = load_datalist(prepare(folder, f"{folder}/prepared", labelled=1))
        >>> [sorted(item) for item in splits["training"]].count(["image", "label"])
        1
    """
    folder, target = Path(source), Path(destination).absolute()
    check_destination(target)
    if not folder.exists():
        raise FileNotFoundError(f"source {str(folder)!r} does not exist")
    archives = sorted(folder.rglob("*.npz")) if folder.is_dir() else [folder]
    arrays = _collect(archives)
    if "X_train" not in arrays:
        raise ValueError(
            f"source {str(folder)!r} has no array X_train in {len(archives)} npz files, found {sorted(arrays)}"
        )
    with replacing(target) as temporary:
        splits = {
            split: list(_write(arrays, short, temporary)) for short, split in _SPLITS.items() if f"X_{short}" in arrays
        }
        hide_labels(splits["training"], labelled, seed=seed)
        save_datalist(temporary / "datalist.json", splits, notes={"name": "DenoiSeg release", "seed": seed})
    return target / "datalist.json"


def _collect(archives: list[Path]) -> dict[str, tuple[Path, Any]]:
    """Name -> (archive, array) of the arrays that belong to a release."""
    wanted = {f"{letter}_{short}" for letter in "XY" for short in _SPLITS}
    found: dict[str, tuple[Path, Any]] = {}
    for path in archives:
        with reading(str(path), "npz archive"), zipfile.ZipFile(path) as archive:
            for member in archive.namelist():
                name = member.removesuffix(".npy")
                if name not in wanted:
                    continue
                if name in found:
                    raise ImageFileError(
                        f"array {name} is in {str(path)!r} and in {str(found[name][0])!r}; prepare one at a time"
                    )
                with archive.open(member) as file:
                    found[name] = (path, _read_array(file))
    return found


def _write(arrays: dict[str, tuple[Path, Any]], short: str, folder: Path) -> Iterator[dict[str, str]]:
    path, images = arrays[f"X_{short}"]
    _, labels = arrays.get(f"Y_{short}", (path, None))
    if labels is not None and len(labels) != len(images):
        raise ValueError(f"{str(path)!r}: X_{short} holds {len(images)} images, but Y_{short} {len(labels)} label maps")
    digits = len(str(len(images)))
    for number, image in enumerate(images):
        name = f"{short}_{number:0{digits}d}.tif"
        item = {"image": f"images/{name}"}
        _save(folder / item["image"], np.asarray(image), f"{str(path)!r}: X_{short}[{number}]")
        if labels is not None:
            label = np.asarray(labels[number])
            if label.shape != np.shape(image):
                raise ValueError(
                    f"{str(path)!r}: Y_{short}[{number}] has shape {label.shape}, but its image {np.shape(image)}"
                )
            if not (label == np.rint(label)).all() or label.min() < 0:
                raise ValueError(f"{str(path)!r}: Y_{short}[{number}] holds values that are no instance numbers")
            item["label"] = f"labels/{name}"
            _save(folder / item["label"], label.astype(np.int64), f"{str(path)!r}: Y_{short}[{number}]")
        yield item


def _save(path: Path, array: np.ndarray, name: str) -> None:
    if array.dtype.kind not in "buif" or array.ndim not in (2, 3) or array.size == 0:
        raise ValueError(
            f"{name} has shape {array.shape} and type {array.dtype}, expected a 2-D or 3-D image of numbers"
        )
    writer = TiffWriter()
    writer.set_data_array(array.T, channel_dim=None)  # numpy's order is z, y, x
    writer.write(path, verbose=False)


def _read_array(file: IO[bytes]) -> np.ndarray:
    version = np.lib.format.read_magic(file)
    header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, column_major, dtype = header(file)
    if dtype.hasobject:
        result = _ArrayUnpickler(file).load()
        if not isinstance(result, np.ndarray):
            raise ValueError(f"expected a pickled numpy array, found {type(result).__name__}")
        return result
    values = np.frombuffer(file.read(), dtype=dtype)
    return values.reshape(shape, order="F" if column_major else "C")


class _ArrayUnpickler(pickle.Unpickler):
    """Knows how to rebuild numpy arrays and refuses every other name."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ARRAY_PARTS:
            raise pickle.UnpicklingError(f"it wants to load {module}.{name}; only numpy arrays are allowed")
        return super().find_class(module, name)
