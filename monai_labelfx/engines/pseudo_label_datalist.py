# SPDX-License-Identifier: Apache-2.0
"""A datalist that names the pseudo labels an evaluator has written, for the training of the next stage."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
from ignite.engine import Engine, Events

from monai_labelfx.data import OutputLayout, save_datalist
from monai_labelfx.data.datalist import PATH_KEYS


class PseudoLabelDatalist:
    """Handler that writes a datalist whose items name their pseudo labels, when the evaluator is done.

    Give it the :py:class:`~monai_labelfx.data.OutputLayout` object that ``SaveImaged`` writes with: it is asked for the
    file of each image, so item and file belong together however they are called. The new datalist holds all splits of
    the old one; only the items of the predicted splits get the key. The next stage reads it with ``load_datalist(path,
    path_keys=["image", "label", "clean", "pseudo"])``, which makes its paths absolute. It appears under its name only
    when all pseudo labels are there, so its presence means that the stage is complete.

    Attach it on every rank, each of which writes the files of its images; rank 0 waits for the others and writes the
    datalist.

    Args:
        path: the JSON file to write; its folder is made.
        splits: the datalist that was predicted, as :py:func:`~monai_labelfx.data.load_datalist` returns it.
        layout: the layout that the pseudo labels are written with.
        split: the split whose items were predicted, or several.
        key: the key to write into its items.
        path_keys: further keys of the items whose values are paths.

    Raises:
        ValueError: if the datalist lacks the split.
        FileNotFoundError: when the evaluator is done and a pseudo label is missing.

    Example:
        >>> import json, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     splits = {"training": [{"image": f"{folder}/a.png"}], "test": [{"image": f"{folder}/b.png"}]}
        ...     layout = OutputLayout(f"{folder}/out", postfix="pseudo", extension=".nii", images=splits["training"])
        ...     evaluator = Engine(lambda engine, batch: Path(layout.filename(f"{folder}/a.png")).touch())
        ...     PseudoLabelDatalist(f"{folder}/next.json", splits, layout).attach(evaluator)
        ...     _ = evaluator.run([0])
        ...     json.loads(Path(f"{folder}/next.json").read_text())
        {'training': [{'image': 'a.png', 'pseudo': 'out/a_pseudo.nii'}], 'test': [{'image': 'b.png'}]}
    """

    def __init__(
        self,
        path: str | os.PathLike,
        splits: Mapping[str, Sequence[Mapping[str, Any]]],
        layout: OutputLayout,
        *,
        split: str | Sequence[str] = "training",
        key: str = "pseudo",
        path_keys: Sequence[str] = PATH_KEYS,
    ) -> None:
        names = [split] if isinstance(split, str) else list(split)
        for name in names:
            if name not in splits:
                raise ValueError(f"the datalist has no split {name!r}, it has {', '.join(map(repr, splits))}.")
        self.path = Path(path)
        self.splits = splits
        self.layout = layout
        self.names = names
        self.key = key
        self.path_keys = path_keys

    def attach(self, engine: Engine) -> None:
        """Add the handler to an evaluator."""
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Write the datalist."""
        idist.barrier()
        if idist.get_rank() > 0:
            return
        found = {
            name: [{**item, self.key: self._file(item["image"])} for item in self.splits[name]] for name in self.names
        }
        keys = list(dict.fromkeys((*self.path_keys, self.key)))
        save_datalist(self.path, {**self.splits, **found}, path_keys=keys)

    def _file(self, image: Any) -> str:
        first = image if isinstance(image, (str, os.PathLike)) else image[0]
        file = os.path.abspath(self.layout.filename(first))
        if not os.path.isfile(file):
            raise FileNotFoundError(
                f"there is no pseudo label {file!r} of image {os.fspath(first)!r}: put SaveImaged with this layout "
                "into the postprocessing, and let the evaluator see all images of the split."
            )
        return file
