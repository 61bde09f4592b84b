"""Options of devices, number formats and processes."""

from regaug.options.option import Group, Option, flag

DEVICE = Group(
    'Device parameters',
    (
        Option('--device', str, 'cuda', 'device to train on: cpu, cuda, cuda:1, mps, ...'),
        flag('--amp', 'mixed precision by autocast'),
        Option('--amp-dtype', str, 'float16', 'number format under --amp: float16 or bfloat16'),
        Option('--model-dtype', str, None, 'number format of the weights themselves, in place of --amp'),
        flag('--no-ddp-bb', 'do not broadcast buffers from rank 0 at each forward pass'),
        flag('--synchronize-step', 'wait for the device at the end of each update'),
        Option('--local_rank', int, 0, 'local rank, where the launcher gives it as an argument'),
        Option('--device-modules', str, None, 'Python modules to import for further device backends', nargs='+'),
    ),
)
