# SPDX-License-Identifier: Apache-2.0
"""The names of the classes of a datalist of boxes."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from monai_labelfx.data._reading import ImageFileError

__all__ = ["load_class_names"]

KEY = "class_names"


def class_names_note(names: Sequence[str]) -> dict[str, dict[str, str]]:
    """The entry of a datalist that names its classes, for the notes of :py:func:`save_datalist`."""
    return {KEY: {str(number): name for number, name in enumerate(names)}}


def load_class_names(path: str | os.PathLike) -> list[str]:
    """The names of the classes 0, 1, ... of ``box_label`` in a datalist.

    They stand beside the splits as ``"class_names": {"0": "nodule", "1": "mass"}``, which the adapters of
    ``labelfx prepare`` write; :py:func:`load_datalist` leaves them out.

    Args:
        path: the JSON file.

    Returns:
        The names by class; empty where the datalist has none.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no JSON, or an entry that does not name the classes 0 to N - 1: one sentence with the file.

    Example:
        >>> import tempfile
        >>> from monai_labelfx.data import save_datalist
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     items = {"training": [{"image": "a.png", "box": [[0, 0, 4, 2]], "box_label": [1]}]}
        ...     path = save_datalist(f"{folder}/datalist.json", items, notes=class_names_note(["nodule", "mass"]))
        ...     load_class_names(path)
        ['nodule', 'mass']
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"datalist {str(file)!r} does not exist")
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ImageFileError(f"datalist {str(file)!r} is not a JSON file ({error})") from error
    names = document.get(KEY, {}) if isinstance(document, dict) else {}
    ordered = [names.get(str(number)) for number in range(len(names))] if isinstance(names, dict) else [None]
    result = [name for name in ordered if isinstance(name, str)]
    if len(result) < len(ordered):
        raise ImageFileError(
            f"datalist {str(file)!r}: {KEY} must name the classes 0 to N - 1 by texts, found {str(names)[:100]}"
        )
    return result
