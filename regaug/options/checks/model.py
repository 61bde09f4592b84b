"""Which model, from which weights, at which input size."""

from argparse import Namespace
from pathlib import Path

from timm.data.transforms import str_to_interp_mode
from timm.models import (
    get_deprecated_models,
    get_pretrained_cfg,
    is_model,
    is_model_pretrained,
    list_models,
    parse_model_name,
    split_model_name_tag,
)

from regaug.errors import OptionError
from regaug.options.checks.require import require, require_known, spell, value_of


def check_train_model(args: Namespace):
    check_model_name(args, '--model')
    if args.pretrained and not args.pretrained_path:
        check_published_weights(args, '--model', 'leave --pretrained out')
    for flag in ('--pretrained-path', '--initial-checkpoint'):
        check_file(args, flag)
    if args.resume != 'auto':
        check_file(args, '--resume')


def check_input(args: Namespace):
    """Sizes and statistics that timm's data configuration asserts on."""
    channels = args.in_chans or 3
    if args.input_size:
        same = args.in_chans in (None, args.input_size[0])
        require(args, '--input-size', same, f'its first number contradicts {spell(args, "--in-chans")}')
        channels = args.input_size[0]
    for flag in ('--mean', '--std'):
        value = value_of(args, flag)
        fits = value is None or len(value) in (1, channels)
        require(args, flag, fits, f'needs one value, or one for each of the {channels} input channels')
    check_interpolation(args, '--interpolation')


def check_interpolation(args: Namespace, flag: str, *, also: tuple[str, ...] = ('',)):
    """Makes sure that timm knows an interpolation, or that it is one of the words in `also`."""
    value = value_of(args, flag)
    if value in also:
        return
    try:
        str_to_interp_mode(value)
    except KeyError:
        raise OptionError(f'{spell(args, flag)}: unknown interpolation, try bilinear or bicubic') from None


def check_model_name(args: Namespace, flag: str):
    """Makes sure that timm can resolve a model name, pretrained tag included.

    What a name with the prefix `hf-hub:` stands for is known only when it is downloaded.
    """
    value = value_of(args, flag)
    try:
        source, name = parse_model_name(value)
    except ValueError as error:
        raise OptionError(f'{spell(args, flag)}: {error}') from None
    if source == 'local-dir':
        require(args, flag, (Path(name) / 'config.json').is_file(), 'there is no config.json in that folder')
    if source:
        return
    architecture, tag = split_model_name_tag(name)
    require_known(args, flag, is_model(architecture), 'model', architecture, list_models())
    removed = get_deprecated_models().get(architecture, architecture) is None
    require(args, flag, not removed, 'timm no longer has this model')
    try:
        get_pretrained_cfg(name)
    except RuntimeError:
        tags = [split_model_name_tag(tagged)[1] for tagged in list_models(f'{architecture}.*', include_tags=True)]
        raise OptionError(f'{spell(args, flag)}: unknown tag {tag!r}, there are {", ".join(tags) or "none"}') from None


def check_published_weights(args: Namespace, flag: str, otherwise: str):
    """Makes sure that weights were published for a model of timm's registry."""
    value = value_of(args, flag)
    source, name = parse_model_name(value)
    replacement = get_deprecated_models().get(name)
    published = source is not None or is_model_pretrained(replacement or name)
    require(args, flag, published, f'no pretrained weights were published for it; {otherwise}')


def check_file(args: Namespace, flag: str):
    """Makes sure that the file an option names is there, if it names one."""
    value = value_of(args, flag)
    require(args, flag, not value or Path(value).is_file(), 'there is no such file')
