"""What only data, model and files can tell is wrong: one message that names option and value, nothing written."""

import importlib.machinery
import os
import shutil
import subprocess
import sys
from types import ModuleType

import pytest
import timm
import torch

import train as train_script
from regaug import cli
from regaug.errors import OptionError
from tests.conftest import ROOT, process_environment
from tests.helpers.checkpoints import Dangerous
from tests.helpers.training import train_argv

# timm's readers leave it to the garbage collector to close files.
pytestmark = pytest.mark.filterwarnings('ignore:unclosed file:ResourceWarning')


@pytest.fixture
def workplace(image_folder, tmp_path, monkeypatch):
    """A current folder with data sets and files that are wrong in different ways."""
    monkeypatch.chdir(tmp_path)
    for split in ('train', 'val'):
        (tmp_path / 'hollow' / split / 'cat').mkdir(parents=True)
    shutil.copytree(image_folder, tmp_path / 'no_val_images')
    for path in (tmp_path / 'no_val_images' / 'val').glob('*/*'):
        path.unlink()
    shutil.copytree(image_folder, tmp_path / 'lacks_class')
    shutil.rmtree(tmp_path / 'lacks_class' / 'val' / 'class1')
    shutil.copytree(image_folder, tmp_path / 'more_classes')
    shutil.copytree(image_folder / 'val' / 'class0', tmp_path / 'more_classes' / 'val' / 'class9')
    (tmp_path / 'typo.yaml').write_text('epochs: 1\nweight_decy: 0.1\n')
    (tmp_path / 'text.pth.tar').write_text('no checkpoint')
    (tmp_path / 'file').write_text('a file')
    model = timm.create_model('test_resnet', num_classes=4)
    torch.save({'epoch': 0, 'version': 2, 'state_dict': model.state_dict()}, tmp_path / 'short.pth.tar')
    os.truncate(tmp_path / 'short.pth.tar', 100_000)
    other = timm.create_model('test_efficientnet', num_classes=4)
    torch.save({'epoch': 0, 'version': 2, 'state_dict': other.state_dict()}, tmp_path / 'other.pth.tar')
    torch.save({'epoch': 1, 'state_dict': Dangerous(tmp_path / 'victim')}, tmp_path / 'code.pth.tar')
    return tmp_path


REFUSALS = [
    # what the data and the model tell
    ('--batch-size 65', ['--batch-size 65', '64', '--updates-per-epoch']),
    ('--model vgg11 --drop-path 0.1', ['--model vgg11', 'drop_path']),
    ('--model test_resnet --model-kwargs wings=2', ['--model test_resnet', 'wings']),
    ('--model test_resnet --gp avgg', ['--model test_resnet --gp avgg', 'cannot be built', 'Invalid pool type']),
    ('--model test_resnet --model-kwargs act_layer=bent', ['--model-kwargs act_layer=bent', 'cannot be built']),
    ('--model dla46_c --grad-checkpointing', ['--grad-checkpointing', 'dla46_c']),
    ('--model test_vit --model-kwargs dynamic_img_size=False', ['--input-size', '32', '--model test_vit', '160']),
    ('--data-dir hollow', ['--data-dir hollow', "split 'train'", '0 images']),
    ('--data-dir no_val_images', ['--data-dir no_val_images', "split 'val'", '0 images']),
    ('--num-classes 5', ['--num-classes 5', '4 classes']),
    ('--num-classes 3', ['--num-classes 3', '4 classes']),
    ('--data-dir lacks_class', ['--val-split', "'class2' has index 1 there and 2 in training", '--class-map']),
    ('--data-dir more_classes', ['--val-split', "'class9'"]),
    ('--labels-per-class 17', ['--labels-per-class 17', 'class 0', '16']),
    # checkpoints
    ('--resume code.pth.tar', ['--resume code.pth.tar', 'no checkpoint']),
    ('--resume short.pth.tar', ['--resume short.pth.tar', 'truncated']),
    ('--resume text.pth.tar', ['--resume text.pth.tar', 'no checkpoint']),
    ('--resume other.pth.tar', ['--resume other.pth.tar', 'does not fit ResNet', 'missing', 'unexpected']),
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
    package = ModuleType('webdataset')
    package.__spec__ = importlib.machinery.ModuleSpec('webdataset', None)
    monkeypatch.setitem(sys.modules, 'webdataset', package)  # as if it were installed
    options = ('--dataset', 'wds/flowers', '--use-multi-epochs-loader')
    with pytest.raises(OptionError, match=r'--use-multi-epochs-loader: .*--dataset wds/flowers'):
        train_script.main(train_argv('flowers', 'out', *options))


# --- through the command line -------------------------------------------------------------------------------------


def run_script(argv, folder):
    command = [sys.executable, str(ROOT / 'train.py'), *argv]
    return subprocess.run(
        command, cwd=folder, env=process_environment(), capture_output=True, text=True, timeout=600, check=False
    )


def test_the_command_line_gets_one_line_and_exit_status_2(workplace, image_folder):
    result = run_script(train_argv(image_folder, 'out', '--num-classes', 5), workplace)
    assert result.returncode == 2
    assert result.stdout == ''
    assert 'Traceback' not in result.stderr
    lines = result.stderr.splitlines()
    errors = [text for text in lines if 'error: ' in text]
    assert errors == lines[-1:]
    assert all(part in errors[0] for part in ('--num-classes 5', '4 classes')), errors[0]
    assert not (workplace / 'out').exists()


def test_a_mistake_in_a_configuration_file_is_the_only_line(workplace, image_folder, monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['train.py', *train_argv(image_folder, 'out', '-c', 'typo.yaml')])
    monkeypatch.setattr(cli, 'setup_default_logging', lambda: None)  # which would be for all further tests
    with pytest.raises(SystemExit) as caught:
        cli.run(train_script.main)
    output, errors = capsys.readouterr()
    assert (caught.value.code, output) == (2, '')
    [line] = errors.splitlines()
    assert all(part in line for part in ('error: ', 'typo.yaml', "'weight_decy'", 'did you mean', 'weight_decay'))
    assert not (workplace / 'out').exists()
