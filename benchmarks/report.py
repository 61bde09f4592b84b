"""Statistics and reports of the benchmarks: markdown for reading, CSV with every single measurement."""

import csv
import os
import platform
import statistics
import subprocess
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import timm
import torch

import regaug

ROOT = Path(__file__).parent.parent
CPU = 'CPU '  # what `device_kind` begins with where training was on the processor


@dataclass(frozen=True)
class Spread:
    """Median, extremes and number of some measurements."""

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values):
        return cls(statistics.median(values), min(values), max(values), len(values))

    def text(self, digits):
        """As `median (min to max)`, each with so many decimals."""
        return f'{self.median:.{digits}f} ({self.low:.{digits}f} to {self.high:.{digits}f})'


def paired_ratios(times, base_times):
    """Ratio to the base within each round: what slows a whole round down cancels.

    Args:
        times: seconds of one configuration, one per round.
        base_times: seconds of the base in the same rounds.
    """
    return [seconds / base for seconds, base in zip(times, base_times, strict=True)]


def environment():
    """Hardware, versions and commit as (name, value) pairs; nothing that names the machine or its folders."""
    rows = [
        ('processor', f'{processor_name()}, {os.cpu_count()} logical cores, {torch.get_num_threads()} threads used'),
        ('python, torch, timm, regaug', ', '.join(versions())),
        ('commit', commit()),
        ('date', date.today().isoformat()),
    ]
    if torch.cuda.is_available():
        rows.insert(1, ('GPU', f'{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}'))
    if hasattr(os, 'getloadavg'):
        rows.append(('load average of the machine before', f'{os.getloadavg()[0]:.1f}'))
    return rows


def versions():
    return platform.python_version(), torch.__version__, timm.__version__, regaug.__version__


def processor_name():
    """The processor's name as Linux tells it, else what Python knows."""
    try:
        lines = Path('/proc/cpuinfo').read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(':')[2].strip() for line in lines if line.startswith('model name')]
    return names[0] if names else platform.machine()


def device_kind(on_cpu):
    """What a run computes on, as far as its numbers and times depend on it.

    Args:
        on_cpu: whether it trains on the processor.
    """
    if not on_cpu and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f'{CPU}{processor_name()}, {torch.backends.cpu.get_cpu_capability()}'


def commit():
    """Short hash of the commit, marked when tracked files differ from it; `unknown` outside a checkout."""
    try:
        head = git('rev-parse', '--short', 'HEAD')
        return f'{head} with changes' if git('status', '--porcelain', '--untracked-files=no') else head
    except (OSError, subprocess.CalledProcessError):
        return 'unknown'


def git(*command):
    done = subprocess.run(['git', *command], cwd=ROOT, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def markdown_table(header, rows):
    """A markdown table; the first column is text, the others are numbers."""
    lines = [header, ['---', *['---:'] * (len(header) - 1)], *rows]
    return '\n'.join(f'| {" | ".join(str(cell).replace("|", chr(92) + "|") for cell in line)} |' for line in lines)


def report_path(folder, name):
    """Where today's report of that name lies."""
    return Path(folder) / f'{date.today().isoformat()}-{name}.md'


def write_report(folder, name, text, header, rows):
    """Writes `<date>-<name>.md` and the raw numbers beside it as `.csv`.

    Args:
        folder: where to; created if need be.
        name: what was measured, in file-name letters.
        text: the report.
        header: column names of the raw numbers.
        rows: the raw numbers.

    Returns:
        Path of the report.
    """
    path = report_path(folder, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding='utf-8')
    with open(path.with_suffix('.csv'), 'w', newline='', encoding='utf-8') as file:
        csv.writer(file, lineterminator='\n').writerows([header, *rows])
    return path
