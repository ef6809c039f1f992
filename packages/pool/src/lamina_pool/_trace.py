"""What is told about a request while it is under way: to the caller's `trace` callback, and to the log.

Both tell the same events: `started`, then `complete` or `failed`, of each step. The callback gets
`"http11.send_request_body.started"` and a dictionary, the logger `lamina.http11` a line at level DEBUG.

Hardly any request is traced, so the question is asked once per request and module, and costs two look-ups:
with no callback and DEBUG off, `Tracer.of` returns `None`, and nothing more is done. `logging` is not
imported for it: where nobody has imported it, nobody can have asked for DEBUG.

Secrets stay out of the log: the values of the headers named in `SECRET_HEADERS` are masked wherever header
lists appear. The callback belongs to the caller, and gets everything as it is.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from lamina_interfaces import ArgumentTypeError, running_runtime

from ._io import CallerError

if TYPE_CHECKING:
    import logging
    from collections.abc import Awaitable, Callable

    from ._models import Request

T = TypeVar("T")

SECRET_HEADERS = frozenset({b"authorization", b"proxy-authorization", b"cookie", b"set-cookie"})
MASK = b"[masked]"

_DEBUG = 10  # `logging.DEBUG`
_loggers: dict[str, logging.Logger] = {}


class Tracer:
    """Tells the steps of one request in one module. Made by `Tracer.of`, and only where somebody listens.

    Its methods are coroutines, so that one text serves blocking and async code. They wait for nothing but the
    callback's own coroutine, if it is an async function. In blocking code that one is run to its end, and must not
    wait for anything: nothing there would wake it. What the callback raises comes out as it is.
    """

    __slots__ = ("_callback", "_logger", "_prefix")

    def __init__(
        self, prefix: str, callback: Callable[[str, dict[str, Any]], Any] | None, logger: Any
    ) -> None:
        self._prefix = prefix
        self._callback = callback
        self._logger = logger

    @staticmethod
    def of(request: Request | None, prefix: str) -> Tracer | None:
        """A tracer for what one module does for a request; `None` if nobody listens.

        Args:
            request: whose `extensions["trace"]` is the callback; `None` for what belongs to no request.
            prefix: the module, `"connection"`, `"http11"`, …: the first part of the events' names, and the
                last of the logger's.
        """
        callback = None if request is None else request.extensions.get("trace")
        logger = _loggers.get(prefix) or _logger_of(prefix)
        if logger is not None and not logger.isEnabledFor(_DEBUG):
            logger = None
        return None if callback is None and logger is None else Tracer(prefix, callback, logger)

    async def started(self, name: str, info: dict[str, Any] | None = None) -> None:
        """A step begins.

        Args:
            name: of the step, `"connect_tcp"`.
            info: its arguments by name.
        """
        await self._tell(f"{name}.started", {} if info is None else info)

    async def complete(self, name: str, return_value: object = None) -> None:
        """A step is done."""
        await self._tell(f"{name}.complete", {"return_value": return_value})

    async def failed(self, name: str, exception: BaseException) -> None:
        """A step ended in an error, or was cancelled."""
        if isinstance(exception, CallerError):
            exception = exception.original
        await self._tell(f"{name}.failed", {"exception": exception})

    async def around(
        self,
        name: str,
        info: dict[str, Any] | None,
        step: Callable[..., Awaitable[T]],
        *args: Any,
        **kwargs: Any,
    ) -> T:
        """Run a step between its events.

        Args:
            name: of the step.
            info: what `started` tells.
            step: the coroutine function that does it.
            *args: given to the step.
            **kwargs: given to the step.

        Returns:
            What the step returned, which is also told as the `return_value`.
        """
        await self.started(name, info)
        try:
            result = await step(*args, **kwargs)
        except BaseException as error:
            await self.failed(name, error)
            raise
        await self.complete(name, result)
        return result

    async def _tell(self, name: str, info: dict[str, Any]) -> None:
        if self._callback is not None:
            has_suspended = False
            try:
                answer = self._callback(f"{self._prefix}.{name}", info)
                if hasattr(answer, "__await__"):
                    if running_runtime() == "threads":
                        has_suspended = not _ran_to_its_end(answer)
                    else:
                        await answer
            except Exception as error:
                raise CallerError(error) from error
            if has_suspended:
                raise ArgumentTypeError(
                    "the trace callback waited for something, which in blocking code an async function must not"
                )
        if self._logger is not None:
            self._logger.debug(_line(name, info))

    def __repr__(self) -> str:
        return f"<Tracer [{self._prefix!r}, callback: {self._callback!r}, log: {self._logger is not None}]>"


async def nothing() -> None:
    """The step behind an event that httpcore has where there is nothing to wait for."""


def _ran_to_its_end(awaitable: Awaitable[object]) -> bool:
    """Take the first step of it, which has to be the last. If it is not, it is ended where it is."""
    steps: Any = awaitable.__await__()
    try:
        next(steps)
    except StopIteration:
        return True
    if hasattr(steps, "close"):
        with suppress(RuntimeError):  # where it waits even while it is ended
            steps.close()
    return False


def _logger_of(prefix: str) -> logging.Logger | None:
    # Absent where `logging` is, and while it is being imported.
    get_logger = getattr(sys.modules.get("logging"), "getLogger", None)
    if get_logger is None:
        return None
    logger: logging.Logger = get_logger(f"lamina.{prefix}")
    _loggers[prefix] = logger
    return logger


def _line(name: str, info: dict[str, Any]) -> str:
    if not info or ("return_value" in info and info["return_value"] is None):
        return name
    return f"{name} {' '.join([f'{key}={_masked(value)!r}' for key, value in info.items()])}"


def _masked(value: Any) -> Any:
    """A copy of a value in which secret headers are masked, in lists and tuples of any depth."""
    if isinstance(value, list):
        return [_masked(member) for member in value]
    if isinstance(value, tuple):
        if len(value) == 2 and isinstance(value[0], bytes) and value[0].lower() in SECRET_HEADERS:
            return (value[0], MASK)
        return tuple([_masked(member) for member in value])
    return value
