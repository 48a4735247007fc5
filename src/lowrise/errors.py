"""The two kinds of error that a user may see as a sentence instead of a traceback.

A message names the value, the place (file and line for data) and the remedy.
"""


class LowriseError(Exception):
    """The work could not be done. The command ends with exit code 1."""


class UsageError(LowriseError, ValueError):
    """The request cannot be right, whatever the machine does. The command ends with exit code 2."""
