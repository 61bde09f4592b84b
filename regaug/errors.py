"""What can go wrong by the user's hand."""


class OptionError(ValueError):
    """An option, a config key or an input file that cannot be used; the message names it and its value.

    The entry scripts print the message as one line and exit with status 2, without a stack trace.
    """


def one_line(error: Exception) -> str:
    """What an error says, fit to stand in another message; its type where it says nothing."""
    return ' '.join(str(error).split()) or type(error).__name__
