# SPDX-License-Identifier: Apache-2.0
"""Datalists: one JSON file that names the images and labels of each split, with paths relative to itself."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from monai_labelfx._atomic import replacing

__all__ = ["load_datalist", "save_datalist"]

PATH_KEYS = ("image", "label", "clean")
_KNOWN_SPLITS = ("training", "validation", "test")


def load_datalist(
    path: str | os.PathLike, *, required: Sequence[str] = (), path_keys: Sequence[str] = PATH_KEYS
) -> dict[str, list[dict[str, Any]]]:
    """Read a MONAI datalist and make its paths absolute.

    The file holds one list per split: ``{"training": [{"image": "images/a.png", "label": "labels/a.png"}, {"image":
    "images/b.png"}], "validation": [...], "test": [...]}``. Paths are relative to the file's folder. An entry that is
    just a path stands for ``{"image": path}``; a value under a path key may be a list of paths (channels of one image).
    Other splits may have any name; what is not a list of entries (a description, the labels' names) is left out.

    Args:
        path: the JSON file.
        required: splits that must be there and hold an entry.
        path_keys: keys of an entry whose values are paths.

    Returns:
        Split name -> entries, in the order of the file. Files are not opened; :py:func:`check_datalist` does that.

    Raises:
        FileNotFoundError: no such JSON file.
        ValueError: not JSON, no split at all, a required split missing or empty, or an entry of the wrong type or
            without "image": one sentence with the file and the entry.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = save_datalist(f"{folder}/datalist.json", {"training": [{"image": f"{folder}/a.png"}]})
        ...     load_datalist(f"{folder}/datalist.json")["training"][0]["image"] == os.path.join(folder, "a.png")
        True
    """
    file = Path(path)
    splits: dict[str, list[dict[str, Any]]] = {}
    for split, _, item, fault in iterate_entries(file, path_keys):
        if item is None:
            raise ValueError(f"datalist {str(file)!r}: {fault}")
        splits.setdefault(split, []).append(absolute_paths(item, file, path_keys))
    for split in required:
        if split not in splits:
            raise ValueError(f"datalist {str(file)!r} has no entries under {split!r}; it has {', '.join(splits)}")
    return splits


def save_datalist(
    path: str | os.PathLike,
    splits: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    notes: Mapping[str, Any] | None = None,
    path_keys: Sequence[str] = PATH_KEYS,
) -> Path:
    """Write a datalist with paths relative to its folder; the file appears complete or not at all.

    Args:
        path: the JSON file to write; its folder is made.
        splits: split name -> entries. Absolute paths are made relative to the file's folder, relative ones are kept.
        notes: more top-level entries, such as where the data came from. No lists: these are splits.
        path_keys: keys of an entry whose values are paths.

    Returns:
        The path of the JSON file.

    Raises:
        ValueError: an entry without "image" or of the wrong type, a note that is a list or has the name of a split, or
            a value that JSON cannot hold.
    """
    file = Path(path)
    document: dict[str, Any] = dict(notes or {})
    for key, value in document.items():
        if key in splits or key in _KNOWN_SPLITS or isinstance(value, (list, tuple)):
            raise ValueError(f"note {key!r} would be read as a split of datalist {str(file)!r}")
    folder = os.path.abspath(file.parent)
    for split, items in splits.items():
        for index, item in enumerate(items):
            fault = _fault(item, path_keys)
            if fault:
                raise ValueError(f"datalist {str(file)!r}: {split}[{index}] {fault}")
        document[split] = [_map_paths(item, lambda value: _relative(value, folder), path_keys) for item in items]
    try:
        text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"datalist {str(file)!r} cannot be written as JSON: {error}") from error
    with replacing(file) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
    return file


def require_key(splits: Mapping[str, Sequence[Mapping[str, Any]]], key: str, advice: str) -> None:
    """Refuse a datalist in which an entry lacks what a training needs.

    Args:
        splits: those that are used, as :py:func:`load_datalist` gives them.
        key: what each entry must have.
        advice: how to get it, the second half of the sentence.

    Raises:
        ValueError: one sentence with the number of entries without it, the first one, and the advice.

    Example:
        >>> require_key({"training": [{"image": "a.png"}]}, "pseudo", "make some first")
        Traceback (most recent call last):
        ValueError: 1 of 1 images have no 'pseudo', the first is training[0] 'a.png': make some first
    """
    found = [(split, index, item) for split, items in splits.items() for index, item in enumerate(items)]
    lacking = [(split, index, item) for split, index, item in found if item.get(key) is None]
    if lacking:
        split, index, item = lacking[0]
        raise ValueError(
            f"{len(lacking)} of {len(found)} images have no {key!r}, the first is {split}[{index}] "
            f"{str(item['image'])!r}: {advice}"
        )


def iterate_entries(
    file: Path, path_keys: Sequence[str] = PATH_KEYS
) -> Iterator[tuple[str, int, dict[str, Any] | None, str | None]]:
    """Yield (split, index, entry, None), or (split, index, None, fault) for what cannot be used.

    A fault of the whole file has the split "". An empty split yields nothing.
    """
    if not file.is_file():
        what = "is a folder, expected a JSON file" if file.is_dir() else "does not exist"
        raise FileNotFoundError(f"datalist {str(file)!r} {what}")
    try:
        text = file.read_text(encoding="utf-8")
        document = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        yield "", 0, None, f"not a JSON file ({error})"
        return
    if not isinstance(document, dict):
        yield "", 0, None, f"expected an object with the splits, such as 'training', found {_name(document)}"
        return
    splits = {key: value for key, value in document.items() if key in _KNOWN_SPLITS or isinstance(value, list)}
    if not splits:
        yield (
            "",
            0,
            None,
            f"no split found, expected a list under 'training', 'validation' or 'test'; keys {_short(list(document))}",
        )
    for split, items in splits.items():
        if not isinstance(items, list):
            yield split, 0, None, f"{split} must be a list of entries, found {_name(items)}"
            continue
        for index, entry in enumerate(items):
            item = {"image": entry} if isinstance(entry, str) else entry
            fault = _fault(item, path_keys)
            if fault:
                yield split, index, None, f"{split}[{index}] {fault}"
            else:
                yield split, index, item, None


def absolute_paths(item: Mapping[str, Any], file: Path, path_keys: Sequence[str]) -> dict[str, Any]:
    """The entry with its paths joined to the folder of the datalist ``file``."""
    folder = os.path.abspath(file.parent)
    return _map_paths(item, lambda value: os.path.normpath(os.path.join(folder, value)), path_keys)


def _fault(item: Any, path_keys: Sequence[str]) -> str | None:
    if not isinstance(item, Mapping):
        return f"must be an object with at least 'image', found {_name(item)}"
    if "image" not in item:
        return f"has no 'image', found the keys {_short(list(item))}"
    for key in path_keys:
        value = item.get(key, "absent")
        values = value if isinstance(value, (list, tuple)) and value else [value]
        if not all(isinstance(one, (str, os.PathLike)) and _is_path(str(one)) for one in values):
            found = _short(value)
            return f"has {key}={found}, expected a path or a list of paths (leave the key out where there is none)"
    return None


def _is_path(text: str) -> bool:
    """Whether the file system could have a file of this name."""
    try:
        return bool(text) and b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON value")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object; of a key that stands twice, JSON readers silently drop the first value, such as a whole split."""
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"the key {_short(key)} stands twice in one object")
        result[key] = value
    return result


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def _map_paths(item: Mapping[str, Any], change: Any, path_keys: Sequence[str]) -> dict[str, Any]:
    result = dict(item)
    for key in set(path_keys) & set(result):
        value = result[key]
        result[key] = [change(one) for one in value] if isinstance(value, (list, tuple)) else change(value)
    return result


def _relative(value: str | os.PathLike, folder: str) -> str:
    text = os.fspath(value)
    return Path(os.path.relpath(text, folder)).as_posix() if os.path.isabs(text) else Path(text).as_posix()


def _name(value: Any) -> str:
    names = {"dict": "an object", "list": "a list", "str": "a text", "NoneType": "null", "bool": "true or false"}
    return names.get(type(value).__name__, "a number")
