"""`python -m regaug.slimmable`: what it prints about three kinds of networks, and its refusals."""

import runpy
import sys

import pytest
import timm
import torch

import regaug.cli
from regaug.slimmable import SlimmablePlan, Twin


@pytest.fixture
def explain(monkeypatch, capsys):
    """Runs the command in this process and returns (exit status, standard output, standard error)."""

    def explain(*arguments):
        monkeypatch.setattr(sys, 'argv', ['regaug.slimmable', *map(str, arguments)])
        monkeypatch.setattr(regaug.cli, 'setup_default_logging', lambda: None)  # which would be for all further tests
        with pytest.raises(SystemExit) as stopped:
            runpy.run_module('regaug.slimmable', run_name='__main__')
        return stopped.value.code, *capsys.readouterr()

    return explain


def rows_of(text):
    """Layer -> the other columns, those of text at the end joined."""
    table = text.split('\n\n')[1].splitlines()
    assert table[0].split() == ['layer', 'type', 'out', 'in', 'at', 'full', 'width', 'because']
    return {name: (*columns[:3], ' '.join(columns[3:])) for name, *columns in map(str.split, table[1:])}


def test_a_convolutional_network_is_explained_layer_by_layer(explain):
    status, text, _ = explain('resnet18', '--num-classes', 7, '--in-chans', 1, '--size', 64, '--width', 0.5)
    rows = rows_of(text)
    assert not status and len(rows) == 21
    assert rows['conv1'] == ('Conv2d', '32/64', '1/1', '')
    assert rows['layer2.0.downsample.0'] == ('Conv2d', '64/128', '32/64', '')
    assert rows['fc'] == ('Linear', '7/7', '256/512', '')
    assert text.startswith('resnet18 at 64x64 pixels')
    assert '21 of 21 layers are slimmed; width 0.5 (divisor 8) keeps 25.' in text
    assert text.endswith('repaired by verification:\n  nothing\n')


def test_an_attention_network_is_explained_with_its_heads(explain):
    _, text, _ = explain('vit_small_patch16_224', '--model-kwargs', 'depth=1', 'qkv_bias=False', '--width', 0.6)
    rows = rows_of(text)
    assert rows['blocks.0.attn.qkv'] == ('Linear', f'{3 * 4 * 64}/{3 * 6 * 64}', '232/384', '')  # whole heads
    assert rows['blocks.0.mlp.fc1'] == ('Linear', '920/1536', '232/384', '')
    repaired = text.split('repaired by verification:\n')[1].splitlines()
    assert [line.split(': ')[1].split(' [')[0] for line in repaired] == [
        'num_heads follows the width',
        'attn_dim follows the width',
    ]


@pytest.mark.slow
def test_a_grouped_network_with_full_layers_is_explained_with_reasons(explain):
    _, text, _ = explain('edgenext_xx_small', '--width', 0.5, '--width-divisor', 1)
    rows = rows_of(text)
    assert rows['stages.0.blocks.0.conv_dw'] == ('Conv2d', '12/24', '12/24', '')
    assert rows['stages.2.blocks.0.conv_dw'] == ('Conv2d', '88/88', '88/88', 'it is reshaped to a size that is fixed')
    assert rows['stages.2.blocks.0.mlp.fc1'] == ('Linear', '176/352', '88/88', '')
    assert text.count('two sizes follow one another') == 3


def test_table_agrees_with_the_modules_of_the_subnetwork(explain):
    _, text, _ = explain('regnetx_002', '--size', 64, '--width', 0.6)
    model = timm.create_model('regnetx_002')
    twin = Twin(model, SlimmablePlan(model, (3, 64, 64)))
    twin.set(0.6)
    rows = rows_of(text)
    modules = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Conv2d)}
    assert modules.keys() <= rows.keys()
    for layer, full in modules.items():
        module = twin.module.get_submodule(layer)
        assert rows[layer][1] == f'{module.weight.shape[0]}/{full.out_channels}'
        assert rows[layer][2] == f'{module.weight.shape[1] * module.groups}/{full.in_channels}'


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['resnet17b'], 'MODEL resnet17b with in_chans=3: RuntimeError: Unknown model'),
        (['resnet18', '--width', 1.5], '--width 1.5 --size 224: width must be in (0, 1]'),
        (['resnet18', '--width', 'nan'], '--width nan'),
        (['resnet18', '--width-divisor', 0], '--width-divisor: 0 is less than 1'),
        (['resnet18', '--model-kwargs', 'foo'], '--model-kwargs: foo is not KEY=VALUE'),
        (['resnet18', '--model-kwargs', 'foo=1'], 'in_chans=3 foo=1: TypeError: ResNet.__init__() got an unexpected'),
        (['vit_tiny_patch16_224', '--size', 64], '--size 64: VisionTransformer cannot be slimmed: '),
        ([], 'the following arguments are required: MODEL'),
    ],
)
def test_a_users_mistake_is_one_line_and_status_2(explain, arguments, message):
    status, text, error = explain(*arguments)
    assert status == 2 and not text
    assert error.startswith('python -m regaug.slimmable: error: ') and error.count('\n') == 1
    assert message in error
