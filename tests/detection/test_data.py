"""COCO's format: what is read, what is left out and counted, and the boxes and masks that come out."""

import json
import logging

import numpy as np
import pytest
import torch
from PIL import Image

from regaug.detection.data import Detections, Split, TrainBatches, mask_of
from regaug.detection.model import losses_at
from regaug.errors import OptionError
from tests.helpers.detection import COLOURS, annotation, detection_args, make_detector, write_split

BOXES = [[(7, (5, 10, 30, 40)), (3, (40, 3, 77, 50))], [(3, (0, 0, 12, 64))], [(7, (60, 20, 80, 64))]]
CPU = torch.device('cpu')


@pytest.fixture
def content(tmp_path):
    """The json of three drawn images; `write` puts a changed one in its place."""
    return write_split(tmp_path, 'train2017', BOXES)


def write(root, content):
    (root / 'instances_train2017.json').write_text(json.dumps(content))


def read(root, masks=True):
    return Split(root, 'train2017', option='--train-split', masks=masks)


def dataset(root, seed=None):
    return Detections(read(root), masks=True, seed=seed)


def found_in(pixels):
    """Objects by label as the colours of an image [3, H, W] tell them: mask and, for the first pixels, box."""
    objects = {}
    for label, category in enumerate(sorted(COLOURS), start=1):
        colour = torch.tensor(COLOURS[category], dtype=pixels.dtype).view(3, 1, 1)
        mask = (pixels - colour).abs().amax(0) < 100
        if mask.any():
            rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
            box = torch.stack([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]).float()
            objects[label] = (box, mask)
    return objects


def assert_fits(image, target, tolerance):
    """Boxes and masks of a target are where the colours are, within some pixels."""
    objects = found_in(image.float())
    assert sorted(target['labels'].tolist()) == sorted(objects)
    for label, box, mask in zip(target['labels'].tolist(), target['boxes'], target['masks'], strict=True):
        expected, pixels = objects[label]
        assert (box.float() - expected).abs().max() <= tolerance
        wrong = (mask.bool() ^ pixels).sum()
        assert wrong <= 2 * tolerance * (sum(expected[2:] - expected[:2]))


# --- images and objects ------------------------------------------------------------------------------------------


def test_boxes_labels_and_masks_are_where_the_rectangles_are(tmp_path, content):
    data = dataset(tmp_path)
    assert len(data) == 3
    for image, target in (data[index] for index in range(3)):
        assert image.dtype == torch.uint8 and image.shape == (3, 64, 80)
        assert_fits(image, target, tolerance=0)


def test_flipped_images_take_boxes_and_masks_along(tmp_path, content):
    plain, data = dataset(tmp_path), dataset(tmp_path, seed=1)
    flipped = 0
    for data.epoch in range(8):
        for index in range(3):
            image, target = data[index]
            assert_fits(image, target, tolerance=0)
            flipped += not torch.equal(image, plain[index][0])
    assert 4 <= flipped <= 20


@pytest.mark.parametrize('size', [64, 96, 48, 33])
def test_boxes_and_masks_follow_the_resize(tmp_path, content, size):
    _, detector, _ = make_detector(tmp_path, '--detector', 'mask', dtype=torch.float32)
    seen = {}
    detector.rpn.register_forward_pre_hook(lambda module, given: seen.update(images=given[0], targets=given[2]))

    def backbone(images):
        return detector.backbone(images)

    samples = [dataset(tmp_path)[index] for index in range(3)]
    images, targets = [image.float() / 255 for image, _ in samples], [target for _, target in samples]
    losses_at(detector, backbone, size, images, targets)
    mean, std = (torch.tensor(getattr(detector.transform, f'image_{name}')).view(3, 1, 1) for name in ('mean', 'std'))
    for image, (height, width), target in zip(seen['images'].tensors, seen['images'].image_sizes, seen['targets']):
        assert height == size and abs(width - 80 * size / 64) <= 1
        assert_fits(255 * (image * std + mean)[:, :height, :width], target, tolerance=1 + size / 64)


