# SPDX-License-Identifier: Apache-2.0
"""Detections of an evaluator as files: one in world coordinates for each image, and one COCO file for all."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
from ignite.engine import Engine, Events

from monai_labelfx.data import OutputLayout, save_detection_report, save_detections
from monai_labelfx.engines._as_read import collected, found_as_read, path_of
from monai_labelfx.engines._json import write_json
from monai_labelfx.engines._mask_run_lengths import mask_run_lengths


class DetectionSaver:
    """Handler that writes what an evaluator detected, in the geometry of the images as they were read.

    Boxes are in voxels of the item's image after preprocessing; its meta data tell how that came from the file, so that
    resizing, new voxel sizes, flips, turns, crops and padding are undone here. Boxes are then cut at the border of the
    image; those that lie in padding only are left out.

    - For each image, as soon as it is done: ``<name>_<postfix>.mrk.json``, see
      :py:func:`monai_labelfx.data.save_detections`: boxes in voxels and in mm, for 3D Slicer and for programs. Names
      are those of :py:class:`monai_labelfx.data.OutputLayout`: a file of its own for each image, DICOM series too.
    - For all images, at the end: ``coco``, a list as COCO's results are: ``image_id``, ``category_id``, ``bbox``
      ``[x, y, width, height]`` in voxels (``[x, y, z, width, height, depth]`` in volumes), ``score``;
      ``file_name``, the name of the image as in the other files; and, where predictions have ``masks``,
      ``segmentation``: run lengths of the mask in the image as it was read, see
      :py:func:`monai_labelfx.ops.encode_run_lengths`. Masks may overlap. A voxel belongs to a mask if the voxel of the
      preprocessed image that is nearest to it does.

    Both list the detections of an image in falling order of their scores: detection k, from 1 on, is the object k of
    :py:class:`~monai_labelfx.engines.InstanceSaver`.

    All files appear complete or not at all. With several processes, each writes the files of its images and rank 0 that
    of all, in the order of ``images``.

    Args:
        output_dir: folder to write into.
        images: all images that are evaluated: paths, or items with a path or a list of paths under ``image_key``.
        names: label -> name. A label may be given in digits, as JSON does.
        postfix: see above.
        extension: of the files of single images.
        coco: name of the file of all images; ``None`` leaves it out.
        category_ids: label -> ``category_id``; default: the label + 1, since COCO's ids begin with 1.
        min_score: detections below are not written.
        image_key: key of the image in the items.
        pred_key: key of the mapping of ``boxes``, ``labels``, ``scores`` and, if there are any, ``masks``: (N,
            \\*spatial), or a list of N blocks that begin at the voxel ``floor(low)`` of their boxes.
        image_id_key: key of COCO's number of an image in ``images``; without any they count from 1.
        report: also write ``<name>_<postfix>.dcm``, a DICOM structured report, for each image that was read from DICOM,
            see :py:func:`monai_labelfx.data.save_detection_report`. Set ``min_score`` with it: every box is a group of
            the report.
        codes: label -> (value, scheme, meaning) of a public terminology, for the report.

    Raises:
        ValueError: where two images have one path or one ``image_id``, or only some have one; in a run for outputs that
            are not decollated, an image that is not among ``images``, and boxes of another number of axes than the
            image, or that cannot be written, or masks that do not fit boxes and image.

    Notes:
        An image that was moved and has no ``original_affine`` (MONAI gives pictures none) counts as one that was read
        with the identity. Without ``spatial_shape`` boxes are not cut at the border.

    Example:
        >>> import tempfile, torch
        >>> from monai.data import MetaTensor
        >>> image = MetaTensor(torch.zeros(1, 8, 8), meta={"filename_or_obj": "a.png"})
        >>> pred = {"boxes": torch.tensor([[1.0, 2.0, 4.0, 8.0]]), "labels": torch.tensor([0]), "scores": torch.ones(1)}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     evaluator = Engine(lambda engine, batch: [{"image": image, "pred": pred}])
        ...     DetectionSaver(folder, ["a.png"], names={0: "nodule"}).attach(evaluator)
        ...     _ = evaluator.run([0])
        ...     print(*Path(folder, "detections.coco.json").read_text().split())
        [ { "image_id": 1, "category_id": 1, "bbox": [ 1.0, 2.0, 3.0, 6.0 ], "score": 1.0, "file_name": "a" } ]
    """

    def __init__(
        self,
        output_dir: str | os.PathLike,
        images: Sequence[Any],
        *,
        names: Mapping[Any, str] | None = None,
        postfix: str = "detections",
        extension: str = ".mrk.json",
        coco: str | None = "detections.coco.json",
        category_ids: Mapping[Any, int] | None = None,
        min_score: float = 0.0,
        image_key: str = "image",
        pred_key: str = "pred",
        image_id_key: str = "image_id",
        report: bool = False,
        codes: Mapping[Any, Sequence[str]] | None = None,
    ) -> None:
        self.output_dir = Path(output_dir)
        self.layout = OutputLayout(output_dir, postfix=postfix, extension=extension, images=images, key=image_key)
        self.names = {int(label): name for label, name in (names or {}).items()}
        self.postfix = postfix
        self.end = f"_{postfix}{extension}"
        self.report = report
        self.codes = None if codes is None else {int(label): tuple(code) for label, code in codes.items()}
        self.coco = coco
        self.category_ids = None if category_ids is None else {int(label): n for label, n in category_ids.items()}
        self.min_score = min_score
        self.image_key = image_key
        self.pred_key = pred_key
        self._ids = _ids(images, image_key, image_id_key)
        self._entries: dict[int, list[dict[str, Any]]] = {}

    def attach(self, engine: Engine) -> None:
        """Add the handler to an evaluator."""
        engine.add_event_handler(Events.STARTED, self._forget)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        engine.add_event_handler(Events.COMPLETED, self._save)

    def _forget(self, engine: Engine) -> None:
        self._entries = {}

    def _collect(self, engine: Engine) -> None:
        for item in collected(engine, type(self).__name__):
            self._write(item)

    def _write(self, item: Mapping[str, Any]) -> None:
        path = path_of(item, self.image_key, type(self).__name__)
        file = Path(self.layout.filename(path))
        name = file.relative_to(self.output_dir).as_posix().removesuffix(self.end)
        image, pred = item[self.image_key], item[self.pred_key]
        masks = self.coco is not None and pred.get("masks") is not None
        found = found_as_read(image, pred, name=name, min_score=self.min_score, masks=masks)
        boxes, labels, scores = found.boxes, found.labels, found.scores
        try:
            save_detections(file, boxes, labels=labels, scores=scores, affine=found.affine, names=self.names)
            if self.report and image.meta.get("dicom_source"):
                report = file.with_name(f"{file.name.removesuffix(self.end)}_{self.postfix}.dcm")
                save_detection_report(
                    report, boxes, labels=labels, scores=scores, meta=image.meta, names=self.names, codes=self.codes
                )
        except ValueError as error:
            raise ValueError(f"the detections of {name!r} cannot be written: {error}") from error
        axes = image.ndim - 1
        rows: list[dict[str, Any]] = [
            {
                "image_id": self._ids[path],
                "category_id": self._category(label, name),
                "bbox": [*box[:axes], *(b - a for a, b in zip(box[:axes], box[axes:], strict=True))],
                "score": score,
                "file_name": name,
            }
            for box, label, score in zip(boxes.tolist(), labels.tolist(), scores.tolist(), strict=True)
        ]
        if found.masks is not None:
            for row, run_lengths in zip(rows, mask_run_lengths(found.masks), strict=True):
                row["segmentation"] = run_lengths
        self._entries[self._ids[path]] = rows

    def _category(self, label: int, name: str) -> int:
        if self.category_ids is None:
            return label + 1
        if label not in self.category_ids:
            raise ValueError(f"category_ids must have the label {label} of {name!r}, got {self.category_ids}")
        return self.category_ids[label]

    def _save(self, engine: Engine) -> None:
        ranks: Any = idist.all_gather(self._entries)
        if self.coco is not None and idist.get_rank() == 0:
            # samplers that pad give an image to two ranks
            entries = {number: rows for rank in ranks for number, rows in rank.items()}
            rows = [row for number in self._ids.values() for row in entries.get(number, ())]
            write_json(self.output_dir / self.coco, rows)
        self._forget(engine)


def _ids(images: Sequence[Any], image_key: str, image_id_key: str) -> dict[str, int]:
    """Absolute path -> number of the image."""
    paths, given = [], []
    for image in images:
        first = image[image_key] if isinstance(image, Mapping) else image
        paths.append(os.path.abspath(os.fspath(first if isinstance(first, (str, os.PathLike)) else first[0])))
        if isinstance(image, Mapping) and image.get(image_id_key) is not None:
            given.append(int(image[image_id_key]))
    if len(given) not in (0, len(paths)):
        raise ValueError(f"all images or none must have {image_id_key!r}, got {len(given)} of {len(paths)}")
    twice = [number for number, count in Counter(given).items() if count > 1]
    if twice:
        raise ValueError(f"{image_id_key!r} {twice[0]} belongs to {Counter(given)[twice[0]]} images, expected one")
    return dict(zip(paths, given or range(1, len(paths) + 1), strict=True))
