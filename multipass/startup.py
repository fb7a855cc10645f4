"""How the three scripts start and end.

This module imports nothing that takes time, so that Ctrl-C gives no traceback while the others
load.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

Options = TypeVar("Options")
INTERRUPTED = 130


def settle(name: str) -> None:
    """What a script does before it imports anything else.

    Args:
        name: its `__name__`: Ctrl-C is left alone where it is imported as a module.
    """
    if name in ("__main__", "__mp_main__"):  # the script, and its workers
        end_silently()
    # Threads that spin while they wait make a shared machine several times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def end_silently() -> None:
    """From here on Ctrl-C ends the process at once, unless that was started to ignore it."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def raise_again() -> None:
    """From here on Ctrl-C raises KeyboardInterrupt, where it ended the process."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def finish(main: Callable[[Options], int], options: Options, stopped: str = "") -> None:
    """Runs a script to its end: exit code `main`'s, or 1 with one sentence, or 130 after Ctrl-C.

    Args:
        stopped: what is said after Ctrl-C.
    """
    from multipass.terminal import is_out_of_memory, one_sentence

    raise_again()
    try:
        sys.exit(main(options))
    except (ValueError, OSError, MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not is_out_of_memory(error):
            raise
        sys.exit(f"{Path(sys.argv[0]).name}: {one_sentence(error)}")
    except KeyboardInterrupt:
        if stopped:
            print(f"\n{stopped}", file=sys.stderr)
        sys.exit(INTERRUPTED)
