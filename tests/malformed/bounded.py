# SPDX-License-Identifier: Apache-2.0
"""Run a check in a process of its own, with little memory and little time."""

from __future__ import annotations

import logging
import multiprocessing
import os
import resource
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection

MEMORY = 2 * 2**30  # bytes on top of what the process has already
SECONDS = 10


def run_bounded(check: Callable[[], None], seconds: float = SECONDS, reserved: int = MEMORY) -> str:
    """What went wrong, as text; nothing if ``check`` returned. A process that dies or hangs is a failure too.

    It may use ``MEMORY`` bytes, and reserve ``reserved`` bytes without using them, as Python does for a long read from
    a short file.
    """
    context = multiprocessing.get_context("fork")  # all packages are imported already
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(check, sender, seconds, reserved), daemon=True)
    process.start()
    sender.close()
    try:
        if not receiver.poll(seconds):
            return f"did not end within {seconds} s"
        return receiver.recv()
    except EOFError:
        process.join()
        return f"the process died with exit code {process.exitcode}"
    finally:
        process.kill()
        process.join()
        receiver.close()


def _run(check: Callable[[], None], sender: Connection, seconds: float, reserved: int) -> None:
    with open("/proc/self/statm", encoding="ascii") as file:
        virtual, resident = (int(word) * os.sysconf("SC_PAGE_SIZE") for word in file.read().split()[:2])
    resource.setrlimit(resource.RLIMIT_AS, (virtual + reserved, virtual + reserved))
    resource.setrlimit(resource.RLIMIT_CPU, (int(seconds) + 5, int(seconds) + 5))
    logging.disable()  # tifffile logs a line for each broken tag, and pytest would keep them all in memory
    try:
        check()
        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - resident
        assert used < MEMORY, f"it used {used} bytes"
        sender.send("")
    except BaseException:
        sender.send(traceback.format_exc())
