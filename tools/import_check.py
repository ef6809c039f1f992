"""Import each module named on the command line in a fresh process, and refuse what would make that slow.

Modules that are slow to import, or that only some installations have, are imported when they are first used.
"""

from __future__ import annotations

import subprocess
import sys

FORBIDDEN = ("asyncio", "anyio", "trio", "ssl", "h2", "certifi")

PROBE = """
import sys, time
start = time.perf_counter()
__import__({module!r})
elapsed = time.perf_counter() - start
print(f"{{elapsed * 1000:.1f}}", *[name for name in {forbidden!r} if name in sys.modules])
"""


def main(modules: list[str]) -> int:
    failed = False
    for module in modules:
        code = PROBE.format(module=module, forbidden=FORBIDDEN)
        done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=False)
        if done.returncode:
            failed = True
            print(f"{module}: cannot be imported\n{done.stderr}")
            continue
        milliseconds, *imported = done.stdout.split()
        failed = failed or bool(imported)
        print(f"{module}: {milliseconds} ms" + (f", IMPORTS {', '.join(imported)}" if imported else ""))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
