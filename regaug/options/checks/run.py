"""Loaders' seeds, logging, checkpoints, distillation, resuming."""

from argparse import Namespace

from regaug.options.checks.data import refuse_iterable
from regaug.options.checks.model import check_model_name, check_published_weights
from regaug.options.checks.require import refuse_with, require, require_one_of, require_package, spell


def check_run(args: Namespace):
    require_one_of(args, '--worker-seeding', ('all', 'part'))
    require_one_of(args, '--dist-bn', ('', 'reduce', 'broadcast'))
    require_one_of(args, '--eval-metric', ('top1', 'top5', 'loss'))


def check_wandb(args: Namespace):
    if args.log_wandb:
        require_package(args, '--log-wandb', 'wandb')
    used = args.log_wandb or not args.wandb_resume_id
    require(args, '--wandb-resume-id', used, 'works with --log-wandb only, which is not given')


def check_distillation(args: Namespace):
    if args.kd_model_name:
        check_model_name(args, '--kd-model-name')
        check_published_weights(args, '--kd-model-name', 'an untrained teacher teaches nothing')
        require_one_of(args, '--kd-loss-type', ('kl',))


def check_exact_resume(args: Namespace):
    if args.exact_resume:
        refuse_iterable(args, '--exact-resume', 'the place in a stream is not stored')
        refuse_with(args, '--exact-resume', ['--use-multi-epochs-loader'], 'its workers live on from epoch to epoch')
        stateless = args.sched != 'plateau'
        why = f'does not go with {spell(args, "--sched")} (its state is not stored)'
        require(args, '--exact-resume', stateless, why)
