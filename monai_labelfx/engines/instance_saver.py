# SPDX-License-Identifier: Apache-2.0
"""Predicted instances of an evaluator as label maps, one for each image."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ignite.engine import Engine, Events

from monai_labelfx._atomic import replacing
from monai_labelfx.data import DicomSegWriter, NiftiWriter, OutputLayout, TiffWriter
from monai_labelfx.engines._as_read import Found, collected, found_as_read, path_of
from monai_labelfx.metrics._mask_crops import MaskCrops

_MOST = {".png": 2**16 - 1, ".dcm": 2**16 - 1, ".nii.gz": 2**32 - 1, ".nii": 2**32 - 1, ".tif": 2**32 - 1}
_LIKE = {".png": ".png", ".jpg": ".png", ".jpeg": ".png", ".bmp": ".png", ".tif": ".tif", ".tiff": ".tif"}
_NAME = 64  # characters of the name of a DICOM segment


class InstanceSaver:
    """Handler that writes the masks of detections as one label map for each image, on the grid of the image's file.

    Number k is the k-th detection in falling order of the scores, 1 the best, and the background is 0: the order of the
    ``detections`` of :py:class:`~monai_labelfx.engines.DetectionSaver`'s files, which tell class and score of each
    number. Where masks overlap, the voxel belongs to the better score; so a number may have no voxel at all. (COCO's
    run lengths of ``DetectionSaver`` keep overlaps.)

    Masks are in voxels of the item's image after preprocessing. Resizing, new voxel sizes, flips, turns, crops and
    padding are undone by its meta data: a voxel of the file gets the number of the nearest voxel of that image, and 0
    where the image does not reach. Flips, turns, crops and padding are undone exactly.

    Files are written as soon as an image is done, ``<name>_<postfix><extension>``, complete or not at all; names are
    those of :py:class:`~monai_labelfx.data.OutputLayout`. An image without instances has a map of background only.

    - ``.nii.gz``, ``.nii``: by :py:class:`~monai_labelfx.data.NiftiWriter`.
    - ``.dcm``: a DICOM Segmentation by :py:class:`~monai_labelfx.data.DicomSegWriter`, one segment for each number,
      called after its class and the number, "nodule 3"; for images that were read from DICOM.
    - ``.png``: grey values of 8 bits, or 16 where more than 255 instances need them; for pictures.
    - ``.tif``: by :py:class:`~monai_labelfx.data.TiffWriter`.

    Args:
        output_dir: folder to write into.
        images: all images that are evaluated: paths, or items with a path or a list of paths under ``image_key``.
        names: label -> name, for the segments. A label may be given in digits, as JSON does.
        postfix: see above.
        extension: one of those above for all images. Default ``None``: ``.dcm`` for an image from DICOM, ``.png`` for
            PNG, JPEG and BMP, ``.tif`` for TIFF, else ``.nii.gz``.
        min_score: detections below are not written.
        codes: label -> (value, scheme, meaning) of a public terminology, the type of the segments.
        image_key: key of the image in the items.
        pred_key: key of the mapping of ``boxes``, ``labels``, ``scores`` and ``masks``: (N, \\*spatial), or a list of N
            blocks that begin at the voxel ``floor(low)`` of their boxes.

    Raises:
        ValueError: for an unknown extension, or where two images have one path; in a run for outputs that are not
            decollated, an image that is not among ``images``, predictions without masks or with such that do not fit
            boxes and image, more instances than the file's type of numbers holds, and what cannot be written.

    Notes:
        The numbers have the smallest of 8, 16 and 32 bits that holds them (TIFF: 8 for up to 255 numbers, else 16 or
        32). A SEG of more than 255 segments is a label map of DICOM 2024, see ``DicomSegWriter``.

    Example:
        >>> import tempfile, torch
        >>> from monai.data import MetaTensor
        >>> from PIL import Image
        >>> image = MetaTensor(torch.zeros(1, 3, 2), meta={"filename_or_obj": "a.png"})
        >>> masks = torch.tensor([[[1, 1], [1, 1], [0, 0]], [[0, 0], [1, 1], [1, 0]]]).bool()
        >>> pred = {"boxes": torch.tensor([[0.0, 0, 2, 2], [1, 0, 3, 2]]), "labels": torch.tensor([0, 0])}
        >>> pred |= {"scores": torch.tensor([0.6, 0.7]), "masks": masks}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     evaluator = Engine(lambda engine, batch: [{"image": image, "pred": pred}])
        ...     InstanceSaver(folder, ["a.png"]).attach(evaluator)
        ...     _ = evaluator.run([0])
        ...     np.asarray(Image.open(f"{folder}/a_instances.png")).tolist()
        [[2, 1, 1], [2, 1, 0]]
    """

    def __init__(
        self,
        output_dir: str | os.PathLike,
        images: Sequence[Any],
        *,
        names: Mapping[Any, str] | None = None,
        postfix: str = "instances",
        extension: str | None = None,
        min_score: float = 0.0,
        codes: Mapping[Any, Sequence[str]] | None = None,
        image_key: str = "image",
        pred_key: str = "pred",
    ) -> None:
        if extension not in (*_MOST, None):
            raise ValueError(f"extension must be one of {', '.join(_MOST)} or None, got {extension!r}")
        self.output_dir = Path(output_dir)
        self.layout = OutputLayout(output_dir, postfix=postfix, extension="", images=images, key=image_key)
        self.names = {int(label): name for label, name in (names or {}).items()}
        self.end = f"_{postfix}"
        self.extension = extension
        self.min_score = min_score
        self.codes = {int(label): list(code) for label, code in (codes or {}).items()}
        self.image_key = image_key
        self.pred_key = pred_key

    def attach(self, engine: Engine) -> None:
        """Add the handler to an evaluator."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)

    def _collect(self, engine: Engine) -> None:
        for item in collected(engine, type(self).__name__):
            self._write(item)

    def _write(self, item: Mapping[str, Any]) -> None:
        image, pred = item[self.image_key], item[self.pred_key]
        path = path_of(item, self.image_key, type(self).__name__)
        file = Path(self.layout.filename(path))
        name = file.relative_to(self.output_dir).as_posix().removesuffix(self.end)
        if pred.get("masks") is None:
            raise ValueError(f"the prediction of {name!r} has no 'masks', found {sorted(map(str, pred))}")
        extension = self.extension or _extension(image, path)
        found = found_as_read(image, pred, name=name, min_score=self.min_score, masks=True)
        masks: Any = found.masks
        if len(masks.crops) > _MOST[extension]:
            raise ValueError(
                f"{name!r} has {len(masks.crops)} instances, a {extension} file numbers at most {_MOST[extension]}: "
                "set min_score, or write .nii.gz"
            )
        labels = _numbered(masks)
        file = file.with_name(file.name + extension)
        try:
            if extension == ".png":
                _write_picture(labels, file)
                return
            writer: Any = _WRITERS[extension]()
            if extension == ".dcm":
                writer = DicomSegWriter(segments=self._segments(found), series_description="Instances")
            writer.set_data_array(labels[None], channel_dim=0)
            writer.set_metadata({**image.meta, "affine": found.affine, "original_affine": found.affine}, resample=True)
            writer.write(file, verbose=False)
        except ValueError as error:
            raise ValueError(f"the instances of {name!r} cannot be written as {extension}: {error}") from error

    def _segments(self, found: Found) -> dict[int, dict[str, Any]]:
        """Number -> name and, where known, type."""
        segments: dict[int, dict[str, Any]] = {}
        for number, label in enumerate(found.labels.tolist(), start=1):
            end = f" {number}"
            segments[number] = {"name": self.names.get(label, f"label {label}")[: _NAME - len(end)] + end}
            if label in self.codes:
                segments[number]["type"] = self.codes[label]
        return segments


_WRITERS = {".nii.gz": NiftiWriter, ".nii": NiftiWriter, ".tif": TiffWriter, ".dcm": DicomSegWriter}


def _extension(image: Any, path: str) -> str:
    if image.meta.get("dicom_source"):
        return ".dcm"
    return _LIKE.get(Path(path).suffix.lower(), ".nii.gz")


def _numbered(masks: MaskCrops) -> np.ndarray:
    """(\\*shape) the number of the first mask that has the voxel, from 1 on, or 0."""
    count = len(masks.crops)
    result = np.zeros(masks.shape, np.min_scalar_type(count))
    for row in range(count - 1, -1, -1):  # the first one last, over the others
        block = result[tuple(map(slice, masks.low[row], masks.high[row]))]
        block[masks.crops[row]] = row + 1
    return result


def _write_picture(labels: np.ndarray, file: Path) -> None:
    """Grey values, x to the right."""
    from PIL import Image

    if labels.ndim != 2:
        raise ValueError(f"a picture has 2 axes, got {labels.shape}")
    with replacing(file) as temporary:
        Image.fromarray(np.ascontiguousarray(labels.T)).save(temporary, format="PNG")
