"""Result rows of validate.py: the first columns are timm's, files are csv or json."""

import csv
import io
import json
import logging
from argparse import Namespace
from pathlib import Path
from typing import Any

from regaug.errors import OptionError
from regaug.evaluators import CONDITION
from regaug.files import write_whole

_logger = logging.getLogger('validate')


def result_rows(
    args: Namespace,
    evaluated: list[dict[str, Any]],
    data_config: dict[str, Any],
    num_parameters: int,
    network_columns: dict[str, Any],
) -> list[dict[str, Any]]:
    """Make the result rows of one network.

    Args:
        args: Options.
        evaluated: Columns of the network itself, then of each condition (`loop.evaluate`).
        data_config: timm's data configuration.
        num_parameters: Weights of the network.
        network_columns: Columns that tell the network from others of the same model, empty without `--width`.

    Returns:
        Dicts in the order of the columns, numbers with four decimals, `param_count` in millions. Where there are
        conditions, the row of the network itself has the condition `clean`.
    """
    rows = []
    for columns in evaluated:
        row = {'model': args.model}
        condition = columns.get(CONDITION, 'clean')
        for name, value in columns.items():
            if name != CONDITION:
                row[name] = round(value, 4) if isinstance(value, float) else value
            if name in ('top1', 'top5'):
                row[f'{name}_err'] = round(100 - value, 4)
        row |= {
            'param_count': round(num_parameters / 1e6, 2),
            'img_size': data_config['input_size'][-1],
            'crop_pct': data_config['crop_pct'],
            'interpolation': data_config['interpolation'],
            **network_columns,
        }
        if len(evaluated) > 1:
            row[CONDITION] = condition
        shown = [name for name in (*columns, *network_columns) if name != CONDITION]
        head = f'{condition}: ' if CONDITION in columns else ''
        _logger.info(f' * {head}' + '  '.join(f'{name} {row[name]}' for name in shown))
        rows.append(row)
    return rows


def check_results_file(args: Namespace):
    """Refuse a results file that could not be written, before anything is evaluated.

    Raises:
        OptionError: Its folder does not exist, or it is a folder itself.
    """
    if not args.results_file:
        return
    path = Path(args.results_file)
    if path.is_dir() or not path.parent.is_dir():
        raise OptionError(f'--results-file {path}: ' + ('this is a folder.' if path.is_dir() else 'no such folder.'))


def columns_of(rows: list[dict[str, Any]]) -> list[str]:
    """The columns of all rows, in the order in which they first appear."""
    return list(dict.fromkeys(name for row in rows for name in row))


def write_results(path: str, results: dict[str, Any] | list[dict[str, Any]], format: str):
    """Write the results; the file appears whole or not at all.

    Args:
        path: The file.
        results: One row or a list of rows; in csv a column that a row lacks stays empty.
        format: 'json', or 'csv' with a header line.
    """
    if format == 'json':
        text = json.dumps(results, indent=4)
    else:
        rows = results if isinstance(results, list) else [results]
        buffer = io.StringIO(newline='')
        writer = csv.DictWriter(buffer, fieldnames=columns_of(rows))
        writer.writeheader()
        writer.writerows(rows)
        text = buffer.getvalue()
    write_whole(path, text)


def print_results(results: dict[str, Any] | list[dict[str, Any]]):
    """Print the results as JSON after a line `--result`, by which a calling program finds them."""
    print(f'--result\n{json.dumps(results, indent=4)}')


def log_table(rows: list[dict[str, Any]]):
    """Log the rows as a table to read: what differs between them, one line each."""
    names = [name for name in columns_of(rows) if len({str(row.get(name)) for row in rows}) > 1]
    lines = [names, *([str(row.get(name, '')) for name in names] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines)]
    table = '\n'.join('  '.join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines)
    _logger.info(f'Results:\n{table}')


def log_to_wandb(args: Namespace, rows: list[dict[str, Any]]):
    """Log the rows as a table of a run of Weights & Biases; a service out of reach is a warning."""
    import wandb  # optional

    names = columns_of(rows)
    try:
        run = wandb.init(project=args.wandb_project, job_type='evaluation', config=vars(args))
        table = wandb.Table(
            columns=names, data=[[row.get(name) for name in names] for row in rows], allow_mixed_types=True
        )
        run.log({'evaluation': table})
        run.finish()
    except Exception as error:  # a service that is gone raises whatever it stumbles over
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        _logger.warning(f'--log-wandb: the table could not be logged ({reason}).')
