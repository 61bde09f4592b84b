"""Every option of train.py reaches what it is for, with the value that the user gave."""

import ast
import importlib
import inspect
import sys
from types import SimpleNamespace

import pytest
import timm
import torch

from regaug.device import prepare_device
from regaug.options import parse_train, train_parser
from regaug.training.phases import phase_at
from regaug.training.run import Run
from regaug.training.task import RegAugTask
from tests.helpers import reach, reach_data
from tests.helpers.commands import ROOT
from tests.helpers.data import noise_set

REACH = {**reach.REACH, **reach_data.REACH}
OPTIONS = [action.dest for action in train_parser()._actions if action.dest != 'help']
PLACES = {option: row for option, row in REACH.items() if option in OPTIONS and not isinstance(row, str)}
TESTS = {option: row for option, row in REACH.items() if option in OPTIONS and isinstance(row, str)}
SPIED = {  # name: where the run looks it up
    'set_jit_fuser': 'regaug.training.model.set_jit_fuser',
    'set_fast_norm': 'regaug.training.model.set_fast_norm',
    'convert_splitbn_model': 'regaug.training.model.convert_splitbn_model',
    'convert_sync_batchnorm': 'regaug.training.model.convert_sync_batchnorm',
    'script': 'torch.jit.script',
    'create_loader': 'regaug.data.loaders.create_loader',
    'create_naflex_loader': 'regaug.data.loaders.create_naflex_loader',
    'FastCollateMixup': 'regaug.data.loaders.FastCollateMixup',
    'Mixup': 'regaug.data.loaders.Mixup',
    'use_pad_crop': 'regaug.data.loaders.use_pad_crop',
    'weaken_policies': 'regaug.data.loaders.weaken_policies',
    'create_dataset': 'regaug.data.datasets.create_timm_dataset',
    'training_samples': 'regaug.data.datasets.training_samples',
    'random_seed': 'regaug.training.run.random_seed',
    'get_outdir': 'regaug.training.run.get_outdir',
    'create_optimizer': 'regaug.training.run.create_optimizer_v2',
    'create_scheduler': 'regaug.training.schedule.create_scheduler_v2',
    'fit_teacher': 'regaug.training.run.fit_teacher',
    'Updater': 'regaug.training.run.Updater',
    'Saver': 'regaug.training.run.Saver',
    'Report': 'regaug.training.run.Report',
    'create_classification_loss': 'regaug.training.criterion.create_classification_loss',
    'create_model': 'regaug.training.model.create_model',
    'LogitDistillation': 'regaug.training.task.LogitDistillation',
    'FeatureDistillation': 'regaug.training.task.FeatureDistillation',
    'TokenDistillation': 'regaug.training.task.TokenDistillation',
    'MultiLabelTask': 'regaug.training.task.MultiLabelTask',
    'setup_ema': 'regaug.training.task.RegAugTask.setup_ema',
    'compile': 'regaug.training.task.RegAugTask.compile',
    'compile_ema': 'regaug.training.task.RegAugTask.compile_ema',
    'prepare_distributed': 'regaug.training.task.RegAugTask.prepare_distributed',
    'wandb.init': 'wandb.init',
    'GradAug': 'regaug.methods.gradaug.GradAug',
    'GradAugSemi': 'regaug.methods.semi.GradAugSemi',
    'UnlabelledData': 'regaug.methods.semi.UnlabelledData',
    'Twin': 'regaug.methods.subnetworks.Twin',
    'DepthTwin': 'regaug.methods.subnetworks.DepthTwin',
    'MaxUp': 'regaug.methods.maxup.MaxUp',
    'CutMix': 'regaug.methods.maxup.CutMix',
    'Cutout': 'regaug.methods.maxup.Cutout',
    'GaussianNoise': 'regaug.methods.maxup.GaussianNoise',
    'Scout': 'regaug.methods.scouts.Scout',
    'UADA': 'regaug.methods.uada.UADA',
    'Augmentation': 'regaug.methods.uada.Augmentation',
    'ManifoldMixup': 'regaug.methods.manifold.ManifoldMixup',
}


class StubLoader:
    """Four batches of anything, as far as a run looks at a loader while it is built."""

    def __init__(self, dataset):
        self.dataset = dataset
        self.sampler = self.worker_init_fn = None
        self.batch_sampler = SimpleNamespace(average_batch_size=8.0)

    def __len__(self):
        return 4


