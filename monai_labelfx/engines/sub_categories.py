# SPDX-License-Identifier: Apache-2.0
"""The sub-categories of SC-CAM: patches that hold a class, split by their features, as a table for the next round."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Engine, Events
from scipy.cluster.vq import kmeans2

from monai_labelfx.data import save_datalist
from monai_labelfx.data.datalist import PATH_KEYS
from monai_labelfx.engines._as_read import path_of
from monai_labelfx.ops.box_affine import boxes_through_affine
from monai_labelfx.transforms.patch_table import class_names, write_patch_table

_STEPS = 300  # of Lloyd's algorithm at most, as in the released code


def sub_categories(features: np.ndarray, labels: np.ndarray, clusters: int = 10, *, seed: int = 0) -> np.ndarray:
    """Split the patches that hold a class by k-means of their features, for each class (Chang et al. 2020).

    Starts are drawn as k-means++ does, then Lloyd's steps follow until no patch changes its cluster, at most 300. Where
    the patches of a class have no more than ``clusters`` different features, each of these is a cluster: with fewer
    patches than clusters there are fewer sub-categories. Clusters are numbered in the order of their first patch, and
    the numbers beyond the last one are of no patch.

    Args:
        features: (N, F), one row for each patch.
        labels: (N, K), 1 where the class is present; all others take no part.
        clusters: most sub-categories of a class. Default 10.
        seed: of the starts. The same features give the same clusters.

    Returns:
        (N, K) int64: the number of the cluster, -1 where the class is not present.

    Raises:
        ValueError: for fewer than 1 cluster, features that are not finite, or shapes that do not fit.

    Example:
        >>> features = np.array([[0.0], [9.0], [0.1], [9.1], [5.0]])
        >>> labels = np.array([[1, 0], [1, 1], [1, 0], [1, 0], [0, -1]])
        >>> sub_categories(features, labels, 2).T.tolist()
        [[0, 1, 0, 1, -1], [-1, 0, -1, -1, -1]]
    """
    features, labels = np.asarray(features), np.asarray(labels)
    if clusters < 1:
        raise ValueError(f"clusters must be 1 or more, got {clusters}.")
    if features.ndim != 2 or labels.ndim != 2 or len(features) != len(labels):
        raise ValueError(f"features must be (N, F) and labels (N, K), got {features.shape} and {labels.shape}.")
    if not np.isfinite(features).all():
        raise ValueError("features must be finite, found NaN or infinity: the classifier has diverged.")
    result = np.full(labels.shape, -1, np.int64)
    for k in range(labels.shape[1]):
        rows = np.flatnonzero(labels[:, k] == 1)
        if len(rows):
            result[rows, k] = _in_order(_clustered(features[rows], clusters, np.random.default_rng(seed)))
    return result


def _clustered(features: np.ndarray, clusters: int, rng: np.random.Generator) -> np.ndarray:
    """The cluster of each row."""
    different, number = np.unique(features, axis=0, return_inverse=True)
    if len(different) <= clusters:
        return number.reshape(-1)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "One of the clusters is empty", UserWarning)  # it keeps its centre, and waits
        centres, found = kmeans2(features, clusters, iter=1, minit="++", seed=rng)
        for _ in range(_STEPS - 1):
            before = found
            centres, found = kmeans2(features, centres, iter=1, minit="matrix")
            if np.array_equal(found, before):
                break
    return found


def _in_order(number: np.ndarray) -> np.ndarray:
    """The numbers of clusters, counted in the order of their first rows."""
    _, first, own = np.unique(number, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[own.reshape(-1)]


class SubCategories:
    """Handler that clusters the patches an evaluator has seen, and writes a table and a datalist for the next round.

    The evaluator runs a trained provider over the training patches that
    :py:class:`~monai_labelfx.transforms.GridPatchSamplesd` makes, with nothing random, and its prediction is the
    features (F,) of each patch, ``provider.features`` as the network of its inferer. When it is done, there are

    - the table, one row for each patch with its image, place and labels, and for each class a column
      ``<class>_cluster``, see :py:func:`sub_categories`;
    - the datalist, all splits as they were, with the table as ``patches`` of each item of the split, where
      :py:class:`~monai_labelfx.transforms.ReadPatchLabelsd` finds it. It appears when the table is complete.

    Places are in whole voxels of the image files, which the affines of the patches tell, wherever transforms have moved
    the images in between. An image is called by the end of its path that no other one has.

    Attach it on every rank; rank 0 writes. Memory is that of all features, 4 F bytes for each patch.

    Args:
        path: the JSON file to write; its folder is made.
        splits: the datalist, as :py:func:`~monai_labelfx.data.load_datalist` returns it.
        classes: names of the classes with the background, or their number, as for the patches.
        clusters: most sub-categories of a class. Default 10 (Chang et al. 2020).
        split: the split whose images are seen. Default "training": no other one may choose what is learned.
        table: the CSV file. Default: ``sub_categories.csv`` beside the datalist.
        seed: of k-means.
        image_key: key of the patches.
        label_key: key of their labels (K,).
        index_key: key of their number in the image.
        path_keys: further keys of the items whose values are paths.

    Raises:
        ValueError: if the datalist lacks the split, for fewer than 1 cluster, and when the evaluator is done, if an
            image is not of the split, or is seen without patches.

    Example:
        >>> import tempfile
        >>> from monai.data import MetaTensor
        >>> from monai_labelfx.data import load_datalist
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     splits = {"training": [{"image": f"{folder}/a.png"}]}
        ...     patch = MetaTensor(torch.zeros(3, 8, 8), meta={"filename_or_obj": f"{folder}/a.png"})
        ...     item = {"image": patch, "patch_label": torch.tensor([1, 0]), "patch_index": 0}
        ...     def process(engine, number):
        ...         engine.state.batch = [item, {**item, "patch_index": 1}]
        ...         return [{"pred": torch.zeros(4)}, {"pred": torch.ones(4)}]
        ...     evaluator = Engine(process)
        ...     SubCategories(f"{folder}/next.json", splits, classes=["stroma", "gland"], clusters=2).attach(evaluator)
        ...     _ = evaluator.run([0])
        ...     print(Path(folder, "sub_categories.csv").read_text().strip())
        ...     item = load_datalist(f"{folder}/next.json", path_keys=["image", "patches"])["training"][0]
        ...     os.path.basename(item["patches"])
        image,x,y,width,height,stroma,gland,stroma_cluster,gland_cluster
        a.png,0,0,8,8,1,0,0,
        a.png,0,0,8,8,1,0,1,
        'sub_categories.csv'
    """

    def __init__(
        self,
        path: str | os.PathLike,
        splits: Mapping[str, Sequence[Mapping[str, Any]]],
        *,
        classes: int | Sequence[str] = 2,
        clusters: int = 10,
        split: str = "training",
        table: str | os.PathLike | None = None,
        seed: int = 0,
        image_key: str = "image",
        label_key: str = "patch_label",
        index_key: str = "patch_index",
        path_keys: Sequence[str] = PATH_KEYS,
    ) -> None:
        if split not in splits:
            raise ValueError(f"the datalist has no split {split!r}, it has {', '.join(map(repr, splits))}.")
        if clusters < 1:
            raise ValueError(f"clusters must be 1 or more, got {clusters}.")
        self.path = Path(path)
        self.table = self.path.with_name("sub_categories.csv") if table is None else Path(table)
        self.splits = splits
        self.classes = class_names(classes)
        self.clusters = clusters
        self.split = split
        self.seed = seed
        self.image_key, self.label_key, self.index_key = image_key, label_key, index_key
        self.path_keys = path_keys
        self._rows: dict[tuple[str, int], tuple[np.ndarray, np.ndarray, np.ndarray]] = {}

    def attach(self, engine: Engine) -> None:
        """Add the handler to an evaluator."""
        engine.add_event_handler(Events.STARTED, lambda: self._rows.clear())
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.collect)
        engine.add_event_handler(Events.COMPLETED, self)

    def collect(self, engine: Engine) -> None:
        """Remember the patches of a batch: place, labels and features of each."""
        batch, output = engine.state.batch, engine.state.output
        if not isinstance(output, list) or not isinstance(batch, list):
            raise ValueError("SubCategories needs decollated items: use decollate=True in the evaluator")
        for item, found in zip(batch, output, strict=True):
            features = torch.as_tensor(found["pred"]).detach().float().cpu()
            if features.ndim != 1:
                raise ValueError(
                    f"the prediction of a patch must be its features (F,), got shape {tuple(features.shape)}: give "
                    "the inferer provider.features as its network."
                )
            key = path_of(item, self.image_key, "SubCategories"), int(item[self.index_key])
            labels = torch.as_tensor(item[self.label_key]).cpu().numpy()
            self._rows[key] = place_in_file(item[self.image_key]), labels, features.numpy()

    def __call__(self, engine: Engine) -> None:
        """Cluster, and write the table and the datalist."""
        ranks: Any = idist.all_gather(self._rows)
        self._rows = {}
        if idist.get_rank() == 0:
            self._write({key: row for rank in ranks for key, row in rank.items()})
        idist.barrier()

    def _write(self, rows: Mapping[tuple[str, int], tuple[np.ndarray, np.ndarray, np.ndarray]]) -> None:
        order = {os.path.abspath(_first(item["image"])): number for number, item in enumerate(self.splits[self.split])}
        seen = dict.fromkeys(path for path, _ in rows)
        foreign = [path for path in seen if path not in order]
        if foreign:
            raise ValueError(f"image {foreign[0]!r} is not of the split {self.split!r}, whose patches are clustered.")
        missing = [path for path in order if path not in seen]
        if missing:
            raise ValueError(
                f"no patch of image {missing[0]!r} was seen: let the evaluator see all images of {self.split!r}."
            )
        keys = sorted(rows, key=lambda key: (order[key[0]], key[1]))
        places, labels, features = (np.stack([rows[key][part] for key in keys]) for part in range(3))
        numbers = sub_categories(features, labels, self.clusters, seed=self.seed)
        counts = Counter(path for path, _ in keys)  # in the order of the keys
        ends = np.cumsum(list(counts.values()))[:-1]
        parts = zip(*(np.split(one, ends) for one in (places, labels, numbers)), strict=True)
        names = _shortest_ends(list(order))
        items = [
            {"image": names[path], "patches": own, "patch_labels": marks, "sub_labels": found}
            for path, (own, marks, found) in zip(counts, parts, strict=True)
        ]
        write_patch_table(self.table, items, self.classes)
        table = os.path.abspath(self.table)
        changed = [{**item, "patches": table} for item in self.splits[self.split]]
        save_datalist(
            self.path,
            {**self.splits, self.split: changed},
            path_keys=list(dict.fromkeys((*self.path_keys, "patches"))),
        )


def place_in_file(patch: Any) -> np.ndarray:
    """Start and size (2 D,) in voxels of its file of a patch (C, \\*spatial), which knows its affine."""
    ndim = patch.ndim - 1
    now = np.asarray(patch.affine.cpu(), np.float64)
    then = patch.meta.get("original_affine")
    then = np.eye(len(now)) if then is None else np.asarray(then, np.float64)  # pictures have none, and count voxels
    moved = np.linalg.solve(then, now)[np.ix_([*range(ndim), -1], [*range(ndim), -1])]
    moved[-1] = np.eye(ndim + 1)[-1]
    whole = torch.tensor([[0.0] * ndim + [float(n) for n in patch.shape[1:]]], dtype=torch.float64)
    low, high = boxes_through_affine(whole, moved).round().numpy()[0].astype(np.int64).reshape(2, ndim)
    shape = patch.meta.get("spatial_shape")
    low = np.maximum(low, 0)  # what was continued by reflection is no part of the image
    high = high if shape is None else np.minimum(high, np.asarray(shape).ravel()[:ndim])
    return np.concatenate([low, high - low])


def _first(paths: Any) -> str:
    return os.fspath(paths if isinstance(paths, (str, os.PathLike)) else paths[0])


def _shortest_ends(paths: Sequence[str]) -> dict[str, str]:
    """For each path the fewest of its last parts with which no other one ends."""
    parts = {path: PurePath(path).parts for path in paths}
    shared = Counter(own[-count:] for own in parts.values() for count in range(1, len(own) + 1))
    return {
        path: PurePath(*next((own[-n:] for n in range(1, len(own)) if shared[own[-n:]] == 1), own)).as_posix()
        for path, own in parts.items()
    }
