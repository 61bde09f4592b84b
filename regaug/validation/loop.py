"""Evaluation of one model on one split: images, labels, warm-up, metrics."""

import logging
import time

import torch
from timm.data import RealLabelsImagenet, create_loader, create_naflex_loader
from timm.utils import AverageMeter, accuracy
from torch import nn
from torch.utils.data import IterableDataset

from regaug.data.datasets import class_index, create_dataset
from regaug.data.samples import Samples
from regaug.errors import OptionError

_logger = logging.getLogger('validate')


class EvaluationData:
    """The images and labels that a model is evaluated on.

    Args:
        args: Options.
        data_config: timm's data configuration.
        num_classes: Outputs of the model.
        device: Where batches are delivered.
        precision: `regaug.device.Precision` of the run.

    Attributes:
        dataset: Data set of `--split`.
        valid_labels: Outputs to keep (`--valid-labels`), None for all.

    Raises:
        OptionError: Data or labels are missing, or do not fit the model.
    """

    def __init__(self, args, data_config, *, num_classes, device, precision):
        self.args = args
        self.data_config = data_config
        self.device = device
        self.precision = precision
        self.dataset = self.open(args.split)
        self.valid_labels = read_valid_labels(args.valid_labels, num_classes) if args.valid_labels else None
        if args.real_labels:
            self.real_labels()
        else:
            self._check_classes(num_classes)

    def open(self, split):
        """Opens a split of the data set."""
        args = self.args
        return create_dataset(
            args.dataset,
            args.data or args.data_dir,
            split,
            download=args.dataset_download,
            load_bytes=args.tf_preprocessing,
            class_map=args.class_map,
            num_samples=args.num_samples,
            input_key=args.input_key,
            input_img_mode=args.input_img_mode or ('RGB' if self.data_config['input_size'][0] == 3 else 'L'),
            target_key=args.target_key,
            trust_remote_code=args.dataset_trust_remote_code,
            seed=args.seed,
        )

    def loader(self, dataset):
        """timm's loader of a data set, with the transform of evaluation."""
        args = self.args
        if not isinstance(dataset, IterableDataset | Samples):
            dataset = Samples(dataset)
        common = dict(
            batch_size=args.batch_size,
            use_prefetcher=not args.no_prefetcher,
            interpolation=self.data_config['interpolation'],
            mean=self.data_config['mean'],
            std=self.data_config['std'],
            num_workers=args.workers,
            crop_pct=self.data_config['crop_pct'],
            crop_mode=self.data_config['crop_mode'],
            crop_border_pixels=args.crop_border_pixels,
            pin_memory=args.pin_mem,
            device=self.device,
            img_dtype=self.precision.input_dtype,
        )
        if args.naflex_loader:
            return create_naflex_loader(
                dataset,
                patch_size=self.data_config['patch_size'],
                max_seq_len=args.naflex_max_seq_len,
                channels=self.data_config['input_size'][0],
                **common,
            )
        return create_loader(
            dataset, input_size=self.data_config['input_size'], tf_preprocessing=args.tf_preprocessing, **common
        )

    def place(self, input):
        """Brings an input to the device, the number format and the memory format of the model.

        Args:
            input: Images [B, C, H, W], or the NaFlex loader's dict of patches and their places.
        """
        dtype = self.precision.model_dtype
        if isinstance(input, dict):
            tensors = {key: value.to(self.device) for key, value in input.items() if torch.is_tensor(value)}
            return input | tensors | {'patches': tensors['patches'].to(dtype)}
        memory_format = torch.channels_last if self.args.channels_last else torch.preserve_format
        return input.to(self.device, dtype, memory_format=memory_format)

    def real_labels(self):
        """A fresh judge of predictions by the re-assessed labels of `--real-labels`, None without the option."""
        path = self.args.real_labels
        if not path:
            return None
        try:
            judge = RealLabelsImagenet(self.dataset.filenames(basename=True), real_json=path)
        except (OSError, ValueError) as error:
            raise OptionError(f'--real-labels {path}: {error}') from error
        except AssertionError:
            raise OptionError(
                f'--real-labels {path}: the file and --split {self.args.split} have different numbers of images '
                f'({len(self.dataset)} in the split).'
            ) from None
        foreign = next((name for name in judge.filenames if name not in judge.real_labels), None)
        if foreign:
            raise OptionError(f'--real-labels {path}: {foreign} is not named as the validation images of ImageNet are.')
        return judge

    def _check_classes(self, num_classes):
        classes = class_index(self.dataset)
        if classes is None:
            return
        found = max(classes.values()) + 1
        outputs = num_classes if self.valid_labels is None else len(self.valid_labels)
        given = self.args.num_classes is not None
        if found > outputs or (given and found != outputs):
            option = f'--num-classes {num_classes}' if given else f'--model {self.args.model} ({num_classes} outputs)'
            kept = '' if self.valid_labels is None else f', {outputs} of them kept by --valid-labels'
            raise OptionError(f'{option}{kept}: the data has {found} classes.')
        if found < outputs:
            _logger.warning(f'The model has {outputs} outputs for {found} classes of the data.')


