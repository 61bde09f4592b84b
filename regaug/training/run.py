"""A training run: everything it consists of, built in the order in which timm's script builds it."""

import logging
import os
from argparse import Namespace
from datetime import datetime
from typing import Any

from timm.data import resolve_data_config
from timm.models import safe_model_name
from timm.optim import create_optimizer_v2, optimizer_kwargs
from timm.utils import get_outdir, random_seed

from regaug.data.channels import fit_channels, input_channels
from regaug.data.datasets import check_classes, check_data, create_datasets
from regaug.data.loaders import TrainLoader, create_eval_loader
from regaug.data.workers import leave_signals_to_main
from regaug.device import Precision, prepare_device
from regaug.errors import OptionError
from regaug.files import read_checkpoint, write_whole
from regaug.methods import create_methods
from regaug.options import args_as_yaml
from regaug.training.checkpoints import Saver
from regaug.training.criterion import create_criterion
from regaug.training.engine import Engine, updates_per_epoch
from regaug.training.folder import check_newest, check_unused, check_writable, clear, lock, unlock
from regaug.training.interrupt import StopRequest, command_to_go_on
from regaug.training.loop import evaluate
from regaug.training.model import build_model, check_input_size, prepare_model, resolve_learning_rate
from regaug.training.phases import phase_at, refine_lr, set_learning_rate
from regaug.training.pictures import create_pictures
from regaug.training.report import Report
from regaug.training.resume import Resumed, newest_for_all, next_epoch, resume, resume_ema
from regaug.training.schedule import advance_schedule, start_schedule
from regaug.training.summary import Summary
from regaug.training.task import create_task, fit_teacher
from regaug.training.updates import Updater
from regaug.training.wandb_log import WandbLog

_logger = logging.getLogger('train')