def small_model(model_name, num_classes=None, in_chans=3, drop_path_rate=None, **kwargs):
    """A test model in place of any other, with what the rest of the run needs."""
    name = model_name if model_name.startswith('test_') else 'test_resnet'
    rate = {} if drop_path_rate is None else {'drop_path_rate': drop_path_rate}
    return timm.create_model(name, num_classes=num_classes or 10, in_chans=in_chans, **rate)


def stub_task(student_model=None, criterion=None, **kwargs):
    return RegAugTask(student_model, criterion, verbose=False)


STUBS = {
    'create_model': small_model,
    'create_dataset': lambda *args, **kwargs: noise_set(64),
    'create_loader': lambda dataset, **kwargs: StubLoader(dataset),
    'create_naflex_loader': lambda dataset, **kwargs: StubLoader(dataset),
    'create_optimizer': lambda model, **kwargs: torch.optim.SGD(model.parameters(), lr=0.1),
    'create_scheduler': lambda optimizer, num_epochs, **kwargs: (None, num_epochs),
    'wandb.init': lambda **kwargs: SimpleNamespace(define_metric=lambda *args, **kwargs: None),
    **dict.fromkeys(('script', 'convert_splitbn_model', 'convert_sync_batchnorm'), lambda model, *args: model),
    **dict.fromkeys(('LogitDistillation', 'FeatureDistillation', 'TokenDistillation'), stub_task),
    **dict.fromkeys(
        (
            *('set_jit_fuser', 'set_fast_norm', 'use_pad_crop', 'weaken_policies', 'random_seed'),
            'fit_teacher',
            *('setup_ema', 'compile', 'compile_ema', 'prepare_distributed'),
        ),
        lambda *args, **kwargs: None,
    ),
}


def find(path):
    """(object that holds it, its name) of a dotted path."""
    *parents, name = path.split('.')
    for count in range(len(parents), 0, -1):
        try:
            holder = importlib.import_module('.'.join(parents[:count]))
        except ModuleNotFoundError:
            continue
        for parent in parents[count:]:
            holder = getattr(holder, parent)
        return holder, name
    raise AssertionError(path)


def spy(name, original, seen):
    """What notes the arguments by name in `seen`, as {'name.argument': value}, and calls the original or its stub."""
    signature = inspect.signature(original)

    def noting(*args, **kwargs):
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        values = dict(bound.arguments)
        for parameter in signature.parameters.values():
            if parameter.kind is parameter.VAR_KEYWORD:
                values |= values.pop(parameter.name)
        kind = {'create_dataset', 'create_loader', 'create_naflex_loader'} & {name}
        prefix = f'{name}.{"train" if values["is_training"] else "eval"}' if kind else name
        seen[f'{prefix}.called'] = True
        seen.setdefault('built.order', []).append(name)
        for argument, value in values.items():
            seen[f'{prefix}.{argument}'] = value
            if isinstance(value, dict):
                seen.update({f'{prefix}.{argument}.{key}': part for key, part in value.items()})
        return STUBS.get(name, original)(*args, **kwargs)

    return noting


