# SPDX-License-Identifier: Apache-2.0
"""The objects of a label map, numbered 1, 2, ... over all its channels."""

from __future__ import annotations

import numpy as np
from scipy import ndimage


def number_objects(label: np.ndarray, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Number the objects of a label map, in the order in which :py:class:`LabelsToTightBoxes` lists their boxes.

    Args:
        label: (C, \\*spatial) whole numbers, 0 background.
        kind: ``"instances"``: each number of a channel is one object, in however many parts. ``"classes"``: each
            connected component of a number. ``"masks"``: each connected component of what is not 0 in a channel.
            Voxels are connected by faces, edges and corners.

    Returns:
        (C, \\*spatial) int32, the objects 1 to N channel after channel, in a channel in rising order of their numbers
        and then in scan order; and (N,) int64 the class that the map tells: the number minus 1 for ``"classes"``, else
        the channel.
    """
    numbered = np.zeros(label.shape, np.int32)
    classes = [np.empty(0, np.int64)]
    total = 0
    for number, channel in enumerate(label):
        objects, values = _ranks(channel != 0 if kind == "masks" else channel)
        if kind != "instances":
            objects, origin = _components(objects, len(values))
            values = values[origin]
        numbered[number] = objects
        if total:
            numbered[number][objects > 0] += total
        classes.append(values - 1 if kind == "classes" else np.full(len(values), number))
        total += len(values)
    return numbered, np.concatenate(classes)


def _ranks(channel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of a channel replaced by their ranks 1, 2, ..., and the number of each rank."""
    channel = channel.astype(np.int64, copy=False)
    if channel.max(initial=0) <= channel.size and channel.min(initial=0) >= 0:
        present = np.bincount(channel.ravel(), minlength=1) > 0
        present[0] = False
        return np.cumsum(present, dtype=np.int32)[channel], np.flatnonzero(present)
    objects = channel != 0
    values, ranks = np.unique(channel[objects], return_inverse=True)
    result = np.zeros(channel.shape, np.int32)
    result[objects] = ranks + 1
    return result, values


def _components(classes: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray]:
    """The connected components of each class 1 to ``number``, numbered, and the index of the class of each."""
    result = np.zeros(classes.shape, np.int32)
    origin: list[int] = []
    everywhere = ndimage.generate_binary_structure(classes.ndim, classes.ndim)
    for index, window in enumerate(ndimage.find_objects(classes) if number else []):
        parts, count = ndimage.label(classes[window] == index + 1, everywhere)
        result[window] += np.where(parts, parts + len(origin), 0)  # 0 there, for a voxel is of one class
        origin += [index] * count
    return result, np.array(origin, np.int64)
