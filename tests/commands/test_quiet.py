# SPDX-License-Identifier: Apache-2.0
"""Only the known messages are hidden."""

from __future__ import annotations

import logging
import warnings

from monai_labelfx.commands.quiet import quiet_bundle_runs, quiet_engine_routine


def test_known_messages_are_hidden_and_others_are_not():
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        quiet_bundle_runs()
        warnings.warn("a bundle runs code\nsee GHSA-873f-pvrv-4x83", stacklevel=1)
        warnings.warn("`torch.jit.script` is deprecated.", stacklevel=1)
        warnings.warn("something new", stacklevel=1)
    assert [str(w.message) for w in seen] == ["something new"]


def test_resume_line_of_a_fresh_start_is_hidden(caplog):
    quiet_bundle_runs()
    logger = logging.getLogger("ignite.engine.engine.SupervisedTrainer")
    with caplog.at_level(logging.INFO, logger=logger.name):
        logger.info("Engine run resuming from iteration 0, epoch 0 until 2 epochs")
        logger.info("Engine run resuming from iteration 8, epoch 1 until 2 epochs")
    assert [r.getMessage()[:36] for r in caplog.records] == ["Engine run resuming from iteration 8"]


def test_routine_lines_go_and_warnings_stay(caplog):
    logger = logging.getLogger("ignite.engine.engine.SupervisedTrainer")
    filters = list(logger.filters)
    try:
        quiet_engine_routine()
        with caplog.at_level(logging.INFO, logger=logger.name):
            logger.info("Epoch[1] Complete. Time taken: 00:00:01")
            logger.info("Thresholds from 2 labelled images")
            logger.warning("Epoch[1] went wrong")
    finally:
        logger.filters[:] = filters
    assert [record.getMessage() for record in caplog.records] == [
        "Thresholds from 2 labelled images",
        "Epoch[1] went wrong",
    ]
