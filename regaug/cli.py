"""What the two entry scripts share: logging, and one clear line for a user's error."""

import sys

from timm.utils import setup_default_logging

from regaug.errors import OptionError


def run(main):
    """Run a script's `main()` and exit with its status; an `OptionError` becomes one line and exit status 2.

    Args:
        main: function without arguments that returns an exit status or None.
    """
    setup_default_logging()
    try:
        status = main()
    except OptionError as error:
        print(f'{sys.argv[0]}: error: {error}', file=sys.stderr)
        status = 2
    sys.exit(status)