def add_facts(seen, run):
    """What can be seen of a built run itself."""
    model = run.model
    first = next(parameter for parameter in model.parameters() if parameter.dim() == 4)
    head = model.get_classifier()
    seen['model.channels_last'] = first.is_contiguous(memory_format=torch.channels_last)
    seen['model.grad_checkpointing'] = getattr(model, 'grad_checkpointing', False)
    seen['model.head_weight'] = head.weight.abs().max().item()
    seen['model.head_bias'] = head.bias.abs().max().item()
    with run.precision.autocast():
        seen['autocast.enabled'] = torch.is_autocast_enabled('cpu')
        seen['autocast.dtype'] = torch.get_autocast_dtype('cpu')
    seen['import.colorsys'] = 'colorsys' in sys.modules
    mixing = ('CutMix', 'Cutout', 'GaussianNoise')
    seen['built.order'] = [name for name in seen['built.order'] if name in mixing]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A folder with all the files that the rows name."""
    folder = tmp_path_factory.mktemp('reach')
    for split in ('train', 'validation', 'fit', 'check'):
        (folder / split / 'cat').mkdir(parents=True)
    (folder / 'map.txt').write_text('cat\n')
    torch.save(small_model('test_resnet').state_dict(), folder / 'weights.pth')
    return folder


def with_folder(value, folder):
    return value.replace(reach.FOLDER, str(folder)) if isinstance(value, str) else value


def build(name, folder):
    """Build the run `name` of `reach.RUNS` with the words of all its options; what was seen, and its options."""
    words = [*reach.RUNS[name].split(), *(word for row in PLACES.values() if row[0] == name for word in row[1].split())]
    device = 'cuda' if name == 'ranks' else 'cpu'
    argv = [
        with_folder(word, folder)
        for word in ('--device', device, '--output', 'FOLDER/runs', '--experiment', name, *words)
    ]
    if name != 'positional' and '--data-dir' not in argv:
        argv += ['--data-dir', str(folder)]
    seen = {}
    with pytest.MonkeyPatch.context() as patch:
        with pytest.MonkeyPatch.context() as parsing:
            if name == 'ranks':
                parsing.setattr(torch.cuda, 'is_available', lambda: True)
                patch.setenv('WORLD_SIZE', '2')
                patch.setattr('regaug.device.init_distributed_device', join_two)
            args = parse_train(argv)
        patch.delitem(sys.modules, 'colorsys', raising=False)
        for spied, path in SPIED.items():
            holder, attribute = find(path)
            patch.setattr(holder, attribute, spy(spied, getattr(holder, attribute), seen))
        for looks_at_data in ('check_data', 'leave_signals_to_main'):
            patch.setattr(f'regaug.training.run.{looks_at_data}', lambda *args, **kwargs: None)
        patch.setattr('regaug.data.loaders.leave_signals_to_main', lambda loader: None)
        patch.setattr('regaug.data.datasets.check_samples', lambda *args: None, raising=False)
        run = Run(args).build()
        run.start_phase(phase_at(0, run.args))
        for method in run.methods:
            if hasattr(method, 'make_subnet'):
                method.make_subnet(run.model)
        add_facts(seen, run)
    return seen, args


def join_two(args):
    """Stands where timm joins a process group: the first of two processes, here without a GPU."""
    vars(args).update(distributed=True, world_size=2, rank=0, local_rank=0, device='cpu')
    return torch.device('cpu')


@pytest.fixture(scope='module')
def built(folder):
    """`build`, each run once."""
    done = {}
    return lambda name: done[name] if name in done else done.setdefault(name, build(name, folder))


def plain(value):
    """Tensors, tuples, dtypes and devices as values that compare."""
    if torch.is_tensor(value):
        return pytest.approx(value.tolist())
    if isinstance(value, torch.dtype | torch.device):
        return str(value)
    return list(value) if isinstance(value, tuple) else value


def test_every_option_has_a_row():
    assert sorted(set(OPTIONS) - set(REACH)) == []


@pytest.mark.parametrize('option', PLACES)
def test_option_reaches_what_it_is_for(option, built, folder):
    name, _, receiver, expected = PLACES[option]
    seen, _ = built(name)
    assert receiver in seen, sorted(seen)
    expected = plain(with_folder(expected, folder))
    found = plain(seen[receiver])
    assert found == (pytest.approx(expected, abs=1e-12) if isinstance(expected, float) else expected)


@pytest.mark.parametrize(('name', 'receiver', 'expected'), reach_data.FURTHER)
def test_options_reach_further_places(name, receiver, expected, built):
    seen, _ = built(name)
    assert plain(seen[receiver]) == plain(expected)


@pytest.mark.parametrize('option', TESTS)
def test_option_has_the_test_that_its_row_names(option):
    path, _, name = TESTS[option].partition('::')
    tree = ast.parse((ROOT / path).read_text())
    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_values_are_not_those_without_the_option(built):
    """Else an option that is dropped on its way would not be missed."""
    defaults = {action.dest: action.default for action in train_parser()._actions}
    same = [
        option
        for option, (name, *_) in PLACES.items()
        if getattr(built(name)[1], option) == defaults[option] and option != 'kd_loss_type'
    ]
    assert same == []


def test_the_rank_on_a_machine_is_what_torchrun_says():
    """`--local_rank` is there for command lines of old launchers; the environment wins, as in timm."""
    args = parse_train(['--dataset', 'regaug/digits', '--device', 'cpu', '--local_rank', '3'])
    prepare_device(args)
    assert (args.local_rank, args.rank, args.world_size) == (0, 0, 1)
