"""Result rows of validate.py: their columns are timm's, files are csv or json."""

import csv
import io
import json
import logging
from pathlib import Path

from regaug.errors import OptionError
from regaug.files import write_whole

_logger = logging.getLogger('validate')


def result_row(args, metrics, data_config, num_parameters, width_columns):
    """One result row.

    Args:
        args: Options.
        metrics: `top1`, `top5` and further percentages.
        data_config: timm's data configuration.
        num_parameters: Weights of the evaluated network.
        width_columns: Columns of its own of a sub-network, empty without `--width`.

    Returns:
        Dict in the order of the columns: percentages with four decimals, `param_count` in millions.
    """
    top1, top5, *others = metrics.items()
    row = {'model': args.model}
    for name, value in (top1, top5):
        row |= {name: round(value, 4), f'{name}_err': round(100 - value, 4)}
    row |= {name: round(value, 4) for name, value in others}
    row |= {
        'param_count': round(num_parameters / 1e6, 2),
        'img_size': data_config['input_size'][-1],
        'crop_pct': data_config['crop_pct'],
        'interpolation': data_config['interpolation'],
        **width_columns,
    }
    _logger.info(' * ' + '  '.join(f'{name} {row[name]}' for name in (*metrics, *width_columns)))
    return row


def check_results_file(args):
    """Refuses a results file that could not be written, before anything is evaluated.

    Raises:
        OptionError: Its folder does not exist, or it is a folder itself.
    """
    if not args.results_file:
        return
    path = Path(args.results_file)
    if path.is_dir() or not path.parent.is_dir():
        raise OptionError(f'--results-file {path}: ' + ('this is a folder.' if path.is_dir() else 'no such folder.'))


def write_results(path, results, format):
    """Writes the results; the file appears whole or not at all.

    Args:
        path: The file.
        results: One row or a list of rows with the same columns.
        format: 'json', or 'csv' with a header line.
    """
    if format == 'json':
        text = json.dumps(results, indent=4)
    else:
        rows = results if isinstance(results, list) else [results]
        buffer = io.StringIO(newline='')
        writer = csv.DictWriter(buffer, fieldnames=rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
        text = buffer.getvalue()
    write_whole(path, text)


def print_results(results):
    """Prints the results as JSON after a line `--result`, by which a calling program finds them."""
    print(f'--result\n{json.dumps(results, indent=4)}')
