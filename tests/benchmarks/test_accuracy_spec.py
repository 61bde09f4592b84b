import numpy as np
import pytest
import yaml
from PIL import Image

from benchmarks.accuracy.digits import write_digits
from benchmarks.accuracy.processes import ROOT
from benchmarks.accuracy.spec import difference_to, read_spec
from regaug.data.digits import create_digits
from regaug.errors import OptionError

SPEC = {
    'digits': 10,
    'seeds': 3,
    'base': 'plain',
    'options': '--model test_resnet --num-classes 10 --device cpu',
    'variants': {'plain': None, 'gradaug': '--gradaug 3'},
    'equal_time': ['gradaug'],
}


def spec_file(folder, **changes):
    path = folder / 'spec.yaml'
    values = {key: value for key, value in {**SPEC, **changes}.items() if value != 'absent'}
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return str(path)


def test_options_of_a_variant_come_after_those_of_all(tmp_path):
    config = tmp_path / 'config.yaml'
    config.write_text('lr: 0.1')
    spec = read_spec(spec_file(tmp_path, config=str(config), variants={'plain': '', 'b': '--lr 0.3'}, equal_time=[]))
    assert spec.argv('b') == ['-c', str(config), *SPEC['options'].split(), '--lr', '0.3']
    assert (spec.args('plain').lr, spec.args('b').lr) == (0.1, 0.3)


def test_base_gets_a_row_for_the_time_of_a_method(tmp_path):
    assert read_spec(spec_file(tmp_path)).rows == ['plain', 'gradaug', 'plain-time-of-gradaug']


def test_seeds_can_be_given_on_the_command_line(tmp_path):
    assert read_spec(spec_file(tmp_path), seeds=7).seeds == 7


@pytest.mark.parametrize(
    'changes, message',
    [
        ({'variant': {}}, r"unknown key 'variant'; did you mean variants\?"),
        ({'base': 'absent'}, 'base is missing'),
        ({'seeds': 'three'}, "seeds: expected int, got 'three'"),
        ({'seeds': True}, 'seeds: expected int, got True'),
        ({'seeds': 0}, 'seeds: 0 must be 1 or more'),
        ({'digits': -1}, 'digits: -1 must be 0 or more'),
        ({'variants': ['plain']}, r"variants: expected dict, got \['plain'\]"),
        ({'variants': {'plain': '', 'a/b': ''}, 'equal_time': []}, "variants: 'a/b' must be letters"),
        ({'variants': {'plain': '', '..': ''}, 'equal_time': []}, r"variants: '\.\.' must be letters"),
        ({'variants': {'plain': 3}, 'equal_time': []}, 'variants: plain: expected options of train.py, got 3'),
        ({'base': 'plane'}, r"base: there is no variant 'plane' \(there are plain, gradaug\)"),
        ({'equal_time': ['mixup']}, "equal_time: there is no variant 'mixup'"),
        ({'equal_time': ['plain']}, "equal_time: 'plain' is the base itself"),
        ({'equal_time': ['gradaug', 'gradaug']}, 'equal_time: two rows would have the same name'),
        ({'variants': {'plain': '', 'gradaug': '--gradaug -1'}}, 'variant gradaug: --gradaug -1'),
        (
            {'variants': {'plain': '', 'gradaug': '--gradag 3'}},
            r'variant gradaug: unknown argument --gradag; did you mean --gradaug',
        ),
        ({'variants': {'plain': '', 'gradaug': '--gradaug "3'}}, 'variant gradaug: No closing quotation'),
        ({'variants': {'plain': '', 'gradaug': '--seed=3'}}, 'variant gradaug: --seed is set by the harness'),
        ({'options': '--resume auto --device cpu'}, 'variant plain: --resume is set by the harness'),
        ({'options': '--val-split= --device cpu'}, 'variant plain: --val-split .*nothing to test on'),
        ({'options': '--epochs 0 --refine-epochs 2 --lr 0.1 --device cpu'}, 'equal_time: the base has --epochs 0'),
        ({'config': 'missing.yaml'}, 'variant plain: --config missing.yaml: cannot be read'),
    ],
)
def test_bad_spec_is_refused_in_one_line_that_names_it(tmp_path, changes, message):
    path = spec_file(tmp_path, **changes)
    with pytest.raises(OptionError, match=message) as caught:
        read_spec(path)
    assert str(caught.value).startswith(path) and '\n' not in str(caught.value)


