"""Randomised smoothing: bounds by published numbers, certificates by closed form, files that are continued."""

import json
import math
import shutil
from statistics import NormalDist

import pytest
import torch
from torch import nn

from regaug.errors import OptionError
from regaug.evaluators import certificates, smoothing
from regaug.evaluators.certificates import Certificate, certified_radius, lower_bound
from regaug.evaluators.smoothing import Certification, fingerprint
from tests.helpers.evaluators import MemoryData, small_network
from tests.helpers.validate import NUM_CLASSES, make_model

pytest_plugins = ['tests.helpers.validate_fixtures']
pytestmark = pytest.mark.filterwarnings('ignore:unclosed file:ResourceWarning')  # timm's folder reader closes none


def test_bounds_equal_published_numbers():
    assert lower_bound(100, 100, 0.001) == pytest.approx(0.933254, abs=5e-7)
    assert lower_bound(100, 100, 0.001) == pytest.approx(0.001 ** (1 / 100), rel=1e-12), 'closed form where all agree'
    assert certified_radius(100, 100, 0.001, 1.0) == pytest.approx(1.50, abs=0.005)
    assert certified_radius(990, 1000, 0.001, 0.5) == pytest.approx(1.978 * 0.5, abs=5e-4)
    for trials, radius in ((1_000, 2.46), (10_000, 3.20), (100_000, 3.81)):
        assert certified_radius(trials, trials, 0.001, 1.0) == pytest.approx(radius, abs=0.005)


