"""Numbers, devices, models and data that cannot be used are refused by option and value."""

import pytest

from tests.helpers.options import assert_refused

REFUSALS = [
    # numbers
    ('--epochs -1', ['--epochs -1']),
    ('--batch-size 0', ['--batch-size 0']),
    ('--workers -1', ['--workers -1']),
    ('--grad-accum-steps 0', ['--grad-accum-steps 0']),
    ('--checkpoint-hist 0', ['--checkpoint-hist 0']),
    ('--val-interval 0', ['--val-interval 0']),
    ('--log-interval 0', ['--log-interval 0']),
    ('--recount -1', ['--recount -1']),
    ('--clip-grad 0', ['--clip-grad 0']),
    ('--max-bad-updates -1', ['--max-bad-updates -1']),
    ('--smoothing 1', ['--smoothing 1']),
    ('--smoothing -0.1', ['--smoothing -0.1']),
    ('--seed -1', ['--seed -1']),
    ('--seed 4294967296', ['--seed 4294967296']),
    # device and formats
    ('--device nvidia', ['--device nvidia', '--device cpu']),
    ('--device-modules no_such_backend', ['--device-modules', 'no_such_backend']),
    ('--amp-dtype float64', ['--amp-dtype float64', 'float16', 'bfloat16']),
    ('--model-dtype fp8', ['--model-dtype fp8', 'float32']),
    ('--amp --model-dtype bfloat16', ['--model-dtype bfloat16', '--amp']),
    ('--fuser fast', ['--fuser fast', 'nvfuser']),
    ('--torchcompile inducter', ['--torchcompile inducter', 'did you mean inductor']),
    ('--torchcompile --torchcompile-mode fast', ['--torchcompile-mode fast', 'max-autotune']),
    ('--torchscript --torchcompile', ['--torchscript', '--torchcompile inductor']),
    ('--torchscript --sync-bn', ['--torchscript', '--sync-bn']),
    # model, weights, input
    ('--model resnet5O', ['--model resnet5O', 'did you mean', 'resnet50']),
    ('--model resnet50.a9_in1k', ['--model resnet50.a9_in1k', '(a9_in1k)', 'resnet50.a1_in1k']),
    ('--model timm/resnet50', ['--model timm/resnet50', 'hf-hub:timm/resnet50']),
    ('--model foo:resnet50', ['--model foo:resnet50', 'foo']),
    ('--model local-dir:no/such/model', ['--model local-dir:no/such/model', 'config.json']),
    ('--model resnet200 --pretrained', ['--model resnet200', '--pretrained']),
    ('--pretrained-path gone.pth', ['--pretrained-path gone.pth', 'no such file']),
    ('--initial-checkpoint gone.pth', ['--initial-checkpoint gone.pth', 'no such file']),
    ('--resume gone.pth', ['--resume gone.pth', 'no such file']),
    ('--input-size 3 0 32', ['--input-size 3 0 32']),
    ('--img-size 0', ['--img-size 0']),
    ('--img-size 64 --input-size 3 32 32', ['--img-size 64', '--input-size 3 32 32']),
    ('--img-size 32 --input-size 3 32 48', ['--img-size 32', '--input-size 3 32 48']),
    ('--input-size 32 32 3', ['--input-size 32 32 3', 'channels come first', '--input-size 3 32 32']),
    ('--input-size 224 192 1', ['--input-size 224 192 1', '--input-size 1 224 192']),
    ('--input-size 32 32 3 --in-chans 3', ['--input-size 32 32 3', 'channels come first']),
    ('--input-size 1 8 8 --in-chans 3', ['--input-size 1 8 8', '--in-chans 3']),
    ('--mean 0.5 0.5', ['--mean 0.5 0.5', '3 input channels']),
    ('--std 0.5 0.5 0.5 --in-chans 1', ['--std 0.5 0.5 0.5', '1 input channels']),
    ('--interpolation cubic', ['--interpolation cubic', 'bicubic']),
    ('--train-interpolation cubic', ['--train-interpolation cubic', 'bicubic']),
    # data
    ('--dataset regaug/letters', ['--dataset regaug/letters', 'regaug/digits']),
    ('--data-dir images', ['--dataset regaug/digits', '--data-dir images']),
    ('images', ['--dataset regaug/digits', 'data images']),
    ('images --dataset= --data-dir empty', ['--data-dir empty', 'images']),
    ('--dataset torsch/cifar10', ['--dataset torsch/cifar10', 'did you mean torch']),
    ('--dataset torch/cifar11 --data-dir .', ['--dataset torch/cifar11', 'cifar10']),
    ('--dataset torch/cifar10', ['--data-dir', '--dataset torch/cifar10', 'none was given']),
    ('--dataset torch/cifar10 --data-dir gone', ['--data-dir gone', 'no such folder']),
    ('--dataset=', ['--data-dir', "--dataset ''", 'none was given']),
    ('--dataset= --data-dir gone', ['--data-dir gone', 'no such folder']),
    ('--dataset= gone', ['data gone', 'no such folder']),
    ('--dataset= --data-dir empty', ['--data-dir empty', 'is empty']),
    ('--dataset= --data-dir notes.txt', ['--data-dir notes.txt', '.tar']),
    ('--dataset= --data-dir images --class-map gone.txt', ['--class-map gone.txt', 'Cannot locate']),
    ('--dataset= --data-dir images --class-map map.json', ['--class-map map.json', 'Unsupported', '.json']),
    ('--input-img-mode GREY', ['--input-img-mode GREY', 'RGB']),
    ('--label-split 2', ['--label-split 2', '--labels-per-class']),
    ('--labels-per-class 0', ['--labels-per-class 0']),
    ('--aug-repeats 3', ['--aug-repeats 3', 'torchrun']),
    # scheduled sizes and NaFlex
    ('--train-batch-sizes 8', ['--train-batch-sizes 8', '--train-img-sizes']),
    ('--train-size-probs 1', ['--train-size-probs 1', '--train-img-sizes']),
    ('--train-batches-per-epoch 5', ['--train-batches-per-epoch 5', '--train-img-sizes']),
    ('--train-size-schedule progressive', ['--train-size-schedule progressive', '--train-img-sizes']),
    ('--train-img-sizes 8 16 --train-batch-sizes 4', ['--train-batch-sizes 4', '--train-img-sizes 8 16']),
    ('--train-img-sizes 8 16 --train-size-probs 1', ['--train-size-probs 1', '--train-img-sizes 8 16']),
    ('--train-img-sizes 8 16 --train-size-probs 0 0', ['--train-size-probs 0.0 0.0', 'positive sum']),
    ('--train-img-sizes 8 --train-size-schedule progressive', ['--train-img-sizes 8', 'progressive']),
    (
        '--train-img-sizes 8 16 --train-size-schedule progressive --epochs 0 --refine-epochs 1',
        ['--epochs 0', 'progressive'],
    ),
    (
        '--train-img-sizes 8 --train-batches-per-epoch 3 --grad-accum-steps 4',
        ['--grad-accum-steps 4', 'an epoch has 3 batches'],
    ),
    ('--train-img-sizes 8 --use-multi-epochs-loader', ['--train-img-sizes 8', '--use-multi-epochs-loader']),
    ('--train-img-sizes 8 --aug-splits 2', ['--train-img-sizes 8', '--aug-splits 2']),
    ('--train-img-sizes 8 --naflex-loader', ['--train-img-sizes 8', '--naflex-loader']),
    ('--naflex-patch-size-probs 1', ['--naflex-patch-size-probs 1', '--naflex-patch-sizes']),
    (
        '--naflex-patch-sizes 8 16 --naflex-patch-size-probs 1',
        ['--naflex-patch-size-probs 1', '--naflex-patch-sizes 8 16'],
    ),
    ('--naflex-patch-sizes 8 --naflex-patch-size-probs 0', ['--naflex-patch-size-probs 0', 'above 0']),
    ('--naflex-loader --aug-splits 2', ['--naflex-loader', '--aug-splits 2']),
    ('--naflex-loader --jsd-loss', ['--naflex-loader', '--jsd-loss']),
]


@pytest.mark.parametrize(('line', 'parts'), REFUSALS, ids=[line for line, _ in REFUSALS])
def test_what_cannot_be_used_is_refused_by_option_and_value(workplace, line, parts):
    assert_refused(line, parts)
