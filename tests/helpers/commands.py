"""Command lines in documents: found in Markdown and in headers of recipes, and prepared so that they can be parsed."""

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
SCRIPTS = ('train.py', 'validate.py', 'regaug.detection')
FENCE = re.compile(r'^ *```(\w*)[^\n]*\n(.*?)^ *```', re.MULTILINE | re.DOTALL)
OPERATORS = set('&|;()<>')
# Options whose value is a file that only the reader has.
FILES = ('--resume', '--initial-checkpoint', '--pretrained-path', '--checkpoint', '--real-labels', '--valid-labels')


def shell_blocks(markdown):
    """The fenced blocks of a Markdown text that hold shell commands."""
    return [body for language, body in FENCE.findall(markdown) if language in ('', 'bash', 'sh', 'shell', 'console')]


def commands(block):
    """The simple commands of a piece of shell, each as a list of words, comments and prompts left out."""
    found = []
    for line in block.replace('\\\n', ' ').splitlines():
        lexer = shlex.shlex(line.strip().removeprefix('$ '), posix=True, punctuation_chars='&|;()<>')
        lexer.commenters = '#'
        lexer.whitespace_split = True
        words = []
        for word in lexer:
            if set(word) <= OPERATORS:
                found.append(words)
                words = []
            else:
                words.append(word)
        found.append(words)
    return [words for words in found if words]


def script_of(words):
    """Place of the name of one of our scripts among the words of a command, or None."""
    return next((index for index, word in enumerate(words) if Path(word).name in SCRIPTS), None)


def our_commands(blocks):
    """(script, words before its name, its arguments) of every run of one of our scripts."""
    found = []
    for block in blocks:
        for words in commands(block):
            index = script_of(words)
            if index is not None and words[0] not in ('cat', 'less', 'ls', 'git', 'ruff'):
                found.append((Path(words[index]).name, words[:index], words[index + 1 :]))
    return found


def with_existing_files(arguments, folder, file):
    """Arguments of our scripts with the reader's data and files replaced by those of a test.

    Args:
        folder: takes the place of the data folder; the digits, which come with regaug, have none.
        file: takes the place of every file named by one of `FILES` that is not there.
    """
    replaced = list(arguments)
    for index, word in enumerate(replaced[:-1]):
        value = replaced[index + 1]
        if word in FILES and value != 'auto' and not (ROOT / value).is_file():
            replaced[index + 1] = str(file)
    return replaced if any('digits' in word for word in arguments) else [*replaced, '--data-dir', str(folder)]
