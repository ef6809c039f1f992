"""`python -m lamina`, and what the installed command `lamina` calls.

It imports next to nothing before it has taken charge of Ctrl-C: an interrupt that comes while the rest is imported
would otherwise be a traceback from the middle of a module.
"""

try:
    import os
    import signal
    import sys
    from types import FrameType
except KeyboardInterrupt:
    raise SystemExit(130) from None


def command() -> int:
    """Run the command `lamina` as the process's only task. Returns the exit code."""
    # Some interrupts are ignored, in a shell's background jobs for instance, and stay so.
    takes_charge = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if takes_charge:
        signal.signal(signal.SIGINT, _leave)
    try:
        from ._cli import main

        return main(imported=_raise_interrupts if takes_charge else None)
    except KeyboardInterrupt:  # a second one, while the first was dealt with
        return 130
    finally:
        if takes_charge:
            signal.signal(signal.SIGINT, _leave)  # the interpreter's own end
        _empty_stderr()


def _raise_interrupts() -> None:
    """From now on there is something to tidy up."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _empty_stderr() -> None:
    """Leave nothing in the buffer that could not be written at the interpreter's end either: it would exit with 120."""
    if sys.stderr is None:
        return
    try:
        sys.stderr.flush()
    except (OSError, ValueError):
        try:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, sys.stderr.fileno())
            os.close(nowhere)
        except (OSError, ValueError):
            pass  # it is no file


def _leave(number: int, frame: FrameType | None) -> None:
    del number, frame
    try:
        os.write(2, b"lamina: interrupted\n")
    except OSError:
        pass  # nobody to tell
    os._exit(130)


if __name__ == "__main__":
    sys.exit(command())
