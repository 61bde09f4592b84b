"""A harness of benchmarks.accuracy with results made by hand."""

import yaml

from benchmarks.accuracy.harness import Harness
from benchmarks.accuracy.results import Result
from benchmarks.accuracy.spec import read_spec

OPTIONS = '--model test_resnet --num-classes 10 --epochs 40 --val-interval 10 --device cpu'
VARIANTS = {'plain': '', 'same': '', 'method': '--mixup 0.5', 'broken': '--mixup 0.7'}


def make_harness(folder, *, seeds=3, options=OPTIONS, digits=0):
    """A harness over `VARIANTS` that has run nothing; its spec and its runs lie in the folder."""
    path = folder / 'spec.yaml'
    spec = dict(title='Demo', digits=digits, seeds=seeds, base='plain', options=options, variants=VARIANTS)
    path.write_text(yaml.safe_dump({**spec, 'equal_time': ['method']}, sort_keys=False))
    harness = Harness(read_spec(str(path)), folder / 'out', data_dir=str(folder), jobs=1, threads=1, say=[].append)
    harness.out.mkdir(exist_ok=True)
    return harness


def add(harness, variant, seed, final, *, seconds=10.0, epochs=40):
    """Puts a finished run among the harness's results."""
    harness.results[variant, seed] = Result(
        variant,
        seed,
        epochs=epochs,
        final=final,
        last_median=final - 1,
        best=final + 1,
        best_at=10,
        train_loss=0.1,
        seconds=7 * seconds,  # the machine was busy
        processor_seconds=seconds,
        wall_seconds=99.0,
        curve=[[10, final + 1], [epochs, final]],
    )
