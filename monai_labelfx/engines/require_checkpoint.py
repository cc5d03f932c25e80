# SPDX-License-Identifier: Apache-2.0
"""A checkpoint path that exists, or one sentence on how to get it."""

from __future__ import annotations

from pathlib import Path


def require_checkpoint(path: str | Path, *, command: str = "labelfx run NAME train --dataset_dir DATA") -> str:
    """Return ``path`` if it is a file.

    Args:
        path: the checkpoint.
        command: the command that makes one, for the message.

    Raises:
        FileNotFoundError: if there is no such file; the sentence says how to get one.

    Example:
        >>> require_checkpoint("nowhere/model.pt", command="labelfx run denoiseg train")
        Traceback (most recent call last):
        FileNotFoundError: no checkpoint at nowhere/model.pt: train one with `labelfx run denoiseg train`, ...
    """
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"no checkpoint at {path}: train one with `{command}`, then name its model.pt with --ckpt_path"
        )
    return str(path)