@pytest.mark.parametrize('text', ['a: [', '- plain', ''])
def test_file_that_is_no_mapping_is_refused(tmp_path, text):
    (tmp_path / 'spec.yaml').write_text(text)
    with pytest.raises(OptionError, match=r'no valid YAML|expected keys'):
        read_spec(str(tmp_path / 'spec.yaml'))
    with pytest.raises(OptionError, match='cannot be read'):
        read_spec(str(tmp_path / 'other.yaml'))


def test_runs_of_another_spec_are_told_by_what_differs(tmp_path):
    spec = read_spec(spec_file(tmp_path))
    earlier = {**SPEC, 'config': '', 'variants': {'plain': '', 'gradaug': '--gradaug 3'}}
    assert difference_to(spec, earlier) == ''
    assert difference_to(spec, {**earlier, 'seeds': 20, 'title': 'x', 'equal_time': []}) == ''
    assert difference_to(spec, {**earlier, 'variants': {'plain': '', 'old': '--lr 1'}}) == ''
    assert difference_to(spec, {**earlier, 'digits': 5}) == 'digits'
    assert difference_to(spec, {**earlier, 'options': '--lr 1'}) == 'options'
    assert difference_to(spec, {**earlier, 'variants': {'plain': '', 'gradaug': '--gradaug 2'}}) == 'variant gradaug'


def test_data_are_named_after_their_folder_and_told_apart_by_it(tmp_path):
    assert read_spec(spec_file(tmp_path, digits=0)).data == ''
    assert read_spec(spec_file(tmp_path, digits=5), data_dir='/data/flowers').data == ''
    assert read_spec(spec_file(tmp_path, digits=0, data='mine'), data_dir='/data/flowers').data == 'mine'
    spec = read_spec(spec_file(tmp_path, digits=0), data_dir='/data/flowers/')
    assert spec.data == 'flowers'
    earlier = {**SPEC, 'config': '', 'digits': 0, 'variants': {'plain': '', 'gradaug': '--gradaug 3'}}
    assert difference_to(spec, earlier) == difference_to(spec, {**earlier, 'data': 'flowers'}) == ''
    assert difference_to(spec, {**earlier, 'data': 'cats'}) == 'data: cats'


@pytest.mark.parametrize('path', sorted((ROOT / 'benchmarks' / 'specs').glob('*.yaml')), ids=lambda path: path.stem)
def test_specs_of_the_project_are_accepted(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr('torch.cuda.is_available', lambda: True)  # some are for GPUs
    spec = read_spec(str(path))
    assert spec.base in spec.variants and len(spec.variants) > 1
    header = path.read_text().partition('\n\n')[0]
    assert f'python -m benchmarks.accuracy benchmarks/specs/{path.name} --out' in header and '# time ' in header
    assert ('--data-dir' in header) == (not spec.digits)


def test_digits_are_tested_on_all_that_are_not_trained_on(tmp_path):
    folders = [write_digits(tmp_path / f'split{split}', 10, split) for split in (0, 1)]
    parts = []
    for folder in folders:
        train, test = ({path.name for path in (folder / part).glob('*/*.png')} for part in ('train', 'test'))
        assert (len(train), len(test), len(train & test), len(train | test)) == (100, 1697, 0, 1797)
        assert [len(list((folder / 'train' / str(digit)).iterdir())) for digit in range(10)] == [10] * 10
        parts.append(train)
    assert parts[0] != parts[1]


def test_digits_on_disk_are_the_embedded_ones(tmp_path):
    folder = write_digits(tmp_path / 'split', 10, 0)
    names = {path.name: path for path in folder.glob('*/*/*.png')}
    dataset = create_digits('train', input_img_mode='L')
    for index in range(0, len(dataset), 97):
        image, label = dataset[index]
        path = names[dataset.filename(index, basename=True).replace('.pgm', '.png')]
        np.testing.assert_array_equal(np.asarray(Image.open(path)), np.asarray(image))
        assert path.parent.name == str(label)


def test_digits_whose_writing_was_cut_short_are_written_again(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, 'save', lambda *args: (_ for _ in ()).throw(OSError('no space')))
        with pytest.raises(OSError, match='no space'):
            write_digits(tmp_path / 'split', 10, 0)
    assert not (tmp_path / 'split').exists()
    assert len(list(write_digits(tmp_path / 'split', 10, 0).glob('*/*/*.png'))) == 1797
