"""What is compared: a YAML file that names a base, variants of it and seeds, checked before any run starts."""

import difflib
import re
import shlex
from argparse import Namespace
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from regaug.errors import OptionError, one_line
from regaug.options import parse_train

_NAME = re.compile(r'[A-Za-z0-9][A-Za-z0-9_.+-]*')
_KEYS = {
    'title': (str, ''),
    'config': (str, ''),
    'digits': (int, 0),
    'data': (str, ''),
    'options': (str, ''),
    'base': (str, None),
    'variants': (dict, None),
    'seeds': (int, None),
    'equal_time': (list, []),
}
_OWN = ('--data-dir', '--seed', '--label-split', '--output', '--experiment', '--resume', '--exact-resume')
LONGER = '{base}-time-of-{method}'


@dataclass(frozen=True)
class Spec:
    """A comparison.

    Attributes:
        title: Heading of the report.
        config: Recipe that all variants start from, or ''.
        digits: Training images of each class of the embedded digits, the others being for testing; 0: the data of
            `--data-dir`.
        data: Name of the data of `--data-dir`, by which runs on other data are told from these; '' where not known.
        options: Options of train.py that all variants share.
        base: Name of the variant that the others are compared with.
        variants: Options of train.py by name.
        seeds: Number of seeds, from 0 on; each chooses the training images and the start.
        equal_time: Variants whose time the base gets too, as a row of its own.
    """

    title: str
    config: str
    digits: int
    data: str
    options: str
    base: str
    variants: dict[str, str]
    seeds: int
    equal_time: tuple[str, ...]

    @property
    def rows(self) -> list[str]:
        """Names of all rows of the table: the variants, then the base for the time of others."""
        return [*self.variants, *(self.longer(method) for method in self.equal_time)]

    def longer(self, method: str) -> str:
        """Name of the row of the base that gets the time of a method."""
        return LONGER.format(base=self.base, method=method)

    def argv(self, variant: str) -> list[str]:
        """Arguments of train.py for a variant, without data, seed and folders."""
        config = ['-c', self.config] if self.config else []
        return [*config, *shlex.split(self.options), *shlex.split(self.variants[variant])]

    def line(self, words: list[str]) -> str:
        """Arguments of train.py as one line, after the number of digits or the name of the data."""
        data = {'digits': self.digits, 'data': self.data}
        return shlex.join([*(f'{key}={value}' for key, value in data.items() if value), *words])

    def matches(self, row: str, options: str) -> bool:
        """Whether a run of a row was made with what this spec says.

        Args:
            row: Its name; a longer base's number of epochs, which follows from a measurement, may be any.
            options: The run's options as one line; in files of older versions they do not name the data.
        """
        spec, words = self, shlex.split(options)
        named = bool(words) and words[0].startswith('data=')
        if not (named and self.data):
            spec, options = replace(self, data=''), shlex.join(words[named:])
        if row in self.variants:
            return options == spec.line(self.argv(row))
        base = re.escape(spec.line(self.argv(self.base)))
        return bool(re.fullmatch(rf'{base} --epochs \d+ --val-interval \d+', options))

    def args(self, variant: str) -> Namespace:
        """The options of a variant as train.py parses them."""
        return parse_train([*self.argv(variant), '--data-dir', '.'])


