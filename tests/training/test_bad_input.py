"""Bad input through train.py: one message that names option and value, before an epoch is spent, nothing written."""

import errno
import hashlib
import os
import shutil
import subprocess
import sys

import pytest
import timm
import torch
from timm.loss import LabelSmoothingCrossEntropy

import train as train_script
from regaug.errors import OptionError
from tests.conftest import ROOT, process_environment
from tests.helpers.training import read_checkpoint, read_summary, train_argv

# timm's readers leave it to the garbage collector to close files.
pytestmark = pytest.mark.filterwarnings('ignore:unclosed file:ResourceWarning')


@pytest.fixture
def workplace(image_folder, tmp_path, monkeypatch):
    """A current folder with data sets and files that are wrong in different ways."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'hollow' / 'train' / 'cat').mkdir(parents=True)
    (tmp_path / 'hollow' / 'val' / 'cat').mkdir(parents=True)
    shutil.copytree(image_folder, tmp_path / 'no_val_images')
    for path in (tmp_path / 'no_val_images' / 'val').glob('*/*'):
        path.unlink()
    shutil.copytree(image_folder, tmp_path / 'lacks_class')
    shutil.rmtree(tmp_path / 'lacks_class' / 'val' / 'class1')
    shutil.copytree(image_folder, tmp_path / 'more_classes')
    shutil.copytree(image_folder / 'val' / 'class0', tmp_path / 'more_classes' / 'val' / 'class9')
    (tmp_path / 'typo.yaml').write_text('epochs: 1\nweight_decy: 0.1\n')
    (tmp_path / 'value.yaml').write_text('epochs: many\n')
    (tmp_path / 'broken.yaml').write_text('epochs: [1\n')
    (tmp_path / 'text.pth.tar').write_text('no checkpoint')
    (tmp_path / 'file').write_text('a file')
    model = timm.create_model('test_resnet', num_classes=4)
    torch.save({'epoch': 0, 'version': 2, 'state_dict': model.state_dict()}, tmp_path / 'short.pth.tar')
    os.truncate(tmp_path / 'short.pth.tar', 100_000)
    other = timm.create_model('test_efficientnet', num_classes=4)
    torch.save({'epoch': 0, 'version': 2, 'state_dict': other.state_dict()}, tmp_path / 'other.pth.tar')
    return tmp_path


REFUSALS = [
    # the configuration file
    ('-c typo.yaml', ["'weight_decy'", 'did you mean', 'weight_decay', 'typo.yaml']),
    ('-c value.yaml', ['epochs', "'many'", 'value.yaml']),
    ('-c broken.yaml', ['broken.yaml', 'no valid YAML']),
    ('-c gone.yaml', ['gone.yaml', 'No such file']),
    # what timm asserts on, or crashes on later
    ('--jsd-loss', ['--jsd-loss', '--aug-splits', 'not 0']),
    ('--mixup 0.2 --batch-size 15', ['--batch-size 15', '--mixup 0.2', 'even']),
    ('--amp-dtype float64', ['--amp-dtype float64', 'bfloat16']),
    ('--model-dtype int8', ['--model-dtype int8', 'float32']),
    ('--aug-splits 2 --mixup 0.2', ['--aug-splits 2', '--mixup 0.2']),
    ('--batch-size 65', ['--batch-size 65', '64']),
    ('--model vgg11 --drop-path 0.1', ['--model vgg11', 'drop_path']),
    ('--model test_resnet --model-kwargs wings=2', ['--model test_resnet', 'wings']),
    ('--model dla46_c --grad-checkpointing', ['--grad-checkpointing', 'dla46_c']),
    ('--model test_vit --model-kwargs dynamic_img_size=False', ['--input-size', '32', '--model test_vit', '160']),
    # data
    ('--data-dir gone', ['--data-dir gone', 'no such folder']),
    ('--data-dir empty', ['--data-dir empty', 'empty']),
    ('--data-dir hollow', ['--data-dir hollow', "split 'train'", '0 images']),
    ('--data-dir no_val_images', ['--data-dir no_val_images', "split 'val'", '0 images']),
    ('--num-classes 5', ['--num-classes 5', '4 classes']),
    ('--num-classes 3', ['--num-classes 3', '4 classes']),
    ('--data-dir lacks_class', ['--val-split', "'class2' has index 1 there and 2 in training", '--class-map']),
    ('--data-dir more_classes', ['--val-split', "'class9'"]),
    ('--labels-per-class 17', ['--labels-per-class 17', 'class 0', '16']),
    # models and checkpoints
    ('--model resnet5O', ['--model resnet5O', 'did you mean', 'resnet50']),
    ('--resume gone.pth.tar', ['--resume gone.pth.tar', 'no such file']),
    ('--resume short.pth.tar', ['--resume short.pth.tar', 'truncated']),
    ('--resume text.pth.tar', ['--resume text.pth.tar', 'no checkpoint']),
    ('--resume other.pth.tar', ['--resume other.pth.tar', 'does not fit ResNet', 'missing', 'unexpected']),
    ('--initial-checkpoint gone.pth', ['--initial-checkpoint gone.pth', 'no such file']),
    ('--initial-checkpoint short.pth.tar', ['--initial-checkpoint short.pth.tar', 'truncated']),
    ('--initial-checkpoint other.pth.tar', ['--initial-checkpoint other.pth.tar', 'does not fit ResNet']),
    ('--pretrained --pretrained-path short.pth.tar', ['--pretrained-path short.pth.tar', 'truncated']),
    ('--pretrained --pretrained-path other.pth.tar', ['--pretrained-path other.pth.tar']),
    # places to write to
    ('--output file', ['--output file']),
    # what only the model can tell about a method
    (
        '--model test_vit --model-kwargs dynamic_img_size=False --input-size 3 160 160 --gradaug 1',
        ['--gradaug-sizes 128', 'VisionTransformer', 'dynamic_img_size=True'],
    ),
    ('--model vgg11 --gradaug 1 --gradaug-subnet depth', ['--gradaug-subnet depth', '--model vgg11']),
]


@pytest.mark.parametrize(('line', 'parts'), REFUSALS, ids=[line for line, _ in REFUSALS])
def test_training_refuses_before_anything_is_written(workplace, image_folder, line, parts):
    argv = train_argv(image_folder, 'out', '--experiment', 'run', *line.split())
    before = sorted(workplace.rglob('*'))
    with pytest.raises(OptionError) as caught:
        train_script.main(argv)
    message = str(caught.value)
    assert all(part in message for part in parts), message
    assert '\n' not in message
    assert sorted(workplace.rglob('*')) == before


@pytest.mark.skipif(torch.cuda.is_available(), reason='needs a machine without CUDA')
def test_cuda_where_there_is_none_is_refused_and_cpu_suggested(workplace, image_folder):
    with pytest.raises(OptionError, match=r'--device cuda: .*say --device cpu'):
        train_script.main(train_argv(image_folder, 'out', '--device', 'cuda'))


def test_a_stream_is_refused_with_the_multi_epochs_loader_whose_length_timm_cannot_tell(workplace, monkeypatch):
    monkeypatch.setattr('regaug.options.timm_data_checks.require_package', lambda *args: None)
    options = ('--dataset', 'wds/flowers', '--use-multi-epochs-loader')
    with pytest.raises(OptionError, match=r'--use-multi-epochs-loader: .*--dataset wds/flowers'):
        train_script.main(train_argv('flowers', 'out', *options))


# --- through the command line -------------------------------------------------------------------------------------


def run_script(argv, folder):
    command = [sys.executable, str(ROOT / 'train.py'), *argv]
    return subprocess.run(
        command, cwd=folder, env=process_environment(), capture_output=True, text=True, timeout=300, check=False
    )


@pytest.mark.parametrize(
    ('line', 'parts', 'before_data'),
    [
        ('-c typo.yaml', ['weight_decy', 'weight_decay'], True),
        ('--num-classes 5', ['--num-classes 5', '4 classes'], False),
    ],
)
def test_the_command_line_gets_one_line_and_exit_status_2(workplace, image_folder, line, parts, before_data):
    result = run_script(train_argv(image_folder, 'out', *line.split()), workplace)
    assert result.returncode == 2
    assert result.stdout == ''
    assert 'Traceback' not in result.stderr
    lines = result.stderr.splitlines()
    errors = [text for text in lines if 'error: ' in text]
    assert errors == lines[-1:]
    assert all(part in errors[0] for part in parts), errors[0]
    if before_data:
        assert len(lines) == 1
    assert not (workplace / 'out').exists()


# --- in the middle of a run ---------------------------------------------------------------------------------------


def content(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob('*.pth.tar')}


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(train, image_folder, tmp_path):
    folder = train('--epochs', 1)
    before = content(folder)
    options = ('--resume', folder / 'last.pth.tar', '--no-resume-opt', '--lr', 1e30, '--max-bad-updates', 2)
    with pytest.raises(OptionError) as caught:
        train('--epochs', 5, *options)
    message = str(caught.value)
    assert '--max-bad-updates 2' in message
    assert 'not finite' in message
    assert str(folder) in message
    assert content(folder) == before
    good = read_checkpoint(folder / 'last.pth.tar')['state_dict']
    assert all(value.isfinite().all() for value in good.values())


def test_without_a_limit_a_run_goes_on_with_a_loss_that_is_not_finite(train):
    folder = train('--epochs', 3, '--lr', 1e30, '--max-bad-updates', 0, '--val-interval', 1)
    assert [row['train_loss'] for row in read_summary(folder)][1:] == ['nan', 'nan']


@pytest.mark.parametrize('limit', [1, 3])
def test_the_limit_counts_updates_in_a_row(train, monkeypatch, limit):
    pattern, seen = iter([1, 0, 1, 0, 0, 1, 1, 0, 0, 0, 1, 1]), []  # 0: not finite
    forward = LabelSmoothingCrossEntropy.forward

    def sometimes_bad(criterion, output, target):
        seen.append(next(pattern))
        return forward(criterion, output, target) * (1 if seen[-1] else float('nan'))

    monkeypatch.setattr(LabelSmoothingCrossEntropy, 'forward', sometimes_bad)
    monkeypatch.setattr(torch.optim.SGD, 'step', lambda optimizer, closure=None: None)
    with pytest.raises(OptionError, match=f'in {limit} updates in a row'):
        train('--epochs', 3, '--max-bad-updates', limit)
    assert seen == ([1, 0] if limit == 1 else [1, 0, 1, 0, 0, 1, 1, 0, 0, 0])


def test_a_disk_that_is_full_in_the_second_epoch_leaves_the_first_checkpoint(train, tmp_path, monkeypatch):
    save = torch.save

    def fill_up(state, path, **kwargs):
        save(state, path, **kwargs)
        if state['epoch'] == 1:
            os.truncate(path, 1000)
            raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(torch, 'save', fill_up)
    with pytest.raises(OptionError, match=r'--output .*epoch 1 .*No space left'):
        train('--epochs', 3)
    folder = tmp_path / 'run'
    assert sorted(content(folder)) == ['checkpoint-0.pth.tar', 'last.pth.tar', 'model_best.pth.tar']
    assert {read_checkpoint(path)['epoch'] for path in folder.glob('*.pth.tar')} == {0}


def test_a_disk_that_is_full_when_the_table_is_written_is_told_in_one_line(train, tmp_path, monkeypatch):
    replace = os.replace

    def refuse(src, dst):
        if str(dst).endswith('summary.csv'):
            raise OSError(errno.ENOSPC, 'No space left on device')
        return replace(src, dst)

    monkeypatch.setattr(os, 'replace', refuse)
    with pytest.raises(OptionError, match=r'--output .*No space left'):
        train('--epochs', 1)
