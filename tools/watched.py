"""Run pytest, with the arguments given, and end it where it has not come to an end after `LIMIT` seconds.

What watches single tests watches from within. pytest-timeout needs a main thread that still runs Python. The timer of
faulthandler does not, but pytest stops both at a test's first failure, so that nobody watches the teardown after it;
nor does anybody watch the end of the process, which waits for every thread. So this watches from outside. All that
pytest has started is in one process group with it: there SIGABRT has each Python print the stacks of its threads, and
SIGKILL ends whatever is left. That is done after a run in good order, too, since a child that stays behind would keep
the output open, and whoever reads it waiting.

At a terminal nothing is watched: there may be a debugger, and there is somebody who can press Ctrl-C.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress

LIMIT = 20 * 60
"""Seconds. The longest run takes two minutes on a machine with two cores that does nothing else."""

GRACE = 10
"""Seconds for printing the stacks."""


def main(arguments: list[str], limit: float = LIMIT) -> int:
    # pytest lets go of faulthandler at its end, before the threads are waited for, unless it found it switched on.
    command = [sys.executable, "-bb", "-X", "faulthandler", "-m", "pytest", *arguments]
    if os.name == "nt" or sys.stdin.isatty():
        return subprocess.call(command)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the group ends with this process
    # What a shell starts in the background ignores it, and so would all that the tests start, and interrupt.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    child = subprocess.Popen(command, process_group=0)
    try:
        return child.wait(limit)
    except subprocess.TimeoutExpired:
        print(f"\nnot at its end after {limit} seconds; what its threads do:", file=sys.stderr, flush=True)
        os.killpg(child.pid, signal.SIGABRT)
        with suppress(subprocess.TimeoutExpired):
            child.wait(GRACE)
        return 1
    finally:
        with suppress(ProcessLookupError):  # nothing is left
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