def read_spec(path: str, *, seeds: int | None = None, data_dir: str = '') -> Spec:
    """Reads and checks a spec.

    Args:
        path: The YAML file.
        seeds: Number of seeds in place of the file's.
        data_dir: Folder of the data, which names them where the file and the embedded digits do not.

    Raises:
        OptionError: A file, key, value or option of train.py that cannot be used; one line that names it.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding='utf-8'))
    except OSError as error:
        raise OptionError(f'{path}: cannot be read ({error.strerror}).') from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise OptionError(f'{path}: no valid YAML ({one_line(error)}).') from None
    if not isinstance(content, dict):
        raise OptionError(f'{path}: expected keys ({", ".join(_KEYS)}), got {content!r}.')
    values = checked_values(path, content)
    if seeds is not None:
        values['seeds'] = seeds
    if data_dir and not values['digits']:
        values['data'] = values['data'] or Path(data_dir).absolute().name
    spec = Spec(**{**values, 'equal_time': tuple(values['equal_time'])})
    check_names(path, spec)
    check_options(path, spec)
    return spec


def checked_values(path: str, content: dict) -> dict:
    """Values of all keys, each of its type.

    Raises:
        OptionError: An unknown or missing key, or a value of another type.
    """
    for key in content:
        if key not in _KEYS:
            near = difflib.get_close_matches(str(key), _KEYS, n=1)
            raise OptionError(f'{path}: unknown key {key!r}{f"; did you mean {near[0]}?" if near else "."}')
    values = {}
    for key, (kind, default) in _KEYS.items():
        value = content.get(key, default)
        if value is None:
            raise OptionError(f'{path}: {key} is missing.')
        if not isinstance(value, kind) or isinstance(value, bool):
            raise OptionError(f'{path}: {key}: expected {kind.__name__}, got {value!r}.')
        values[key] = value
    values['variants'] = {name: '' if text is None else text for name, text in values['variants'].items()}
    return values


def check_names(path: str, spec: Spec):
    """Checks that names can be folders, that what refers to a variant finds it, and that there is something to run.

    Raises:
        OptionError: Otherwise.
    """
    for name, text in spec.variants.items():
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise OptionError(f'{path}: variants: {name!r} must be letters, digits and . _ + - (it names a folder).')
        if not isinstance(text, str):
            raise OptionError(f'{path}: variants: {name}: expected options of train.py, got {text!r}.')
    for key, names in (('base', [spec.base]), ('equal_time', spec.equal_time)):
        for name in names:
            if name not in spec.variants:
                raise OptionError(
                    f'{path}: {key}: there is no variant {name!r} (there are {", ".join(spec.variants)}).'
                )
    if spec.base in spec.equal_time:
        raise OptionError(f'{path}: equal_time: {spec.base!r} is the base itself.')
    if len(set(spec.rows)) < len(spec.rows):
        raise OptionError(f'{path}: equal_time: two rows would have the same name ({", ".join(spec.rows)}).')
    if spec.seeds < 1:
        raise OptionError(f'{path}: seeds: {spec.seeds} must be 1 or more.')
    if spec.digits < 0:
        raise OptionError(f'{path}: digits: {spec.digits} must be 0 or more.')


def check_options(path: str, spec: Spec):
    """Lets train.py's parser see the options of every variant.

    Raises:
        OptionError: The first refusal, with the variant's name, or an option that belongs to the harness.
    """
    for name in spec.variants:
        try:
            for word in spec.argv(name):
                if word.split('=')[0] in _OWN:
                    raise OptionError(f'{word.split("=")[0]} is set by the harness.')
            if not spec.args(name).val_split:
                raise OptionError("--val-split '': there is nothing to test on.")
        except (OptionError, ValueError) as error:  # shlex raises ValueError
            raise OptionError(f'{path}: variant {name}: {error}') from None
    if spec.equal_time and not spec.args(spec.base).epochs:
        raise OptionError(f'{path}: equal_time: the base has --epochs 0, which cannot be made longer.')


def difference_to(spec: Spec, other: dict) -> str:
    """Says in what an earlier spec differs so that its runs cannot stand beside those of this one.

    More variants, fewer variants and another number of seeds are no difference; nor is data that one does not name.

    Args:
        spec: The spec.
        other: The earlier one's values.

    Returns:
        The differing key, or ''.
    """
    for key in ('config', 'digits', 'options', 'base'):
        if other.get(key) != getattr(spec, key):
            return key
    if spec.data and other.get('data', '') not in ('', spec.data):
        return f'data: {other["data"]}'
    earlier = other.get('variants', {})
    changed = [name for name, text in spec.variants.items() if earlier.get(name, text) != text]
    return f'variant {changed[0]}' if changed else ''
