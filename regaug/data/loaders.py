"""Mixing and loaders: timm's factories, called with the options that hold in a phase."""

from argparse import Namespace
from dataclasses import replace
from typing import Any

import torch
from timm.data import AugMixDataset, FastCollateMixup, Mixup, create_loader, create_naflex_loader
from timm.data.naflex_mixup import NaFlexMixup

from regaug.data.samples import Views
from regaug.data.subsets import RepeatedSamples
from regaug.data.transforms import (
    TORCHVISION_POLICIES,
    timm_policy,
    use_pad_crop,
    use_torchvision_policy,
    weaken_policies,
)
from regaug.data.workers import leave_signals_to_main
from regaug.errors import OptionError


def mixing_active(options: Namespace):
    """True if the options ask for timm's Mixup or CutMix."""
    return options.mixup > 0 or options.cutmix > 0 or options.cutmix_minmax is not None


def create_mixup(phase: Any, num_classes: int):
    """timm's mixing in a phase: a collate function, a function on batches, or None.

    Returns:
        (collate_fn, mixup_fn), at least one of which is None; with the NaFlex loader the function works on the list
        of samples inside the data set.
    """
    options = phase.options
    if not mixing_active(options) or not phase.loader_mixes:
        return None, None
    mixup_args = dict(
        mixup_alpha=options.mixup,
        cutmix_alpha=options.cutmix,
        cutmix_minmax=options.cutmix_minmax,
        prob=options.mixup_prob,
        switch_prob=options.mixup_switch_prob,
        mode=options.mixup_mode,
        label_smoothing=options.smoothing,
        num_classes=num_classes,
        multi_label=options.task == 'multilabel',
    )
    if options.naflex_loader:
        del mixup_args['mode'], mixup_args['cutmix_minmax']
        return None, NaFlexMixup(**mixup_args)
    mixup_class = Mixup if options.no_prefetcher else FastCollateMixup
    mixup_fn = mixup_class(**mixup_args)
    mixup_fn.mixup_enabled = phase.mixing
    return (None, mixup_fn) if options.no_prefetcher else (mixup_fn, None)


def create_train_loader(
    phase: Any, dataset: Any, data_config: dict[str, Any], *, device: torch.device, img_dtype: Any, num_classes: int
):
    """The training loader of a phase.

    Args:
        phase: `training.phases.Phase`.
        dataset: training set as `create_datasets` gives it.
        data_config: timm's data configuration.
        device: where batches are delivered.
        img_dtype: number format of the images there.
        num_classes: classes of soft targets.

    Returns:
        (loader, mixup_fn): timm's loader, and timm's mixing to be applied to each batch in the loop, or None.
    """
    options = phase.options
    collate_fn, mixup_fn = create_mixup(phase, num_classes)
    if not phase.normalises:  # whoever does, casts too
        channels = data_config['input_size'][0]
        img_dtype = torch.float32
        data_config = {**data_config, 'mean': (0.0,) * channels, 'std': (1.0,) * channels}
    train_interpolation = options.train_interpolation or data_config['interpolation']
    common = dict(
        batch_size=options.batch_size,
        is_training=True,
        no_aug=options.no_aug,
        re_prob=options.reprob,
        re_mode=options.remode,
        re_count=options.recount,
        re_split=options.resplit,
        train_crop_mode=options.train_crop_mode,
        scale=options.scale,
        ratio=options.ratio,
        hflip=options.hflip,
        vflip=options.vflip,
        color_jitter=options.color_jitter,
        color_jitter_prob=options.color_jitter_prob,
        grayscale_prob=options.grayscale_prob,
        gaussian_blur_prob=options.gaussian_blur_prob,
        auto_augment=timm_policy(options.aa),
        num_aug_repeats=options.aug_repeats,
        num_aug_splits=options.aug_splits,
        interpolation=data_config['interpolation'] if options.no_aug else train_interpolation,
        mean=data_config['mean'],
        std=data_config['std'],
        num_workers=options.workers,
        distributed=options.distributed,
        pin_memory=options.pin_mem,
        img_dtype=img_dtype,
        device=device,
        use_prefetcher=not options.no_prefetcher,
        worker_seeding=options.worker_seeding,
        persistent_workers=not options.exact_resume,
    )
    if options.naflex_loader:
        loader = create_naflex_loader(
            dataset,
            patch_size=None if options.naflex_patch_sizes else data_config['patch_size'],
            patch_size_choices=options.naflex_patch_sizes,
            patch_size_choice_probs=options.naflex_patch_size_probs,
            train_seq_lens=options.naflex_train_seq_lens,
            mixup_fn=mixup_fn,
            rank=options.rank,
            world_size=options.world_size,
            channels=data_config['input_size'][0],
            patchify_channels_last=not options.naflex_patchify_channels_first,
            **common,
        )
        return loader, None
    if options.aug_splits > 1:
        dataset = AugMixDataset(dataset, num_splits=options.aug_splits)
    if phase.num_views > 1:
        dataset = Views(dataset, phase.num_views)
    loader = create_loader(
        dataset,
        input_size=data_config['input_size'],
        collate_fn=collate_fn,
        use_multi_epochs_loader=options.use_multi_epochs_loader,
        input_size_choices=options.train_img_sizes,
        batch_size_choices=options.train_batch_sizes,
        batch_choice_weights=options.train_size_probs,
        batch_choice_seed=options.seed,
        batch_choice_schedule=options.train_size_schedule,
        batch_schedule_epochs=options.epochs if options.train_size_schedule == 'progressive' else None,
        batch_schedule_spread=options.train_size_schedule_spread,
        batch_schedule_random_mix=options.train_size_random_mix,
        num_batches=options.train_batches_per_epoch,
        **common,
    )
    if options.updates_per_epoch:
        loader.batch_sampler.sampler = RepeatedSamples(
            len(dataset),
            options.updates_per_epoch * options.grad_accum_steps * options.batch_size,
            seed=options.seed,
            rank=options.rank,
            world_size=options.world_size,
        )
    if options.aa in TORCHVISION_POLICIES:
        use_torchvision_policy(loader.dataset, options.aa, data_config, interpolation=train_interpolation)
    if options.pad_crop:
        use_pad_crop(dataset, data_config, padding=phase.padding, mode=options.pad_mode)
    if options.aa and phase.intensity < 1:
        weaken_policies(loader.dataset, phase.intensity)
    return loader, mixup_fn


