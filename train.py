#!/usr/bin/env python
"""Train an image classifier with timm, and with regaug's regularisation by augmentation.

timm's options, files and numbers; `--help` lists what is added.
"""

import logging
from typing import Any

from regaug import cli, options
from regaug.training.dry_run import dry_run
from regaug.training.loop import train
from regaug.training.run import Run

_logger = logging.getLogger('train')


def main(argv: Any = None):
    args = options.parse_train(argv)
    run = Run(args).build()
    try:
        if run.finished:
            where = f' in {args.resume}' if args.resume else ''
            _logger.info(f'Nothing is left to train: {run.start_epoch} of {run.num_epochs} epochs are done{where}.')
            return 0
        if args.dry_run:
            return dry_run(run)
        run.stop.install()
        return train(run)
    finally:
        run.close()


if __name__ == '__main__':
    cli.run(main)
