"""Ctrl-C ends a script without a traceback whenever it comes.

This module imports nothing that takes time, so that this holds while the others load.
"""

import signal


def end_silently() -> None:
    """From here on Ctrl-C ends the process at once, unless that was started to ignore it."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def raise_again() -> None:
    """From here on Ctrl-C raises KeyboardInterrupt, where it ended the process."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
