"""Train a detector of torchvision on a backbone of timm, plain or with GradAug.

python -m regaug.detection --data-dir /data/coco -c regaug/recipes/detection/mask_rcnn_coco_gradaug.yaml
"""

import logging
import os
import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import torch
from timm.scheduler import MultiStepLRScheduler
from torch import nn

from regaug import cli
from regaug.detection import as_config, parse
from regaug.detection.data import Detections, Split, TrainBatches
from regaug.detection.evaluate import SHOWN, average_precision, can_measure, over_ranks, predict, save_picture
from regaug.detection.model import DetectionTask, create_detector, create_gradaug
from regaug.errors import OptionError
from regaug.training.dry_run import dry_run
from regaug.training.engine import updates_per_epoch
from regaug.training.loop import train
from regaug.training.model import resolve_learning_rate
from regaug.training.report import label
from regaug.training.run import Run
from regaug.training.updates import Updater

_logger = logging.getLogger('train')
_WARMUP_SHARE = 1e-3  # of the learning rate, with which a warm-up starts


class DetectionRun(Run):
    """A run whose model is a detector; its parts and their order are those of train.py."""

    def __init__(self, args: Namespace):
        super().__init__(args)
        self.config = as_config(args)
        self.masks = args.detector == 'mask'

    @property
    def output(self) -> str:
        return self.args.output or './output/detection'

    def build_model(self):
        """Data, which tells the number of classes, then the detector."""
        args = self.args
        split = Split(args.data_dir, args.train_split, option='--train-split', masks=self.masks)
        self.train_set, self.eval_set = Detections(split, masks=self.masks, seed=args.seed), None
        if args.val_split:
            val = Split(args.data_dir, args.val_split, option='--val-split', masks=self.masks)
            if list(val.categories) != list(split.categories):
                raise OptionError(f'--val-split {args.val_split}: its categories are not those of {args.train_split}.')
            self.eval_set = Detections(val, masks=self.masks)
        measures = self.eval_set is not None and can_measure()
        if self.eval_set is not None and not measures and self.primary:
            _logger.warning('No average precision is measured: pip install -r regaug/detection/requirements.txt')
        args.eval_metric = 'box_ap' if measures else 'loss'
        self.decreasing = not measures
        args.num_classes = len(split.categories) + 1
        detector = create_detector(args, args.num_classes)
        self.methods = []
        if args.gradaug:
            gradaug, text = create_gradaug(args, detector)
            self.methods = [gradaug]
            for line in text.splitlines() if self.primary else ():
                _logger.info(f'GradAug: {line}')
        self.data_config = {'input_size': (3, args.size, args.max_size)}
        self.data_config |= {name: getattr(detector.transform, f'image_{name}') for name in ('mean', 'std')}
        self.model = detector.to(self.device)
        if self.primary:
            count = sum(parameter.numel() for parameter in detector.parameters())
            kind = type(detector).__name__
            _logger.info(f'{kind} on {args.backbone}: {count:,} parameters, {len(split.categories)} categories.')

    def build_data(self):
        """Done before the model."""

    def build_loaders(self):
        self.train_data, self.eval_loader = TrainBatches(self.train_set, self.args, self.device), None

    def build_task(self):
        args = self.args
        resolve_learning_rate(args, self.train_data)
        self.task = DetectionTask(self.model, nn.Identity(), device=self.device, verbose=False)
        self.task.autocast, self.task.rank = self.precision.autocast, args.rank
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), lr=args.lr, momentum=args.momentum, weight_decay=args.weight_decay
        )
        clipping = dict(clip_grad=args.clip_grad, clip_mode=args.clip_mode)
        self.updater = Updater(self.optimizer, self.task, loss_scaler=self.precision.loss_scaler, **clipping)

    def build_schedule(self):
        """A linear warm-up, then a tenth of the rate after each milestone, by updates."""
        args = self.args
        updates = updates_per_epoch(self.train_data, args.grad_accum_steps)
        self.scheduler = MultiStepLRScheduler(
            self.optimizer,
            decay_t=[round(epoch * updates) + 1 for epoch in args.decay_milestones],  # timm decays one too early
            decay_rate=0.1,
            warmup_t=args.warmup_updates,
            warmup_lr_init=_WARMUP_SHARE * args.lr,
            warmup_prefix=False,
            t_in_epochs=False,
        )
        self.first_refining = self.num_epochs = args.epochs
        self.advance_schedule(self.start_epoch)

    def advance_schedule(self, epoch: int):
        self.scheduler.step_update(epoch * updates_per_epoch(self.train_data, self.args.grad_accum_steps))

    def build_engine(self):
        super().build_engine()
        self.report.output_dir = self.report.pictures = None  # training batches are no grids of images

    @property
    def reseeds(self) -> bool:
        return True  # so a resumed run is the same

    def command_to_go_on(self, checkpoint: str | None, *, written: bool) -> str:
        rest = f'--resume {checkpoint}' if checkpoint else '--overwrite'
        return f'the same command and --experiment {self.experiment} {rest}'

    def evaluate(self, epoch: int, limit: int | None = None) -> dict[str, float] | None:
        """Average precision of the detector, and the picture of `--save-images`.

        Args:
            limit: look at so many images only.

        Returns:
            The metrics on the first rank; None elsewhere, or where nothing measures.
        """
        args, start = self.args, time.perf_counter()
        if self.eval_set is None or not (can_measure() or args.save_images):
            return None
        shown = SHOWN if args.save_images and self.primary else 0
        count = min(len(self.eval_set), limit or len(self.eval_set))
        if not can_measure():
            count = min(count, SHOWN * args.world_size)
        where = dict(device=self.device, precision=self.precision, keep=shown)
        indices = range(args.rank, count, args.world_size)
        results, kept = predict(self.eval_model, self.eval_set, indices, args, **where)
        results = over_ranks(results, args.distributed)
        metrics = None
        if kept:
            path = Path(self.folder) / 'pictures' / f'epoch-{epoch}.png'
            save_picture(path, kept, list(self.eval_set.split.categories.values()))
        if can_measure() and self.primary:
            image_ids = [entry['id'] for entry in self.eval_set.images[:count]]
            metrics = average_precision(results, self.eval_set.split, image_ids, masks=self.masks)
            _logger.info('Test: ' + '  '.join(f'{label(name)}: {value:.2f}' for name, value in metrics.items()))
        self.report.eval_seconds.update(time.perf_counter() - start)
        return metrics


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    run = DetectionRun(args).build()
    try:
        if args.dry_run:
            return try_out(run)
        if run.finished:
            _logger.info(f'Nothing is left to train: {run.start_epoch} of {run.num_epochs} epochs are done.')
            run.evaluate(run.start_epoch - 1)
            return 0
        run.stop.install()
        return train(run)
    finally:
        run.close()


def try_out(run: DetectionRun) -> int:
    """Run an evaluation batch, then what train.py's `--dry-run` does; write nothing but the pictures asked for."""
    args = run.args
    count = (args.validation_batch_size or args.batch_size) * args.world_size
    run.evaluate(run.start_epoch, limit=count)
    if run.primary and run.report.eval_seconds.count:
        _logger.info(f'Dry run: up to {count} images evaluated in {run.report.eval_seconds.val:.1f} s')
    return dry_run(run)


if __name__ == '__main__':
    sys.argv[0] = f'python -m regaug.{os.path.basename(os.path.dirname(__file__))}'
    cli.run(main)
