# SPDX-License-Identifier: Apache-2.0
"""A checkpoint that can be loaded safely, or one sentence on what is wrong and how to get one."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch


def require_checkpoint(path: str | Path, *, command: str = "labelfx run NAME train --dataset_dir DATA") -> str:
    """Return ``path`` if it is a file of weights.

    ``CheckpointLoader`` loads it too, but its errors do not name the file, and those of PyTorch go on to explain how to
    load a file that runs code. Loading here is lazy and costs little; nothing in the file is ever run.

    Args:
        path: the checkpoint.
        command: the command that makes one, for the message.

    Raises:
        FileNotFoundError: if there is no such file; the sentence says how to get one.
        ValueError: if it cannot be loaded, or holds anything but weights and plain values.

    Example:
        >>> require_checkpoint("nowhere/model.pt", command="labelfx run denoiseg train")
        Traceback (most recent call last):
        FileNotFoundError: no checkpoint at nowhere/model.pt: train one with `labelfx run denoiseg train`, ...
    """
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"no checkpoint at {path}: train one with `{command}`, then name its model.pt with --ckpt_path"
        )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
        found = "" if isinstance(content, Mapping) else f"a value of type {type(content).__name__}"
    except pickle.UnpicklingError:
        found = "something else, or objects that would run code (nothing was run)"
    except Exception as error:  # on corrupt bytes PyTorch raises errors of many kinds
        lines = str(error).strip().splitlines()
        found = f"a corrupt or incomplete file: {lines[0][:200] if lines else type(error).__name__}"
    if found:
        raise ValueError(f"checkpoint {str(path)!r} cannot be loaded, expected weights by name, found {found}")
    return str(path)
