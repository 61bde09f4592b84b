"""What can go wrong by the user's hand."""


class OptionError(ValueError):
    """An option, a config key or an input file that cannot be used; the message names it and its value.

    The entry scripts print the message as one line and exit with status 2, without a stack trace.
    """
