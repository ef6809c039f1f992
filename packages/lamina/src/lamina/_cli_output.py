"""Where the body goes: the standard output or a file, and a progress bar beside it.

A file is written under another name beside it, `FILE.….part`, which is new and ours alone, and takes its own when the
body is complete. So a file of the wanted name is a whole one, an older one survives a failure, two commands with the
same FILE do not mix, and what a failure leaves half written is removed. What is no regular file (`/dev/null`, a pipe)
is written as it is.
"""

from __future__ import annotations

import io
import math
import os
import shutil
import stat
import sys
from time import monotonic
from typing import IO, TYPE_CHECKING

from ._cli_waiting import Descriptor, Stalled, open_within_limit

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

PARTIAL_SUFFIX = ".part"

MAX_STEM_BYTES = 200
"""Of FILE's name in the name beside it: file systems take 255 bytes, and ours is a few longer."""

NAME_ATTEMPTS = 100

WRITING = "waiting for the output to be read"

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
        Stalled: it is a pipe that nobody opens for reading, and the ambient deadline has passed.
    """

    def __init__(self, path: str | None) -> None:
        self._target: str | None = None
        self._partial: str | None = None
        self._opened: int | None = None
        self._descriptor: Descriptor | None = None
        if path is not None and path != "-":
            self._target = os.path.realpath(path)
        try:
            self._open()
        except Stalled:  # an `OSError` too, as `TimeoutError` is
            raise
        except OSError as error:
            self._remove()
            place = "to the standard output" if self._target is None else path
            raise OutputError(f"cannot write {place}: {error.strerror}") from error
        except BaseException:
            self._remove()  # nobody leaves a block that was not entered
            raise

    @property
    def is_file(self) -> bool:
        """Whether it is a file, beside which there is room for a progress bar."""
        return self._target is not None

    def _open(self) -> None:
        if self._target is None:
            self._descriptor = _standard_output()
            return
        try:
            mode = os.stat(self._target).st_mode
        except FileNotFoundError:
            mode = stat.S_IFREG | 0o666
        if stat.S_ISREG(mode):
            self._opened = self._open_partial(self._target, stat.S_IMODE(mode))
        else:
            target, flags = self._target, os.O_WRONLY | getattr(os, "O_BINARY", 0)
            self._opened = open_within_limit(lambda more: os.open(target, flags | more), WRITING)
        self._descriptor = Descriptor(self._opened)

    def _open_partial(self, target: str, mode: int) -> int:
        folder, name = os.path.split(target)
        stem = os.fsencode(name)[:MAX_STEM_BYTES].decode(sys.getfilesystemencoding(), "ignore")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        for _ in range(NAME_ATTEMPTS):
            path = os.path.join(folder, f"{stem}.{os.urandom(4).hex()}{PARTIAL_SUFFIX}")
            try:
                descriptor = os.open(path, flags, mode)
            except FileExistsError:
                continue
            self._partial = path
            return descriptor
        raise FileExistsError(0, "no name is free for the file until it is complete")

    def write(self, data: bytes) -> None:
        """Write, so that it is seen at once.

        Raises:
            OutputError: that failed.
            Stalled: the ambient deadline has passed, and nobody has read it.
        """
        if self._descriptor is None:
            raise OutputError("cannot write to the standard output: it is closed")
        try:
            self._descriptor.write(data, WRITING)
        except Stalled:  # an `OSError` too, as `TimeoutError` is
            raise
        except OSError as error:
            raise self._failure(error) from error

    def complete(self) -> None:
        """The body is whole: give the file its name.

        Raises:
            OutputError: that failed.
        """
        if self._target is None:
            return
        try:
            self._close()
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

    def _close(self) -> None:
        descriptor, self._opened = self._opened, None
        if descriptor is not None:
            os.close(descriptor)

    def _remove(self) -> None:
        try:
            self._close()
        except OSError:
            pass  # a full disk is told of by the write that met it
        if self._partial is not None:
            try:
                os.unlink(self._partial)
            except OSError:
                pass  # somebody else has removed it

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._remove()


def _standard_output() -> Descriptor | None:
    """Past Python's buffer, which would hold back what could not be written, and fail again at the end."""
    if sys.stdout is None:
        return None
    try:
        sys.stdout.flush()
        return Descriptor(sys.stdout.fileno())
    except io.UnsupportedOperation:  # somebody has put another stream in its place
        return _Replaced(sys.stdout.buffer)


class _Replaced(Descriptor):
    """A standard output that is no file."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def write(self, data: bytes, doing: str) -> None:
        self._file.write(data)
        self._file.flush()


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
            self._draw(monotonic(), end="\n")

    def _draw(self, now: float, end: str = "") -> None:
        assert self._terminal is not None
        columns = shutil.get_terminal_size().columns
        line = progress_line(self._done, self._total, now - self._started_at, columns - 1)
        try:
            self._terminal.write(f"\r{line}\x1b[K{end}")
            self._terminal.flush()
        except (OSError, ValueError):
            self._terminal = None  # closed meanwhile: nobody looks any more, and the download goes on


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
