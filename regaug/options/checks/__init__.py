"""Cross-checks of the options, made before anything is built or loaded.

Each check looks at one theme and raises an `OptionError` that names the option and its value. The order matters only
in that ranges come first: later checks may compute with the numbers.
"""

from argparse import Namespace

from regaug.options.checks import (
    augmentation,
    data,
    device,
    evaluations,
    gradaug,
    maxup,
    methods,
    model,
    ranges,
    run,
    schedule,
    validation,
)

TRAIN = (
    ranges.check_train_ranges,
    gradaug.check_gradaug_ranges,
    schedule.check_length,
    device.check_device_modules,
    device.check_device,
    device.check_dtypes,
    device.check_fuser,
    device.check_compile,
    device.check_torchscript,
    device.check_sync_bn,
    model.check_train_model,
    model.check_input,
    data.check_dataset,
    data.check_repeats,
    data.check_subset,
    data.check_scheduled_sizes,
    data.check_naflex,
    methods.check_methods,
    augmentation.check_transforms,
    augmentation.check_mixing,
    augmentation.check_splits,
    augmentation.check_pad_crop,
    schedule.check_optimizer,
    schedule.check_schedule,
    schedule.check_refinement,
    gradaug.check_gradaug,
    maxup.check_maxup,
    maxup.check_uada,
    run.check_run,
    run.check_wandb,
    run.check_distillation,
    run.check_exact_resume,
)
VALIDATE = (
    ranges.check_validate_ranges,
    device.check_device,
    device.check_dtypes,
    device.check_fuser,
    device.check_compile,
    validation.check_evaluated_model,
    model.check_input,
    data.check_dataset,
    validation.check_evaluation,
    validation.check_widths,
    evaluations.check,
)


def check_train(args: Namespace):
    """Checks the options of train.py.

    Raises:
        OptionError: The first one that cannot be used.
    """
    for check in TRAIN:
        check(args)


def check_validate(args: Namespace):
    """Checks the options of validate.py.

    Raises:
        OptionError: The first one that cannot be used.
    """
    for check in VALIDATE:
        check(args)
