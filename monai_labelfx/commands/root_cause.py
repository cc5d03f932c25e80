# SPDX-License-Identifier: Apache-2.0
"""The one sentence behind a nested error: MONAI wraps each failure in several ``RuntimeError``."""

from __future__ import annotations

WRAPPERS = ("Failed to evaluate ", "Failed to instantiate component ", "applying transform ")
TRACEBACKS = ("in DataLoader worker process", "SaveImage cannot find a suitable writer")


def root_cause(error: BaseException) -> str:
    """The message of the error that started it all, on one line.

    Args:
        error: what was raised. Its causes are followed as long as it only wraps them.

    Returns:
        The message; errors other than ``ValueError``, ``RuntimeError`` and ``OSError`` are led by the name of their
        class, because a message such as ``'train'`` of a ``KeyError`` says nothing alone.

    Example:
        >>> try:
        ...     try:
        ...         raise ValueError("alpha is 2, expected a number in [0, 1]")
        ...     except ValueError as error:
        ...         raise RuntimeError("Failed to instantiate component 'DenoiSegLoss'") from error
        ... except RuntimeError as error:
        ...     root_cause(error)
        'alpha is 2, expected a number in [0, 1]'
    """
    while str(error).startswith(WRAPPERS) and error.__cause__ is not None:
        error = error.__cause__
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    if any(words in text for words in TRACEBACKS):
        # a worker process, and SaveImage, give the traceback as text: the last line at its margin is the error
        lines = [line for line in text.strip().splitlines() if line[:1].isalpha()]
        return lines[-1].strip()
    text = " ".join(text.split())
    if isinstance(error, (ValueError, RuntimeError, OSError)) and text:
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
