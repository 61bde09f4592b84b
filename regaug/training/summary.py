"""summary.csv and other small files of a run, each written whole or not at all."""

import csv
import io
from pathlib import Path
from typing import Any

from regaug.errors import OptionError
from regaug.files import write_whole


class Summary:
    """The table of epochs: timm's columns first, then ours, the same columns in every row.

    Args:
        path: the CSV file; rows of an earlier run before `start_epoch` are kept. The file changes with the first row.
        start_epoch: first epoch that this run writes.
    """

    def __init__(self, path: str | Path, start_epoch: int):
        self.path = Path(path)
        self.rows = read_rows(self.path, start_epoch)

    def add(self, row: dict[str, Any]):
        """Append an epoch's row (dict) and rewrite the file."""
        self.rows.append({name: value for name, value in row.items() if '/' not in name})  # histograms go to W&B alone
        columns = dict.fromkeys(key for earlier in self.rows for key in earlier)
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=columns, lineterminator='\n')
        writer.writeheader()
        writer.writerows(self.rows)
        write_whole(self.path, text.getvalue())


def read_rows(path: Path, end: int) -> list[dict[str, str]]:
    """Rows of a summary before the epoch `end`, none if there is no file.

    Raises:
        OptionError: when the file cannot be read as a table.
    """
    if not path.exists():
        return []
    try:
        with path.open(newline='', encoding='utf-8-sig') as file:  # a spreadsheet puts a mark in front
            table = csv.DictReader(file)
            if 'epoch' not in (table.fieldnames or ['epoch']):
                raise csv.Error(f'it has no column epoch, but {", ".join(table.fieldnames)}')
            return [row for row in table if before(row, end)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise OptionError(f'--experiment {path.parent.name}: {path} is no readable summary ({error}).') from error


def before(row: dict[str, Any], epoch: int):
    """True for a row of an earlier epoch; False for what is no row, such as a header that timm's script repeats."""
    try:
        return int(float(row['epoch'])) < epoch
    except (KeyError, TypeError, ValueError):
        return False


def epoch_row(
    epoch: int, train_metrics: dict[str, float], eval_metrics: dict[str, float] | None, lr: float, phase: Any
):
    """An epoch's row: timm's columns in timm's order, then the phase and the further terms.

    Args:
        train_metrics: `loss` and, after it, the averages of further terms.
        eval_metrics: metrics of the evaluation, or None.
        lr: learning rate averaged over the parameter groups.
        phase: name of the phase.
    """
    row = {'epoch': epoch, 'train_loss': train_metrics['loss']}
    row.update((f'eval_{name}', value) for name, value in (eval_metrics or {}).items())
    row['lr'] = lr
    row['phase'] = phase
    row.update((f'train_{name}', value) for name, value in train_metrics.items() if name != 'loss')
    return row
