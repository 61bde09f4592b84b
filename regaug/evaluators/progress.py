"""Log lines of a long evaluation: how far it is, how fast, how long still."""

import logging
import time
from datetime import timedelta

_logger = logging.getLogger('validate')


class Progress:
    """Counts steps and logs every so many of them.

    Args:
        name: What runs, the head of the line.
        total: Steps to come.
        interval: Steps from one line to the next.
    """

    def __init__(self, name: str, total: int, interval: int):
        self.name = name
        self.total = total
        self.interval = interval
        self.done = self.samples = 0
        self.start = time.perf_counter()

    def due(self) -> bool:
        """Whether the step that ends now has a line: only then is it worth waiting for the device."""
        return self.done % self.interval == 0

    def step(self, num_samples: int, text: str = ''):
        """End a step.

        Args:
            num_samples: Images of the step.
            text: What to add to the line.
        """
        due = self.due()
        self.done += 1
        self.samples += num_samples
        if not due:
            return
        seconds = time.perf_counter() - self.start
        left = timedelta(seconds=round(seconds / self.done * (self.total - self.done)))
        _logger.info(
            f'{self.name}: [{self.done - 1:>4d}/{self.total}]  '
            f'Time: {seconds / self.done:.3f}s, {self.samples / max(seconds, 1e-9):>7.2f}/s  {text}  Left: {left}'
        )
