"""Exported networks: loaded by a process without this package, they give the network's logits."""

import json
import subprocess
import sys

import pytest
import torch

from regaug.slimmable import SlimmablePlan
from tests.conftest import process_environment
from tests.helpers.validate import NUM_CLASSES, PER_CLASS, PIXELS, make_model, prepare_images
from tests.validation.test_widths import subnetwork

pytest_plugins = ['tests.helpers.validate_fixtures']
pytestmark = [
    pytest.mark.filterwarnings('ignore:unclosed file:ResourceWarning'),  # timm's folder reader closes none
    pytest.mark.filterwarnings('ignore::FutureWarning'),  # torch.export warns of itself
    pytest.mark.filterwarnings('ignore::DeprecationWarning'),
]
ALL = ['-b', NUM_CLASSES * PER_CLASS]  # all images in one batch

LOAD = """
import sys
import torch
images = torch.load('images.pt', weights_only=True)
programs = [torch.export.load(path).module() for path in sys.argv[1:]]
torch.save([[program(images[:size]) for size in (1, 7, len(images))] for program in programs], 'out.pt')
assert not [name for name in sys.modules if name.startswith(('regaug', 'timm'))]
"""


@pytest.fixture(scope='module')
def load_elsewhere(tmp_path_factory):
    """Runs exported networks in a fresh process, in a folder without this package."""

    def load_elsewhere(paths, images):
        folder = tmp_path_factory.mktemp('elsewhere')
        torch.save(images, folder / 'images.pt')
        command = [sys.executable, '-W', 'ignore', '-c', LOAD, *map(str, paths)]
        subprocess.run(command, cwd=folder, check=True, env=process_environment())
        return torch.load(folder / 'out.pt', weights_only=True)

    return load_elsewhere


@pytest.mark.few(1)
@pytest.mark.parametrize('widths', [(0.5,), (1.0, 0.5)])
@pytest.mark.filterwarnings('ignore:The given buffer is not writable')  # PyTorch 2.9, by its own reader
def test_every_width_runs_elsewhere_and_gives_the_calibrated_networks_logits(
    widths, run, model, images, folder, checkpoint, tmp_path, load_elsewhere
):
    out, stem = tmp_path / 'out', f'test_resnet-{checkpoint.parent.name}-model'
    plain = run('--checkpoint', checkpoint, *ALL, '--width', *widths)
    rows = run('--checkpoint', checkpoint, *ALL, '--width', *widths, '--export', out)
    assert [{name: row[name] for name in plain[0]} for row in rows] == plain
    half = subnetwork(model, 0.5, prepare_images(folder, 'train')[0])
    names, networks = ('w1', 'w0.5')[-len(widths) :], (model, half)[-len(widths) :]
    outputs = load_elsewhere([out / f'{stem}-{name}.pt2' for name in names], images[0])
    for name, network, row, found in zip(names, networks, rows, outputs, strict=True):
        for output, size in zip(found, (1, 7, len(images[0])), strict=True):
            with torch.no_grad():
                assert torch.allclose(output, network(images[0][:size]), atol=1e-4)
        facts = json.loads((out / f'{stem}-{name}.json').read_text())
        assert facts['width'] == row['width']
        assert facts['accuracy'] == pytest.approx({key: row[key] for key in ('top1', 'top5')}, abs=1e-4)
        assert facts['parameters'] == sum(parameter.numel() for parameter in network.parameters())
        assert (facts['num_classes'], facts['input_size']) == (NUM_CLASSES, [3, PIXELS, PIXELS])
        assert facts['classes']['3'] == 'class3'
        assert facts['mean'] == facts['std'] == [0.5, 0.5, 0.5]
        assert facts['largest_difference'] < 1e-4
    for width, row in zip(widths, rows, strict=True):
        share = row['export_mb'] / row['export_full_mb']
        assert share < 0.6 if width == 0.5 else share == pytest.approx(1, rel=0.02)
    assert all(row['export_ms'] > 0 and row['export_full_ms'] > 0 for row in rows)
    assert sorted(path.name for path in out.glob('*tmp*')) == []
    SlimmablePlan(model, (3, PIXELS, PIXELS))  # the model is as it was


def test_onnx_gives_the_same_logits(run, model, images, checkpoint, tmp_path):
    runtime = pytest.importorskip('onnxruntime')
    pytest.importorskip('onnxscript')
    run('--checkpoint', checkpoint, '--export', tmp_path)
    session = runtime.InferenceSession(tmp_path / f'test_resnet-{checkpoint.parent.name}-model.onnx')
    for size in (1, 5):
        (output,) = session.run(None, {'input': images[0][:size].numpy()})
        with torch.no_grad():
            assert torch.allclose(torch.from_numpy(output), model(images[0][:size]), atol=1e-3)


def test_classes_are_named_by_the_outputs_that_valid_labels_keep(run, images, tmp_path):
    torch.save(make_model(images, seed=5, num_classes=25).state_dict(), tmp_path / 'wide.pth')
    chosen = [20, 3, 4, 7, 24, 9, 11, 0, 16, 2]
    (tmp_path / 'valid.txt').write_text('\n'.join(map(str, chosen)))
    argv = ['--checkpoint', tmp_path / 'wide.pth', '--num-classes', 25, '--valid-labels', tmp_path / 'valid.txt']
    run(*argv, '--export', tmp_path)
    facts = json.loads((tmp_path / f'test_resnet-{tmp_path.name}-wide.json').read_text())
    assert facts['classes'] == {str(output): f'class{index}' for index, output in enumerate(chosen)}


def test_what_cannot_be_exported_is_refused_first(refusal, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr('validate.evaluate', lambda *_: pytest.fail('an evaluation was spent'))
    monkeypatch.setattr('torch.export.export', lambda *_, **__: (_ for _ in ()).throw(RuntimeError('data-dependent')))
    complaint = refusal('--checkpoint', checkpoint, '--export', tmp_path / 'out')
    assert 'data-dependent' in complaint
    (tmp_path / 'file').write_text('')
    assert f'--export {tmp_path / "file"}' in refusal('--checkpoint', checkpoint, '--export', tmp_path / 'file')
    assert not (tmp_path / 'out').exists()
