"""The command `lowrise`, also as `python -m lowrise`.

Before anything that takes time is imported, stop signals get a handler that leaves with one message; after
the command has done its work they are ignored for the moments in which the interpreter closes.
"""

import os
import sys

from lowrise.signals import end_now, ignore_stop_signals, leave_when_stopped


def main() -> int:
    """Run the command of `sys.argv`; returns the exit code."""
    leave_when_stopped()
    from lowrise.cli import main as run

    try:
        code = run()
    finally:
        ignore_stop_signals()
    if code == 0 and os.environ.get("WORLD_SIZE", "1") != "1":
        end_now()
    return code


if __name__ == "__main__":
    sys.exit(main())
