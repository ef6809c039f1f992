"""Where the body goes: the standard output or a file, and a progress bar beside it.

A file is written under another name, `FILE.part`, and takes its own when the body is complete. So a file of the wanted
name is a whole one, an older one survives a failure, and what a failure leaves half written is removed. What is no
regular file (`/dev/null`, a pipe) is written as it is.
"""

from __future__ import annotations

import math
import os
import shutil
import stat
import sys
from time import monotonic
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

PARTIAL_SUFFIX = ".part"

REDRAW_SECONDS = 0.1
"""How long a progress bar stands at least: more would only flicker."""


class OutputError(Exception):
    """The output could not be written. Its text says why; it is empty if nobody is interested."""


class Output:
    """The body's destination. A context manager: left by an exception, or before `complete`, it keeps no file.

    Args:
        path: of a file; `None` or `-` for the standard output.

    Raises:
        OutputError: the file cannot be written.
    """

    def __init__(self, path: str | None) -> None:
        self._target: str | None = None
        self._partial: str | None = None
        self._file: IO[bytes] | None = None
        if path is not None and path != "-":
            self._target = os.path.realpath(path)
        try:
            self._open()
        except OSError as error:
            raise OutputError(f"cannot write {path}: {error.strerror}") from error

    @property
    def is_file(self) -> bool:
        """Whether it is a file, beside which there is room for a progress bar."""
        return self._target is not None

    def _open(self) -> None:
        if self._target is None:
            self._file = None if sys.stdout is None else sys.stdout.buffer
        elif os.path.exists(self._target) and not stat.S_ISREG(os.stat(self._target).st_mode):
            self._file = open(self._target, "wb")  # noqa: SIM115 - closed by `__exit__`
        else:
            self._partial = self._target + PARTIAL_SUFFIX
            self._file = open(self._partial, "wb")  # noqa: SIM115 - closed by `__exit__`

    def write(self, data: bytes) -> None:
        """Write, so that it is seen at once.

        Raises:
            OutputError: that failed.
        """
        if self._file is None:
            raise OutputError("cannot write to the standard output: it is closed")
        try:
            self._file.write(data)
            self._file.flush()
        except OSError as error:
            raise self._failure(error) from error

    def complete(self) -> None:
        """The body is whole: give the file its name.

        Raises:
            OutputError: that failed.
        """
        if self._target is None or self._file is None:
            return
        try:
            self._file.close()
            if self._partial is not None:
                if os.path.exists(self._target):
                    shutil.copymode(self._target, self._partial)
                os.replace(self._partial, self._target)
                self._partial = None
        except OSError as error:
            raise self._failure(error) from error

    def _failure(self, error: OSError) -> OutputError:
        if self._target is None and isinstance(error, BrokenPipeError):
            return OutputError("")  # as `lamina … | head` ends: by the reader's wish
        return OutputError(f"cannot write {self._target or 'to the standard output'}: {error.strerror}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._target is None or self._file is None:
            return
        try:
            self._file.close()
        except OSError:
            pass  # a full disk is told of by the write that met it
        if self._partial is not None:
            try:
                os.unlink(self._partial)
            except OSError:
                pass  # somebody else has removed it


class Progress:
    """A line on a terminal that says how far a download is.

    Args:
        total: bytes to come, or `None` if that is not known.
        terminal: where to draw; `None` to draw nothing.
    """

    def __init__(self, total: int | None, terminal: IO[str] | None) -> None:
        self._total = total
        self._terminal = terminal
        self._done = 0
        self._started_at = monotonic()
        self._drawn_at = float("-inf")

    def advance(self, size: int) -> None:
        """So many more bytes are there."""
        self._done += size
        now = monotonic()
        if self._terminal is not None and now - self._drawn_at >= REDRAW_SECONDS:
            self._drawn_at = now
            self._draw(now)

    def end(self) -> None:
        """No more are to come: the last state stays on its line."""
        if self._terminal is not None and self._done:
            self._draw(monotonic())
            self._terminal.write("\n")
            self._terminal.flush()

    def _draw(self, now: float) -> None:
        assert self._terminal is not None
        columns = shutil.get_terminal_size().columns
        line = progress_line(self._done, self._total, now - self._started_at, columns - 1)
        self._terminal.write(f"\r{line}\x1b[K")
        self._terminal.flush()


def progress_line(done: int, total: int | None, seconds: float, columns: int) -> str:
    """How far a download is, in one line.

    Args:
        done: bytes that are there.
        total: bytes in all, or `None`.
        seconds: since it began.
        columns: how wide the line may be.
    """
    speed = done / seconds if seconds > 0 else 0.0
    if not total:
        return f"{_size(done)}  {_size(speed)}/s"[:columns]
    fraction = min(done / total, 1.0)
    left = (total - done) / speed if speed else 0.0
    facts = (
        f"{_size(done)} of {_size(total)}  {_size(speed)}/s  {int(left) // 60:>2}:{int(left) % 60:02} left"
    )
    room = min(columns - len(facts) - 8, 40)
    if room < 5:
        return f"{fraction:>4.0%}  {facts}"[:columns]
    filled = round(fraction * room)
    return f"{fraction:>4.0%}  {'█' * filled}{'░' * (room - filled)}  {facts}"


def _size(size: float) -> str:
    if size < 1000:
        return f"{size:>5.0f} B "
    units = "kMGT"
    power = min(int(math.log10(size)) // 3, len(units))
    return f"{size / 1000**power:>5.1f} {units[power - 1]}B"
