"""What the two entry scripts share: logging, and one clear line for a user's error."""

import multiprocessing
import signal
import sys
from typing import Any

from timm.utils import setup_default_logging

from regaug.errors import OptionError


def run(main: Any):
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
    finally:
        end_workers()
    sys.exit(status)


def end_workers():
    """End what is left of the loaders' workers, which wait for another signal than the one that ends the script."""
    children = multiprocessing.active_children()
    if children and hasattr(signal, 'SIGCHLD'):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # PyTorch's handler would raise
    for child in children:
        child.kill()