@pytest.mark.parametrize('trials', [1, 10, 1000, 100_000])
def test_bounds_equal_the_quantiles_of_the_beta_distribution(trials):
    beta = pytest.importorskip('scipy.stats').beta
    for successes in {1, trials // 3, trials // 2 + 1, trials - 1, trials} - {0}:
        for alpha in (0.05, 0.001):
            expected = beta.ppf(alpha, successes, trials - successes + 1)
            assert lower_bound(successes, trials, alpha) == pytest.approx(expected, rel=1e-7)
    assert lower_bound(0, trials, 0.001) == 0


def test_radius_needs_a_bound_above_one_half():
    assert certified_radius(60, 100, 0.001, 1.0) is None
    assert certified_radius(80, 100, 0.001, 1.0) > 0


class Linear(nn.Module):
    """Class 1 where w x + b > 0."""

    def __init__(self, weight, bias):
        super().__init__()
        self.weight, self.bias = weight, bias

    def forward(self, input):
        score = input.flatten(1) @ self.weight + self.bias
        return torch.stack([-score, score], dim=1)


MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def test_certificates_of_a_linear_network_have_a_closed_form():
    """The noise is drawn in pixels and normalised: the distance to the boundary is that in pixel space."""
    torch.manual_seed(2)
    in_pixels = torch.randn(48)
    along = torch.linspace(-0.5, 0.45, 24)
    pixels = (0.5 + along[:, None] * in_pixels.sign()).view(-1, 3, 4, 4)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    offset = -0.5 * float(in_pixels.sum())
    scale = std.expand(1, 3, 4, 4).flatten()
    shift = mean.expand(1, 3, 4, 4).flatten()
    network = Linear(in_pixels * scale, offset + float(shift @ in_pixels))
    distance = (pixels.flatten(1) @ in_pixels + offset) / in_pixels.norm()
    labels = (distance > 0).long()
    sigma, n = 0.5, 4000
    data = MemoryData(pixels, labels, batch_size=1000, mean=MEAN, std=STD)
    certification = Certification(sigma, n=n, n0=100, skip=1)
    counted = {}
    for index, image in enumerate(pixels):
        generator = torch.Generator().manual_seed(index)
        counted[index] = certification.count(network, data, image[None], n, generator)
        probability = NormalDist().cdf(float(distance[index]) / sigma)
        tolerance = 5 * math.sqrt(probability * (1 - probability) / n) + 3 / n
        assert counted[index].sum() == n
        assert float(counted[index][1]) / n == pytest.approx(probability, abs=tolerance)
    columns = dict(certification.run(network, data))
    radii = [columns[f'certified_{radius:g}'] for radius in certificates.RADII]
    true = [100 * sum(each >= radius for each in distance.abs().tolist()) / 24 for radius in certificates.RADII]
    assert all(found <= exact for found, exact in zip(radii, true, strict=True)), 'no radius beyond the boundary'
    near = [100 * sum(each >= radius + 0.12 for each in distance.abs().tolist()) / 24 for radius in certificates.RADII]
    assert all(found >= low for found, low in zip(radii[1:5], near[1:5], strict=True)), 'and not far below it'
    assert radii[0] == 100 - columns['abstained']
    assert radii[1] > radii[2] > radii[4] > 0, 'a test with one outcome would test nothing'


def test_batches_keep_the_number_of_copies():
    network = small_network()
    data = MemoryData(torch.rand(2, 3, 8, 8), torch.tensor([0, 1]), batch_size=7)
    counts = Certification(0.1).count(network, data, data.images[:1], 100, torch.Generator().manual_seed(1))
    assert int(counts.sum()) == 100


FEW = ['--certify', 0.25, '--certify-n', 60, '--certify-n0', 10, '--certify-skip', 7]


@pytest.fixture
def certify(run, checkpoint, tmp_path):
    def certify(*options):
        return run('--checkpoint', checkpoint, *FEW, '--ece', '--certify-file', tmp_path / 'file.tsv', *options)

    return certify


def without_time(path):
    return [line.rsplit('\t', 1)[0] for line in path.read_text().splitlines()]


def test_file_has_the_fields_format_and_is_continued_after_an_interruption(certify, tmp_path, monkeypatch, run):
    path = tmp_path / 'file.tsv'
    rows = certify()
    assert [row['condition'] for row in rows] == ['clean', 'certify sigma 0.25']
    assert rows[1]['certified_images'] == 6
    lines = without_time(path)
    assert lines[0] == 'idx\tlabel\tpredict\tradius\tcorrect'
    assert [line.split('\t')[0] for line in lines[1:]] == ['0', '7', '14', '21', '28', '35']
    assert [line.split('\t')[1] for line in lines[1:]] == ['0', '1', '3', '5', '7', '8']
    complete = path.read_text()
    path.write_text(complete[: complete.index('\n21\t') + 9])  # cut off in the middle of a line
    counted = []
    count = Certification.count

    def counting(self, *args):
        counted.append(args[3])
        return count(self, *args)

    monkeypatch.setattr(Certification, 'count', counting)
    assert certify() == rows
    assert without_time(path) == lines
    assert counted == [10, 60] * 3, 'three images were left'
    assert certify() == rows
    assert counted == [10, 60] * 3


def test_each_width_has_a_file_of_its_own(certify, checkpoint, tmp_path):
    rows = certify('--width', 1.0, 0.5)
    assert len(rows) == 4
    names = sorted(path.name for path in tmp_path.glob('*.tsv'))
    stem = f'file-test_resnet-{checkpoint.parent.name}-model'
    assert names == [f'{stem}-w0.5.tsv', f'{stem}-w1.tsv']


def test_a_file_of_other_settings_is_not_continued(certify, refusal, checkpoint, tmp_path):
    certify()
    options = ['--checkpoint', checkpoint, '--certify', 0.5, '--certify-n', 60, '--certify-n0', 10]
    complaint = refusal(*options, '--certify-file', tmp_path / 'file.tsv')
    assert 'sigma 0.25' in complaint
    assert str(tmp_path / 'file.tsv') in complaint
    (tmp_path / 'foreign.tsv').write_text('something\n')
    assert 'foreign.tsv.json' in refusal(*options, '--certify-file', tmp_path / 'foreign.tsv')


def test_a_file_of_another_network_or_input_is_not_continued(certify, refusal, images, checkpoint, tmp_path):
    certify()
    other = tmp_path / 'other' / checkpoint.name
    other.parent.mkdir()
    torch.save(make_model(images, seed=2).state_dict(), other)
    file = ['--certify-file', tmp_path / 'file.tsv']
    assert 'it was made with weights ' in refusal('--checkpoint', other, *FEW, *file)
    assert 'it was made with crop_pct 0.95;' in refusal('--checkpoint', checkpoint, *FEW, *file, '--crop-pct', 0.5)
    assert 'it was made with width None;' in refusal('--checkpoint', checkpoint, *FEW, *file, '--width', 1.0)
    assert 'it was made with gp None;' in refusal('--checkpoint', checkpoint, *FEW, *file, '--gp', 'max')
    narrow = ['--certify-file', tmp_path / 'narrow.tsv', '--width', 0.5]
    certify(*narrow, '--calibrate-images', 16, '--batch-size', 8)
    complaint = refusal('--checkpoint', checkpoint, *FEW, *narrow, '--calibrate-images', 8, '--batch-size', 8)
    assert 'it was made with calibrate_images 16;' in complaint
    (tmp_path / 'valid.txt').write_text('\n'.join(map(str, reversed(range(NUM_CLASSES)))))
    kept = ['--valid-labels', tmp_path / 'valid.txt']
    assert 'it was made with valid_labels ;' in refusal('--checkpoint', checkpoint, *FEW, *file, *kept)
    moved = tmp_path / 'moved.pth'
    moved.write_bytes(checkpoint.read_bytes())
    certify('--checkpoint', moved)


def test_statistics_tell_networks_apart_as_weights_do():
    one, two = (small_network().requires_grad_(False) for _ in range(2))
    assert fingerprint(one) == fingerprint(two)
    two[1].running_mean[3] += 1e-6
    assert fingerprint(one) != fingerprint(two)
    assert fingerprint(one.bfloat16()) != fingerprint(small_network())


def test_images_that_cannot_be_read_are_not_certified(run, folder, images, checkpoint, tmp_path):
    shutil.copytree(folder, tmp_path / 'damaged')
    paths = sorted((tmp_path / 'damaged' / 'val').glob('*/*.JPEG'))
    paths[7].write_bytes(b'no image')
    file = tmp_path / 'file.tsv'
    argv = ['--checkpoint', checkpoint, *FEW, '--certify-file', file]
    row = run(*argv, data=('--data-dir', tmp_path / 'damaged'))[1]
    assert row['certified_images'] == 5
    places = [line.split('\t')[:2] for line in file.read_text().splitlines()[1:]]
    assert places == [[str(place), str(int(images[1][place]))] for place in (0, 14, 21, 28, 35)]
    complete = file.read_text()
    assert run(*argv, data=('--data-dir', tmp_path / 'damaged'))[1] == row, 'where only that one is left'
    assert file.read_text() == complete


def test_a_radius_is_read_back_as_it_was_proved(tmp_path):
    (tmp_path / 'file').write_text(certificates.HEADER + Certificate(0, 1, 1, 0.74996, 0.5).line())
    (found,) = certificates.read_certificates(tmp_path / 'file')
    assert found.radius == 0.74996
    assert certificates.certified_accuracy([found], 0.75) == 0


def test_bad_certification_is_refused(refusal, checkpoint):
    weights = ['--checkpoint', checkpoint]
    for needle, options in {
        '--certify 0.0': ['--certify', 0],
        '--certify -0.5': ['--certify', -0.5],
        '--certify-n 50': ['--certify', 0.5, '--certify-n', 50],
        '--certify-alpha 1.5': ['--certify', 0.5, '--certify-alpha', 1.5],
        '--certify-skip 0': ['--certify', 0.5, '--certify-skip', 0],
        '--certify-file /nowhere/file': ['--certify', 0.5, '--certify-file', '/nowhere/file'],
    }.items():
        assert needle in refusal(*weights, *options), needle


def test_table_takes_the_best_file_at_every_radius(tmp_path, capsys, monkeypatch):
    for name, radii in (('one', (0.3, 0.3, 0.0, 3.0)), ('two', (0.6, 0.1, 0.1, 0.1))):
        lines = [
            f'{i}\t1\t{1 if radius else -1}\t{radius}\t{int(radius > 0)}\t0:00:01' for i, radius in enumerate(radii)
        ]
        (tmp_path / name).write_text(certificates.HEADER + '\n'.join(lines) + '\n')
    monkeypatch.setattr('sys.argv', ['smoothing', str(tmp_path / 'one'), str(tmp_path / 'two')])
    smoothing.main()
    head, one, two, best = (line.split() for line in capsys.readouterr().out.splitlines())
    assert head == [f'{step / 4:.2f}' for step in range(1, 12)]
    assert one[1:] == ['75.0'] + ['25.0'] * 10
    assert two[1:] == ['25.0'] * 2 + ['0.0'] * 9
    assert best[1:] == ['75.0'] + ['25.0'] * 10
    (tmp_path / 'three').write_text(json.dumps({}))
    with pytest.raises(OptionError, match='three'):
        certificates.read_certificates(tmp_path / 'three')


def test_a_class_is_certified_on_other_noise_than_chose_it():
    seen = []

    class Keeping(nn.Module):
        def forward(self, input):
            seen.append(input)
            return torch.zeros(len(input), 2)

    data = MemoryData(torch.full((1, 3, 4, 4), 0.5), torch.tensor([0]), batch_size=10)
    list(Certification(0.25, n=10, n0=10, skip=1).run(Keeping(), data))
    chose, certified = seen
    assert len(chose) == len(certified) == 10
    assert (chose[:, None] - certified).abs().flatten(2).amax(dim=2).min() > 0.01  # no copy comes twice
