# SPDX-License-Identifier: Apache-2.0
"""What MONAI says on every bundle run and a user of the command can do nothing about."""

from __future__ import annotations

import logging
import warnings

ENGINE_NOISE = ("Engine run resuming from iteration 0,", "run is terminating due to exception")


ENGINE_ROUTINE = ("Epoch[", "Engine run", "Saved checkpoint", "Train completed", "Restored all", "Got new best")
ENGINE_LOGGERS = tuple(f"ignite.engine.engine.Supervised{kind}" for kind in ("Trainer", "Evaluator"))


def quiet_bundle_runs() -> None:
    """Hide, in this process, MONAI's messages that come with every run of every bundle.

    These are: the reminder that a configuration can run code (a bundle is code, and the user just asked to run it),
    the missing GPU DICOM decoder, which logging file was read, the log line of ignite that a run which starts is
    resumed at iteration 0, its two lines about an error that the command reports anyway, and the notice that
    TorchScript is being retired. Hidden are also pydicom's remarks on values that break the rules of their type: they
    quote the value, and a header is about a patient.
    """
    from monai_labelfx.data import quiet_monai

    quiet_monai()
    warnings.filterwarnings("ignore", message="(?s).*Invalid value for VR")
    logging.getLogger("pydicom").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=r"(?s).*GHSA-873f-pvrv-4x83")
    warnings.filterwarnings("ignore", message=r".*torch\.jit\.\w+` is (deprecated|not supported)")
    logging.getLogger("monai.bundle.workflows").setLevel(logging.WARNING)
    for name in ENGINE_LOGGERS:
        logging.getLogger(name).addFilter(_is_news)


def quiet_engine_routine() -> None:
    """Hide the line that the engines log for each epoch and checkpoint, in this process: a progress bar says it."""
    for name in ENGINE_LOGGERS:
        logging.getLogger(name).addFilter(_is_no_routine)


def _is_no_routine(record: logging.LogRecord) -> bool:
    return record.levelno > logging.INFO or not record.getMessage().startswith(ENGINE_ROUTINE)


def _is_news(record: logging.LogRecord) -> bool:
    return not any(words in record.getMessage() for words in ENGINE_NOISE)
