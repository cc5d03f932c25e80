# SPDX-License-Identifier: Apache-2.0
"""Small text files, written whole or not at all; imports nothing heavy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from monai_labelfx._atomic import replacing


def write_text(file: Path, text: str) -> None:
    """Write under a temporary name beside the file, then rename."""
    with replacing(file) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(file: Path, content: Any) -> None:
    """Write indented JSON under a temporary name, then rename."""
    write_text(file, json.dumps(content, indent=2) + "\n")


def read_json(file: Path, default: Any) -> Any:
    """The content of a JSON file, or ``default`` when there is no such file.

    Raises:
        ValueError: naming the file, when it is not JSON or holds another kind of value than ``default``.
    """
    if not file.is_file():
        return default
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(content, type(default)):
        raise ValueError(f"{file} holds a {type(content).__name__}, expected a {type(default).__name__}")
    return content
