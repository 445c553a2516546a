"""The one exception a person is meant to read."""


class UserError(ValueError):
    """Bad input: the message names the thing, the value and the fix.

    The command line prints it without a traceback and exits with code 2.
    """