def test_long_edge_is_capped_in_proportion(tmp_path, content):
    _, detector, _ = make_detector(tmp_path, '--size', 64, '--max-size', 70, dtype=torch.float32)
    seen = []
    detector.rpn.register_forward_pre_hook(lambda module, given: seen.append(given[0].image_sizes[0]))
    image, target = dataset(tmp_path)[0]
    for size in (64, 32):
        losses_at(detector, detector.backbone, size, [image.float() / 255], [target])
    assert seen == [(56, 70), (28, 35)]


def test_masks_hold_the_pixels_whose_centres_are_inside():
    rows, columns = np.mgrid[:48, :64] + 0.5
    for corners in ([(3.0, 4.0), (60.0, 20.0), (11.0, 44.0)], [(1.3, 40.2), (30.7, 2.1), (55.5, 30.6)]):
        distances = []
        for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1], strict=True):
            along = np.hypot(x1 - x0, y1 - y0)
            distances.append(((x1 - x0) * (rows - y0) - (y1 - y0) * (columns - x0)) / along)
        inside = np.min(distances, axis=0)
        mask = mask_of([np.ravel(corners).tolist()], 64, 48)
        assert mask[inside > 0.1].all() and not mask[inside < -0.2].any()
        assert abs(int(mask.sum()) - int((inside > 0).sum())) < 0.02 * mask.sum()
    whole = mask_of([[0, 0, 64, 0, 64, 48, 0, 48]], 64, 48)
    assert whole.all()
    two = mask_of([[0, 0, 4, 0, 4, 4, 0, 4], [10, 10, 12, 10, 12, 15, 10, 15]], 64, 48)
    assert two.sum() == 16 + 10 and two[:4, :4].all() and two[10:15, 10:12].all()


# --- what is left out --------------------------------------------------------------------------------------------


def test_boxes_without_area_or_outside_are_left_out_and_counted(tmp_path, content, caplog):
    bad = [(5, 5, 5, 20), (5, 20, 30, 20), (90, 5, 99, 20), (5, -9, 20, -2), (30, 5, 20, 9), (float('nan'), 1, 9, 9)]
    content['annotations'] += [annotation(50 + i, 100, 7, box) for i, box in enumerate(bad)]
    write(tmp_path, content)
    with caplog.at_level(logging.WARNING):
        split = read(tmp_path)
    assert [len(objects) for objects in split.objects.values()] == [2, 1, 1]
    assert [entry['id'] for entry in split.ground_truth['annotations']] == [1, 2, 3, 4]
    assert '--train-split train2017: 6 of 10 objects are left out: a box outside of the image' in caplog.text


def test_boxes_are_cut_at_the_border(tmp_path, content):
    content['annotations'].append(annotation(50, 101, 7, (-4, 60, 90, 70)))
    write(tmp_path, content)
    assert read(tmp_path).objects[101][1]['box'] == (0, 60, 80, 64)


def test_crowds_are_no_targets_but_stay_in_the_ground_truth(tmp_path, content):
    rle = {'counts': [0, 80 * 64], 'size': [64, 80]}
    content['annotations'].append(annotation(50, 100, 7, (0, 0, 80, 64), iscrowd=1, segmentation=rle))
    write(tmp_path, content)
    split = read(tmp_path)
    assert len(split.objects[100]) == 2
    assert split.ground_truth['annotations'][-1]['id'] == 50


def test_objects_without_polygons_are_left_out_where_masks_are_wanted(tmp_path, content, caplog):
    content['annotations'][0]['segmentation'] = [[1, 2, 3, 4]]
    del content['annotations'][1]['segmentation']
    write(tmp_path, content)
    assert len(read(tmp_path, masks=False).objects[100]) == 2
    assert caplog.text == ''
    assert read(tmp_path).objects[100] == []
    assert '2 of 4 objects are left out: no polygons' in caplog.text


def test_images_without_objects_are_evaluated_but_not_trained_on(tmp_path, content):
    content['annotations'] = content['annotations'][:2]
    write(tmp_path, content)
    assert [len(dataset(tmp_path, seed=seed)) for seed in (None, 1)] == [3, 1]
    target = dataset(tmp_path)[2][1]
    assert target['boxes'].shape == (0, 4) and target['masks'].shape == (0, 64, 80)


