"""`key=value` pairs on the command line."""

from timm.utils import ParseKwargs

from regaug.errors import OptionError


class KeyValues(ParseKwargs):
    """timm's action; a pair without '=' is a clear error instead of a stack trace."""

    def __call__(self, parser, namespace, values, option_string=None):
        for value in values:
            if value and '=' not in value:
                raise OptionError(f'{option_string} {value}: pairs are written key=value')
        super().__call__(parser, namespace, values, option_string)
