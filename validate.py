#!/usr/bin/env python
"""Evaluates a trained image classifier, at full width or at several widths, and reports its accuracy.

    python validate.py /data/imagenet --model resnet50 --checkpoint output/run/model_best.pth.tar

The options and the results are those of timm's validation script. A folder as `--checkpoint`, or a wildcard, `all` or
a file of names as `--model`, evaluates many models. `--width 1.0 0.9` evaluates sub-networks of a model trained with
GradAug, one result row each.
"""

import torch
from timm.utils import random_seed

from regaug import cli
from regaug.device import Precision
from regaug.options import parse_validate
from regaug.validation.bulk import find_jobs, validate_all, with_retry
from regaug.validation.loop import EvaluationData, evaluate, warm_up
from regaug.validation.model import build_model, fit_to_input, num_parameters, prepare, set_backends
from regaug.validation.results import check_results_file, print_results, result_row, write_results
from regaug.validation.widths import networks_at_widths


def main(argv=None):
    """Evaluates what the command line asks for, writes the results file and prints the results.

    Args:
        argv: The arguments (default: the command line).
    """
    args = parse_validate(argv)
    check_results_file(args)
    set_backends(args)
    jobs = find_jobs(args)
    if jobs:
        results = validate_all(validate, args, jobs)
    else:
        rows = with_retry(validate, args) if args.retry else validate(args)
        results = rows if args.width else rows[0]
    if args.results_file:
        write_results(args.results_file, results, args.results_format)
    print_results(results)


def validate(args):
    """Evaluates one model.

    Args:
        args: The options; `args.model` and `args.checkpoint` name a single model.

    Returns:
        List of result rows (dicts): one for each `--width`, a single one without the option.
    """
    random_seed(args.seed)
    device = torch.device(args.device)
    precision = Precision(args, device)

    model = build_model(args)
    num_classes = model.num_classes
    model, data_config = fit_to_input(args, model)
    data = EvaluationData(args, data_config, num_classes=num_classes, device=device, precision=precision)

    rows = []
    for network, columns in networks_at_widths(args, model, data):
        num_params = num_parameters(network)
        network = prepare(args, network, device=device, dtype=precision.model_dtype)
        warm_up(args, network, data)
        metrics = evaluate(args, network, data)
        rows.append(result_row(args, metrics, data_config, num_params, columns))
    return rows


if __name__ == '__main__':
    cli.run(main)
