"""The command `lowrise`, also as `python -m lowrise`.

Before anything that takes time is imported, stop signals get a handler that leaves with one message; after
the command has done its work they are ignored for the moments in which the interpreter closes.
"""

import sys

from lowrise.signals import ignore_stop_signals, leave_when_stopped


def main() -> int:
    """Run the command of `sys.argv`; returns the exit code."""
    leave_when_stopped()
    from lowrise.cli import main as run

    try:
        return run()
    finally:
        ignore_stop_signals()


if __name__ == "__main__":
    sys.exit(main())