def read_valid_labels(path, num_classes):
    """Reads the class indices of `--valid-labels`, one a line.

    Args:
        path: Text file.
        num_classes: Outputs of the model.

    Returns:
        List of indices in [0, num_classes).

    Raises:
        OptionError: The file cannot be read, or a line is no index of an output.
    """
    try:
        with open(path) as file:
            labels = [int(line) for line in file if line.strip()]
    except (OSError, ValueError) as error:
        raise OptionError(f'--valid-labels {path}: {error}') from error
    wrong = [label for label in labels if not 0 <= label < num_classes]
    if wrong or not labels:
        what = f'class index {wrong[0]} is not one of the {num_classes} outputs' if wrong else 'the file is empty'
        raise OptionError(f'--valid-labels {path}: {what}.')
    return labels


@torch.inference_mode()
def warm_up(args, network, data):
    """Runs one random batch, so that the first real one is timed as the others are.

    The batch comes from torch's global generator, as in timm's script. With the NaFlex loader there is none.
    """
    if args.naflex_loader:
        return
    input = data.place(torch.randn(args.batch_size, *data.data_config['input_size']))
    with data.precision.autocast():
        network(input)


@torch.inference_mode()
def evaluate(args, network, data):
    """Evaluates a prepared model on all images of the split.

    Args:
        args: Options.
        network: The model, on its device and in evaluation mode.
        data: `EvaluationData`.

    Returns:
        Dict of `top1` and `top5` in percent (by the re-assessed labels under `--real-labels`), and under
        `--metrics-avg A` also `A_precision`, `A_recall` and `A_f1_score` in percent.
    """
    loader = data.loader(data.dataset)
    real_labels = data.real_labels()
    criterion = nn.CrossEntropyLoss()
    seconds, losses, top1, top5 = (AverageMeter() for _ in range(4))
    predictions, targets = [], []
    start = time.perf_counter()
    for batch_idx, (input, target) in enumerate(loader):
        target = target.to(data.device)
        with data.precision.autocast():
            output = network(data.place(input))
            if data.valid_labels is not None:
                output = output[:, data.valid_labels]
            loss = criterion(output, target)
        if real_labels is not None:
            real_labels.add_result(output)
        for meter, value in zip((losses, top1, top5), (loss, *accuracy(output, target, topk=(1, 5))), strict=True):
            meter.update(value.item(), len(target))
        if args.metrics_avg:
            predictions.append(output.argmax(dim=1).cpu())
            targets.append(target.cpu())
        seconds.update(time.perf_counter() - start)
        start = time.perf_counter()
        if batch_idx % args.log_freq == 0:
            _logger.info(
                f'Test: [{batch_idx:>4d}/{len(loader)}]  '
                f'Time: {seconds.val:.3f}s ({seconds.avg:.3f}s, {len(target) / seconds.avg:>7.2f}/s)  '
                f'Loss: {losses.val:>7.4f} ({losses.avg:>6.4f})  '
                f'Acc@1: {top1.val:>7.3f} ({top1.avg:>7.3f})  Acc@5: {top5.val:>7.3f} ({top5.avg:>7.3f})'
            )
    metrics = {'top1': top1.avg, 'top5': top5.avg}
    if real_labels is not None:
        metrics = {f'top{k}': real_labels.get_accuracy(k) for k in (1, 5)}
    if args.metrics_avg:
        metrics |= class_metrics(torch.cat(predictions), torch.cat(targets), args.metrics_avg)
    return metrics


def class_metrics(predictions, targets, average):
    """Precision, recall and F1 over the classes, by scikit-learn.

    Args:
        predictions: Predicted class indices [N].
        targets: True class indices [N].
        average: 'micro', 'macro' or 'weighted'.

    Returns:
        Dict of percentages: `{average}_precision`, `{average}_recall`, `{average}_f1_score`.
    """
    from sklearn.metrics import precision_recall_fscore_support  # optional: only --metrics-avg needs it

    values = precision_recall_fscore_support(targets.numpy(), predictions.numpy(), average=average, zero_division=0)
    names = ('precision', 'recall', 'f1_score')
    return {f'{average}_{name}': 100 * float(value) for name, value in zip(names, values[:3], strict=True)}