class Run:
    """The parts of a run.

    Args:
        args: training options; the steps add to them what timm's script adds.
    """

    def __init__(self, args: Namespace):
        self.args = args
        self.config = args_as_yaml(args)
        self.given_classes = args.num_classes is not None
        self.output_dir = self.saver = self.summary = self.wandb_log = self.phase = self.lock = None

    def build(self):
        """Build everything, in the order in which timm's script does; nothing is written before `open_outputs`."""
        self.prepare()
        self.build_model()
        self.build_data()
        self.find_start()
        self.build_loaders()
        self.build_task()
        self.resume()
        self.wrap_model()
        self.build_schedule()
        if not (self.args.dry_run or self.finished):
            self.open_outputs()
        self.build_engine()
        return self

    @property
    def best(self) -> tuple[float | None, int | None]:
        """Metric and epoch of the best checkpoint so far."""
        return self.saver.best_metric, self.saver.best_epoch

    @property
    def finished(self) -> bool:
        """No epoch is left to train."""
        return self.start_epoch >= self.num_epochs

    def close(self):
        """End the loaders' workers, and let go of the folder."""
        self.train_data = self.eval_loader = None
        for method in self.methods:
            method.close()
        if self.lock is not None:
            unlock(self.folder, self.lock)
            self.lock = None

    def prepare(self):
        """Process group, device, number formats, random state."""
        args = self.args
        if not args.dry_run:
            check_writable(self.output, args.experiment)
        self.device = prepare_device(args)
        self.primary = args.rank == 0
        if not self.primary:
            logging.getLogger().setLevel(logging.WARNING)
        self.precision = Precision(args, self.device)
        random_seed(args.seed, args.rank)

    def build_model(self):
        args = self.args
        check_data(args)
        model = build_model(args)
        data_config = resolve_data_config(vars(args), model=model, verbose=self.primary)
        self.data_config = fit_channels(data_config, input_channels(args))
        check_input_size(model, args, self.data_config['input_size'])
        self.methods = create_methods(args, model, self.data_config)
        if args.naflex_loader:
            self.data_config['patch_size'] = model.get_patch_size() if hasattr(model, 'get_patch_size') else (16, 16)
        self.model = prepare_model(model, args, device=self.device, model_dtype=self.precision.model_dtype)
        if self.primary:
            count = sum(parameter.numel() for parameter in model.parameters())
            _logger.info(f'Model {safe_model_name(args.model)}: {count:,} parameters, {args.num_classes} classes.')

    def build_data(self):
        args = self.args
        self.train_set, self.eval_set = create_datasets(args, self.data_config)
        check_classes(self.train_set, self.eval_set, args.num_classes, given=self.given_classes)
        if self.eval_set is None:
            args.eval_metric = 'loss'
        self.decreasing = args.eval_metric == 'loss'

    def find_start(self):
        """Name the experiment, find what to resume and the epoch to start with."""
        args = self.args
        size = str(self.data_config['input_size'][-1])
        stamp = datetime.now().strftime('%Y%m%d-%H%M%S')
        self.experiment = args.experiment or '-'.join([stamp, safe_model_name(args.model), size])
        self.folder = os.path.join(self.output, self.experiment)
        overwrites = args.overwrite or args.dry_run
        resumed = Resumed(None, False)
        self.auto = args.resume == 'auto'
        if self.auto:
            ranks = dict(rank=args.rank, distributed=args.distributed)
            args.resume = newest_for_all(self.folder, finished_only=args.exact_resume, **ranks) or ''
            _logger.info(f'Resuming {args.resume}.' if args.resume else f'Nothing to resume in {self.folder}.')
        elif args.experiment and not (args.resume or overwrites):
            check_unused(self.folder, self.experiment)
        if args.resume:
            checkpoint = read_checkpoint(args.resume, '--resume', mmap=True)
            resumed = next_epoch(checkpoint, refine_only=not args.epochs)
        if resumed.interrupted:
            _logger.info(f'Epoch {resumed.epoch} was interrupted; it is repeated from its start.')
        self.start_epoch = args.start_epoch if args.start_epoch is not None else resumed.epoch or 0
        self.earlier = resumed.earlier
        if args.resume and not overwrites and self.resumes_here:
            back = self.start_epoch < (next_epoch(checkpoint).epoch or 0)
            if back or not self.auto:
                check_newest(self.folder, self.start_epoch, f'--resume {args.resume}', auto=self.auto, back=back)

    @property
    def output(self) -> str:
        return self.args.output or './output/train'

    @property
    def resumes_here(self) -> bool:
        """The checkpoint that the run goes on from lies in the run's own folder."""
        resume = self.args.resume
        return bool(resume) and os.path.realpath(os.path.dirname(resume)) == os.path.realpath(self.folder)

    def build_loaders(self):
        args = self.args
        delivery = dict(device=self.device, img_dtype=self.precision.input_dtype)
        self.train_data = TrainLoader(self.train_set, self.data_config, num_classes=args.num_classes, **delivery)
        self.train_data.use(phase_at(self.start_epoch, args))
        self.eval_loader = None
        if self.eval_set is not None:
            self.eval_loader = create_eval_loader(args, self.eval_set, self.data_config, **delivery)
            leave_signals_to_main(self.eval_loader)

    def build_task(self):
        args = self.args
        resolve_learning_rate(args, self.train_data.loader)
        criterion = create_criterion(phase_at(self.start_epoch, args))
        self.task = create_task(args, self.model, criterion, device=self.device, precision=self.precision)
        if args.kd_model_name:
            fit_teacher(args, self.task, self.data_config)
        self.optimizer = create_optimizer_v2(
            self.task.get_trainable_module(), **optimizer_kwargs(cfg=args), **args.opt_kwargs
        )
        self.updater = Updater(
            self.optimizer,
            self.task,
            loss_scaler=self.precision.loss_scaler,
            clip_grad=args.clip_grad,
            clip_mode=args.clip_mode,
        )

    def resume(self):
        """Go on from a checkpoint, if there is one."""
        args = self.args
        if args.resume:
            keep = not args.no_resume_opt
            resume(
                self.task,
                args.resume,
                optimizer=self.optimizer if keep else None,
                args=args,
                loss_scaler=self.precision.loss_scaler if keep else None,
                log_info=self.primary,
            )

    def wrap_model(self):
        """Moving average, methods, compilation and DDP, in this order."""
        args = self.args
        if args.model_ema:
            ema_device = 'cpu' if args.model_ema_force_cpu else None
            self.task.setup_ema(decay=args.model_ema_decay, use_warmup=args.model_ema_warmup, device=ema_device)
            if args.resume:
                updates = updates_per_epoch(self.train_data.loader, args.grad_accum_steps)
                resume_ema(self.task, args.resume, earlier_updates=self.earlier * updates)
        self.task.use(self.methods)
        if args.torchcompile:
            self.task.compile(backend=args.torchcompile, mode=args.torchcompile_mode)
            self.task.compile_ema(backend=args.torchcompile, mode=args.torchcompile_mode)
        self.eval_model = self.task.get_eval_model()
        if args.distributed:
            device_ids = [self.device] if self.device.type == 'cuda' else None
            self.task.prepare_distributed(device_ids=device_ids, broadcast_buffers=not args.no_ddp_bb)
            if args.model_ema and not args.resume:
                self.task.update_ema(step=0)  # a copy of the weights, which DDP has only now made the first process's

    def build_schedule(self):
        args = self.args
        updates = updates_per_epoch(self.train_data.loader, args.grad_accum_steps)
        self.scheduler, main_epochs = start_schedule(
            args, self.optimizer, self.start_epoch, updates_per_epoch=updates, decreasing=self.decreasing
        )
        self.first_refining, self.num_epochs = main_epochs, main_epochs + args.refine_epochs

    def advance_schedule(self, epoch: int):
        """Give the learning rate that the schedule has at the start of an epoch."""
        updates = updates_per_epoch(self.train_data.loader, self.args.grad_accum_steps)
        advance_schedule(self.scheduler, epoch, self.args, updates_per_epoch=updates)

    def open_outputs(self):
        """Folder, checkpoint saver, summary and W&B, on the first rank."""
        args = self.args
        if not self.primary:
            return
        try:
            self.folder = self.output_dir = get_outdir(self.folder, inc=not args.experiment)
        except OSError as error:
            raise OptionError(f'--output {args.output} --experiment {args.experiment}: {error}') from error
        if not args.experiment:
            self.experiment = os.path.basename(self.folder)  # with a number where another run began in the same second
        self.lock = lock(self.folder, self.experiment)
        if args.log_wandb:  # before anything of an earlier run goes
            mean, std = self.data_config['mean'], self.data_config['std']
            self.wandb_log = WandbLog(args, name=self.experiment, mean=mean, std=std)
        if args.overwrite:
            clear(self.folder, start_epoch=self.start_epoch if self.resumes_here else 0, keep=args.resume or None)
        self.saver = Saver(
            self.model,
            self.optimizer,
            args=args,
            amp_scaler=self.precision.loss_scaler,
            checkpoint_dir=self.output_dir,
            recovery_dir=self.output_dir,
            decreasing=self.decreasing,
            max_history=args.checkpoint_hist,
            task=self.task,
        )
        self.saver.earlier = self.earlier
        if self.resumes_here:
            self.saver.restore(args.resume)
        write_whole(os.path.join(self.output_dir, 'args.yaml'), self.config)
        self.summary = Summary(os.path.join(self.output_dir, 'summary.csv'), self.start_epoch)

    def build_engine(self):
        args = self.args
        self.stop = StopRequest(device=self.device, distributed=args.distributed)
        self.report = Report(
            args,
            num_epochs=self.num_epochs,
            primary=self.primary,
            output_dir=self.output_dir,
            pictures=create_pictures(args, self.folder, self.train_set, self.data_config) if self.primary else None,
            wandb_log=self.wandb_log,
        )
        self.engine = Engine(
            self.task,
            self.updater,
            args,
            device=self.device,
            precision=self.precision,
            stop=self.stop,
            report=self.report,
            scheduler=self.scheduler,
            save_recovery=self.saver.save_recovery if self.saver and args.recovery_interval else None,
        )

    @property
    def reseeds(self) -> bool:
        """Every generator is seeded by the epoch at its start."""
        return self.args.exact_resume

    def evaluate(self, epoch: int) -> dict[str, float] | None:
        """Metrics on the evaluation data, of the moving average where there is one; None without such data."""
        return evaluate(self)

    def command_to_go_on(self, checkpoint: str | None, *, written: bool) -> str:
        """How to go on after an interruption, from a checkpoint if there is one, which this run has written or not."""
        return command_to_go_on(self.experiment, checkpoint, written=written, auto=self.auto)

    def start_phase(self, phase: Any):
        """Switch loader, criterion, methods and learning rate to what holds in a phase, if it is another one."""
        self.train_data.use(phase)
        if phase == self.phase:
            return
        self.phase = phase
        if phase.refining:
            self.scheduler = self.engine.scheduler = None
            set_learning_rate(self.optimizer, refine_lr(self.args))
        self.task.start_phase(phase, create_criterion(phase).to(self.device))
        self.report.start_phase(phase)
