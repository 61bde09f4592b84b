#!/usr/bin/env python
"""Evaluate a trained image classifier, at full width or at several widths, and report its accuracy.

    python validate.py /data/imagenet --model resnet50 --checkpoint output/run/model_best.pth.tar

The options and the results are those of timm's validation script. A folder as `--checkpoint`, or a wildcard, `all` or
a file of names as `--model`, evaluates many models. `--width 1.0 0.9` evaluates sub-networks of a model trained with
GradAug, one result row each. Further evaluations (`--help` lists them) add columns, or a row for each condition.
"""

import logging
from argparse import Namespace
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from timm.utils import init_distributed_device, random_seed

from regaug import cli
from regaug.data.splits import check_evaluation_split
from regaug.device import Precision
from regaug.evaluators import create_evaluators
from regaug.options import parse_validate
from regaug.validation.bulk import find_jobs, validate_all, with_retry
from regaug.validation.data import EvaluationData
from regaug.validation.export import create_export
from regaug.validation.loop import evaluate, gradient_mode, warm_up
from regaug.validation.model import build_model, fit_to_input, num_parameters, prepare, set_backends
from regaug.validation.results import (
    check_results_file,
    log_table,
    log_to_wandb,
    print_results,
    result_rows,
    write_results,
)
from regaug.validation.widths import networks_at_widths


def main(argv: Sequence[str] | None = None):
    """Evaluate what the command line asks for, write the results file and print the results.

    Args:
        argv: The arguments (default: the command line).
    """
    args = parse_validate(argv)
    check_results_file(args)
    check_evaluation_split(args)
    init_distributed_device(args)
    if args.rank:
        logging.getLogger().setLevel(logging.WARNING)
    set_backends(args)
    jobs = find_jobs(args)
    args.several_networks = bool(jobs) or len(args.width or ()) > 1
    if jobs:
        rows = results = validate_all(validate, args, jobs)
    else:
        rows = with_retry(validate, args) if args.retry else validate(args)
        results = rows if args.width or len(rows) > 1 else rows[0]
    if args.rank == 0:
        if len(rows) > 1:
            log_table(rows)
        if args.results_file:
            write_results(args.results_file, results, args.results_format)
        print_results(results)
        if args.log_wandb:
            log_to_wandb(args, rows)
    if args.distributed:
        dist.destroy_process_group()


def validate(args: Namespace) -> list[dict[str, Any]]:
    """Evaluate one model.

    Args:
        args: The options; `args.model` and `args.checkpoint` name a single model.

    Returns:
        Result rows (dicts): for each `--width` (without the option for the model itself) one, and one for each
        condition that it was evaluated under.
    """
    random_seed(args.seed)
    device = torch.device(args.device)
    precision = Precision(args, device)

    model = build_model(args)
    num_classes = model.num_classes
    model, data_config = fit_to_input(args, model)
    data = EvaluationData(args, data_config, num_classes=num_classes, device=device, precision=precision)
    evaluators = create_evaluators(args) + create_export(args)
    for evaluator in evaluators:
        evaluator.check(model, data)

    rows = []
    for network, columns in networks_at_widths(args, model, data):
        num_params = num_parameters(network)
        network = prepare(args, network, device=device, dtype=precision.model_dtype)
        with gradient_mode(evaluators):
            warm_up(args, network, data)
            evaluated = evaluate(evaluators, network, data, columns.get('width'))
        if unreadable := data.count_unreadable():
            evaluated[0]['unreadable'] = unreadable
        rows += result_rows(args, evaluated, data_config, num_params, columns)
    return rows


if __name__ == '__main__':
    cli.run(main)