# --- bad input ---------------------------------------------------------------------------------------------------


def refusal(root):
    with pytest.raises(OptionError) as error:
        read(root)
    assert '\n' not in str(error.value)
    return str(error.value)


def test_missing_images_are_counted_and_the_first_is_named(tmp_path, content):
    for name in ('100.png', '102.png'):
        (tmp_path / 'train2017' / name).unlink()
    found = refusal(tmp_path)
    assert found.startswith('--train-split train2017: 2 images of ')
    assert found.endswith('are not there, the first is 100.png.')


def test_no_annotations_are_refused(tmp_path, content):
    write(tmp_path, {**content, 'annotations': []})
    assert 'has no annotations to use' in refusal(tmp_path)


@pytest.mark.parametrize(
    'change, reason',
    [
        (lambda content: content.pop('categories'), "no 'categories'"),
        (lambda content: content['annotations'][0].update(image_id=5), 'no 5'),
        (lambda content: content['annotations'][0].update(category_id=5), 'category 5'),
        (lambda content: content['annotations'][0].update(bbox=[1, 2]), 'not enough values'),
        (lambda content: content.update(images=3), 'not iterable'),
    ],
)
def test_what_is_no_coco_json_is_refused(tmp_path, content, change, reason):
    change(content)
    write(tmp_path, content)
    found = refusal(tmp_path)
    assert 'is not in the format of COCO' in found and reason in found


def test_files_that_are_not_there_or_broken_are_refused(tmp_path, content):
    (tmp_path / 'instances_train2017.json').write_text('{"images": [')
    assert 'is not in the format of COCO' in refusal(tmp_path)
    (tmp_path / 'instances_train2017.json').unlink()
    assert 'there is no annotations/instances_train2017.json in it' in refusal(tmp_path)


def test_json_may_lie_in_a_folder_of_annotations(tmp_path, content):
    (tmp_path / 'annotations').mkdir()
    (tmp_path / 'instances_train2017.json').rename(tmp_path / 'annotations' / 'instances_train2017.json')
    assert len(read(tmp_path).images) == 3


def test_an_image_that_is_broken_or_of_another_size_is_named(tmp_path, content):
    Image.new('RGB', (10, 20)).save(tmp_path / 'train2017' / '100.png')
    with pytest.raises(OptionError, match=r'100\.png has 10x20 pixels, the json says 80x64'):
        dataset(tmp_path)[0]
    (tmp_path / 'train2017' / '101.png').write_bytes(b'no image')
    with pytest.raises(OptionError, match=r'101\.png cannot be read'):
        dataset(tmp_path)[1]


# --- batches -----------------------------------------------------------------------------------------------------


def batches(root, epoch, *options, rank=0, world_size=1):
    """Images of each training batch."""
    args = detection_args(root, *options, rank=rank, world_size=world_size)
    loader = TrainBatches(dataset(root, seed=3), args, CPU)
    loader.set_epoch(epoch)
    return [images for images, _ in loader]


def test_two_ranks_together_see_the_batches_of_one_process(coco):
    one = batches(coco, 1, '--batch-size', 2)
    ranks = [batches(coco, 1, '--batch-size', 1, rank=rank, world_size=2) for rank in range(2)]
    assert len(one) == 2
    for whole, first, second in zip(one, *ranks, strict=True):
        assert all(map(torch.equal, whole, [*first, *second]))


def test_order_changes_with_the_epoch_and_is_the_same_again(coco):
    runs = [torch.stack([image for (image,) in batches(coco, epoch, '--batch-size', 1)]) for epoch in (0, 1, 0)]
    assert torch.equal(runs[0], runs[2])
    assert not torch.equal(runs[0], runs[1])
    assert runs[0].shape == (5, 3, 64, 80) and runs[0].min() >= 0 and runs[0].max() == 1


def test_fewer_images_than_an_update_takes_are_refused(coco):
    with pytest.raises(OptionError, match='--batch-size 3: 2 processes take more than the 5 training images'):
        batches(coco, 0, '--batch-size', 3, world_size=2)
