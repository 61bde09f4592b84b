import pytest

from benchmarks.compare import main, short_names
from benchmarks.curves import best_epoch, last_median, read_curve
from regaug.errors import OptionError

HEADER = 'epoch,train_loss,eval_loss,eval_top1,eval_top5,lr\n'
# A run of timm's script that was resumed from epoch 1: header and epoch come again.
TIMM = (
    f'{HEADER}0,2.5,2.0,30.0,80.0,0.1\n1,2.0,1.8,40.0,85.0,0.05\n'
    f'{HEADER}1,1.9,1.7,45.0,86.0,0.05\n2,1.5,1.6,42.0,87.0,0.0\n'
)
OURS = 'epoch,train_loss,eval_loss,eval_top1,lr,phase\n0,2.4,2.0,31.5,0.1,main\n1,2.3,1.5,50.25,0.1,refine\n'


def write_run(folder, summary):
    folder.mkdir(parents=True)
    (folder / 'summary.csv').write_text(summary)
    return folder


def test_curve_of_a_resumed_run_of_timms_script_has_each_epoch_once(tmp_path):
    curve = read_curve(write_run(tmp_path / 'timm', TIMM))
    assert [row['epoch'] for row in curve] == [0, 1, 2]
    assert [row['eval_top1'] for row in curve] == [30.0, 45.0, 42.0]
    assert curve[1]['train_loss'] == 1.9


def test_epochs_that_a_run_went_back_over_do_not_count(tmp_path):
    rows = ['epoch,eval_top1', '0,30.0', '1,40.0', '2,50.0', '3,99.0', 'epoch,eval_top1', '1,35.0', '2,45.0']
    curve = read_curve(write_run(tmp_path / 'timm', '\n'.join(rows) + '\n'))
    assert [(row['epoch'], row['eval_top1']) for row in curve] == [(0, 30.0), (1, 35.0), (2, 45.0)]


def test_text_columns_are_left_out_of_a_curve(tmp_path):
    assert 'phase' not in read_curve(write_run(tmp_path / 'ours', OURS))[0]


def test_best_epoch_is_the_smallest_loss_the_largest_accuracy_and_never_nan():
    nan = float('nan')
    rows = [(0, nan, nan), (1, 3.0, 10.0), (2, 2.0, 9.0), (3, nan, nan)]
    curve = [dict(zip(('epoch', 'eval_loss', 'eval_top1'), row, strict=True)) for row in rows]
    assert best_epoch(curve, 'eval_loss')['epoch'] == 2
    assert best_epoch(curve, 'eval_top1')['epoch'] == 1


def test_last_median_is_of_the_last_evaluations_alone():
    assert last_median([99.0, 1.0, 2.0, 9.0, 3.0, 4.0]) == 3.0
    assert last_median([1.0, 2.0, 6.0], count=2) == 4.0


def test_names_are_what_tells_the_folders_apart(tmp_path):
    folders = [tmp_path / 'runs' / variant / 'seed0' for variant in ('plain', 'gradaug')]
    assert short_names(folders) == ['plain', 'gradaug']
    assert short_names([tmp_path / 'a' / 'b', tmp_path / 'a' / 'c', tmp_path / 'd']) == ['a/b', 'a/c', 'd']
    assert short_names([tmp_path / 'a', tmp_path]) == ['a', tmp_path.name]
    assert short_names([tmp_path / 'only']) == ['only']
    twice = [tmp_path / 'x', tmp_path / 'x' / 'x']
    assert short_names(twice) == [str(folder) for folder in twice]
    with pytest.raises(OptionError, match='given twice'):
        short_names([tmp_path / 'a', tmp_path / 'b', tmp_path / 'b' / '..' / 'a'])


def test_runs_of_both_scripts_come_to_one_table_and_one_picture(tmp_path, capsys):
    pytest.importorskip('matplotlib')
    runs = [write_run(tmp_path / 'timm', TIMM), write_run(tmp_path / 'ours', OURS)]
    picture = tmp_path / 'both.png'
    main([*map(str, runs), '--out', str(picture)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[2:4] == [
        '| timm | 2 | 42.000 | 42.000 | 1.5000 | 45.000 (1) |',
        '| ours | 1 | 50.250 | 40.875 | 2.3000 | 50.250 (1) |',
    ]
    assert 'for reference alone' in lines[5]
    assert picture.read_bytes().startswith(b'\x89PNG')
    assert [path.name for path in tmp_path.glob('*.png*')] == ['both.png']


def test_run_of_train_py_can_be_compared(train, tmp_path, capsys):
    pytest.importorskip('matplotlib')
    folder = train('--epochs', 1)
    main([str(folder), '--out', str(tmp_path / 'one.png'), '--metric', 'eval_loss'])
    final = read_curve(folder)[-1]['eval_loss']
    assert f'| run | 0 | {final:.3f} | {final:.3f} |' in capsys.readouterr().out


@pytest.mark.parametrize(
    'summary, options, message',
    [
        (None, [], 'no run of train.py .summary.csv: No such file'),
        ('', [], 'holds no epoch yet'),
        (HEADER, [], 'holds no epoch yet'),
        (OURS, ['--metric', 'eval_top7'], r'--metric eval_top7: .* has no such column \(it has eval_loss, eval_top1'),
        (OURS, ['--out', 'missing/picture.png'], '--out missing/picture.png: there is no folder missing'),
        (OURS, ['--out', 'picture.txt'], '--out picture.txt: a picture ends in .png'),
    ],
)
def test_bad_input_is_named(tmp_path, summary, options, message):
    folder = tmp_path / 'run'
    folder.mkdir()
    if summary is not None:
        (folder / 'summary.csv').write_text(summary)
    with pytest.raises(OptionError, match=message):
        main([str(folder), *options])