def create_eval_loader(
    args: Namespace, dataset: Any, data_config: dict[str, Any], *, device: torch.device, img_dtype: Any
):
    """The evaluation loader, as timm's script sets it up."""
    workers = args.workers
    if args.distributed and ('tfds' in args.dataset or 'wds' in args.dataset):
        workers = min(2, workers)  # these readers pad every worker's share to equal length
    common = dict(
        batch_size=args.validation_batch_size or args.batch_size,
        is_training=False,
        interpolation=data_config['interpolation'],
        mean=data_config['mean'],
        std=data_config['std'],
        num_workers=workers,
        distributed=args.distributed,
        crop_pct=data_config['crop_pct'],
        pin_memory=args.pin_mem,
        img_dtype=img_dtype,
        device=device,
        use_prefetcher=not args.no_prefetcher,
        persistent_workers=not args.exact_resume,
    )
    if args.naflex_loader:
        return create_naflex_loader(
            dataset,
            patch_size=data_config['patch_size'],
            max_seq_len=args.naflex_max_seq_len,
            channels=data_config['input_size'][0],
            patchify_channels_last=not args.naflex_patchify_channels_first,
            **common,
        )
    return create_loader(dataset, input_size=data_config['input_size'], **common)


class TrainLoader:
    """The training loader of the current phase, built anew when a phase changes what the loader does.

    Args:
        dataset: training set as `create_datasets` gives it.
        data_config: timm's data configuration.
        device: where batches are delivered.
        img_dtype: number format of the images there.
        num_classes: classes of soft targets.

    Attributes:
        loader: timm's loader.
        mixup_fn: timm's mixing for each batch in the loop, or None.
    """

    def __init__(
        self, dataset: Any, data_config: dict[str, Any], *, device: torch.device, img_dtype: Any, num_classes: int
    ):
        self.dataset = dataset
        self.data_config = data_config
        self.fixed = dict(device=device, img_dtype=img_dtype, num_classes=num_classes)
        self.phase = None
        self.loader = self.mixup_fn = None

    def use(self, phase: Any):
        """Make the loader that of a phase; worker processes of the old one end first.

        With the mixing done in the loop, switching it needs no new loader, as in timm.

        Returns:
            True if a loader was built.
        """
        previous, self.phase = self.phase, phase.for_loader
        if self.phase == previous:
            return False
        if self.mixup_fn is not None and replace(self.phase, mixing=previous.mixing) == previous:
            self.mixup_fn.mixup_enabled = phase.mixing
            return False
        self.loader = self.mixup_fn = None  # the last references: the old workers are shut down here
        self.loader, self.mixup_fn = create_train_loader(phase, self.dataset, self.data_config, **self.fixed)
        leave_signals_to_main(self.loader)
        if len(self.loader) == 0:
            raise OptionError(
                f'--batch-size {phase.options.batch_size}: the training set ({len(self.dataset)} images) '
                f'does not fill one batch on each of {phase.options.world_size} processes; '
                f'--updates-per-epoch takes images again until it does.'
            )
        return True

    def set_epoch(self, epoch: int):
        """Tell data set and samplers which epoch starts, for their shuffling."""
        batches = self.loader.batch_sampler
        samplers = (batches, getattr(batches, 'sampler', None), self.loader.sampler)
        sampler = next((part for part in samplers if hasattr(part, 'set_epoch')), None)
        for part in (self.loader.dataset, sampler):
            if hasattr(part, 'set_epoch'):
                part.set_epoch(epoch)
