# SPDX-License-Identifier: Apache-2.0
"""Datalists and checkpoints that are broken, lie, or would run code."""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from malformed.case import file
from malformed.pictures import Trap


@dataclass(frozen=True)
class ListCase:
    """``error`` is what ``load_datalist`` must say (None: it loads), the others what ``check_datalist`` must report."""

    write: Callable[[Path], Any]
    error: str | None = None
    faults: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def _list(document: Any, error: str | None = None, faults: tuple[str, ...] = (), **options: Any) -> ListCase:
    """A datalist beside the pictures a.png, b.png (other pixels) and copy.png (the bytes of a.png)."""

    def write(folder: Path) -> Path:
        for name, seed in (("a", 0), ("b", 1), ("copy", 0)):
            pixels = np.random.default_rng(seed).integers(0, 256, (5, 7), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{name}.png")
        text = document if isinstance(document, str) else json.dumps(document)
        (folder / "list.json").write_text(text.replace("FOLDER", str(folder)))
        return folder / "list.json"

    return ListCase(write, error, faults or ((error,) if error else ()), **options)


def _folder(folder: Path) -> Path:
    (folder / "list.json").mkdir()
    return folder / "list.json"


def _escaping(folder: Path) -> Path:
    _list({}).write(folder)
    (folder / "sub").mkdir()
    (folder / "sub" / "list.json").write_text('{"training": ["../a.png"]}')
    return folder / "sub" / "list.json"


_GOOD = [{"image": "a.png"}]

DATALISTS: dict[str, ListCase] = {
    "good": _list({"training": _GOOD}),
    "empty file": _list("", "not a JSON file"),
    "no JSON": _list("training: [a.png]", "not a JSON file"),
    "JSON cut": _list('{"training": [{"image": "a.png"', "not a JSON file"),
    "two bytes per letter": ListCase(
        file("list.json", json.dumps({"training": _GOOD}).encode("utf-16")), "not a JSON file", ("not a JSON file",)
    ),
    "NaN": _list('{"training": [{"image": "a.png", "weight": NaN}]}', "NaN is no JSON value"),
    "Infinity": _list('{"training": [{"image": "a.png", "weight": -Infinity}]}', "-Infinity is no JSON"),
    "a split twice": _list('{"training": ["a.png"], "training": ["b.png"]}', "'training' stands twice"),
    "nested without end": _list('{"training": ' + "[" * 200_000, "not a JSON file"),
    "nested entry": _list('{"training": [' + "[" * 500 + "]" * 500 + "]}", "found a list"),
    "endless number": _list('{"training": [' + "9" * 5000 + "]}", "not a JSON file"),
    "list": _list(["a.png"], "found a list"),
    "number": _list("3", "found a number"),
    "no split": _list({f"note {n}": n for n in range(1000)}, "no split found"),
    "split of another type": _list({"training": {"image": "a.png"}}, "training must be a list"),
    "no image": _list({"training": [{"label": "a.png"}]}, "training\\[0\\] has no 'image'"),
    "many keys and no image": _list({"training": [{f"key{n}": n for n in range(1000)}]}, "has no 'image'"),
    "image of another type": _list({"training": [{"image": {"path": "a.png"}}]}, "has image=\\{'path': 'a.png'\\}"),
    "image of many numbers": _list({"training": [{"image": list(range(10_000))}]}, "has image=\\[0, 1, 2"),
    "label null": _list({"training": [{"image": "a.png", "label": None}]}, "leave the key out"),
    "100,000 wrong entries": _list({"training": [3] * 100_000}, "training\\[0\\] must be an object"),
    "a zero in a path": _list({"training": ["a\0.png"]}, "training\\[0\\] has image='a\\\\x00.png'"),
    "half of a letter in a path": _list('{"training": ["\\ud800.png"]}', "has image='\\\\ud800.png'"),
    "the same image in two splits": _list({"training": _GOOD, "test": _GOOD}, faults=("also in another split",)),
    "a copy in two splits": _list({"training": _GOOD, "test": ["copy.png"]}, faults=("also in another split",)),
    "a subject in two splits": _list(
        {"training": [{"image": "a.png", "subject": 7}], "validation": [{"image": "b.png", "subject": 7}]},
        faults=("subject '7' is also in another split",),
    ),
    "the same image twice": _list({"training": _GOOD * 2}, warnings=("the same image is also at",)),
    "absolute path": _list({"training": ["FOLDER/a.png"]}),
    "path that escapes": ListCase(_escaping, warnings=("1 files lie outside the folder",)),
    "absent file": _list({"training": ["absent.png"]}, faults=("absent.png' does not exist",)),
    "a folder as image": _list({"training": ["."]}, faults=("holds no DICOM file",)),
    "a folder as datalist": ListCase(_folder, "is a folder, expected a JSON file", ("is a folder",)),
    "no datalist": ListCase(lambda folder: folder / "list.json", "does not exist", ("does not exist",)),
}


def network() -> torch.nn.Module:
    """The network that a checkpoint must fit."""
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))


def _saved(content: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def _checkpoint(content: bytes | Callable[[], bytes]) -> Callable[[Path], Path]:
    return file("model.pt", content)


CHECKPOINTS: dict[str, tuple[Callable[[Path], Path], str | None]] = {
    "good": (_checkpoint(lambda: _saved({"network": network().state_dict()})), None),
    "good, old format": (
        _checkpoint(lambda: _saved({"network": network().state_dict()}, _use_new_zipfile_serialization=False)),
        None,
    ),
    "absent": (lambda folder: folder / "model.pt", "no checkpoint at"),
    "folder": (lambda folder: folder, "no checkpoint at"),
    "empty": (_checkpoint(b""), "expected weights"),
    "text": (_checkpoint(b"no checkpoint\n" * 20), "expected weights"),
    "cut": (_checkpoint(lambda: _saved(network().state_dict())[:-200]), "expected weights"),
    "code in a torch file": (_checkpoint(lambda: _saved({"network": Trap()})), "expected weights"),
    "code in a pickle": (_checkpoint(lambda: pickle.dumps(Trap())), "expected weights"),
    "a whole network": (_checkpoint(lambda: _saved(network())), "expected weights"),
    "a number": (_checkpoint(lambda: _saved(3)), "expected weights"),
}
