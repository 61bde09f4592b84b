"""Certified accuracy by randomised smoothing (Cohen, Rosenfeld and Kolter, arXiv 1902.02918), as in MaxUp's table 8.

Noise is added to pixels in [0, 1], which are not clipped, and normalised with them. n0 noisy copies of an image choose
its class, n fresh ones bound the probability of that class from below (CERTIFY, figure 2 there). If the bound pA is
1/2 or less the smoothed network abstains, otherwise it is certified within the L2 radius sigma * Phi^-1(pA).

`python -m regaug.evaluators.smoothing FILE...` prints the certified accuracy of several files at MaxUp's radii, and
of the best of them at each radius.
"""

import argparse
import hashlib
import json
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from regaug.errors import OptionError
from regaug.evaluators.certificates import (
    ABSTAIN,
    HEADER,
    RADII,
    Certificate,
    certified_accuracy,
    certified_radius,
    read_certificates,
    table,
)
from regaug.evaluators.evaluator import CONDITION, Needs
from regaug.evaluators.progress import Progress
from regaug.files import write_whole
from regaug.seeds import derived_seed

# Options that tell which images these are, and what makes logits of them.
_IMAGES_AND_LOGITS = (
    *('data', 'data_dir', 'dataset', 'split', 'class_map', 'valid_labels'),
    *('crop_border_pixels', 'amp', 'amp_dtype', 'model_dtype'),
    *('gp', 'model_kwargs', 'fast_norm', 'test_pool'),
)
# Options that the statistics of a narrower network depend on.
_CALIBRATION = ('calibrate_split', 'calibrate_images', 'batch_size')


class Certification:
    """Certifies images one after the other; the noise of an image depends on the seed and its place alone.

    Args:
        sigma: Deviation of the noise, for pixels in [0, 1].
        n: Noisy copies that estimate the probability of the class.
        n0: Noisy copies that choose the class.
        alpha: Probability that a certificate is wrong.
        skip: Every so many-th image is certified.
        file: File of one line an image, written as they come and continued; empty for none.
        several: More than one network is certified: each has a file of its own, named after it.
        seed: Of the noise.
        log_freq: Images from one log line to the next.
    """

    needs = Needs(pixels=True)

    def __init__(
        self,
        sigma: float,
        *,
        n: int = 100_000,
        n0: int = 100,
        alpha: float = 0.001,
        skip: int = 20,
        file: str = '',
        several: bool = False,
        seed: int = 42,
        log_freq: int = 10,
    ):
        self.sigma = sigma
        self.settings = {'sigma': sigma, 'n': n, 'n0': n0, 'alpha': alpha, 'skip': skip, 'seed': seed}
        self.n, self.n0, self.alpha, self.skip, self.seed = n, n0, alpha, skip, seed
        self.file = Path(file) if file else None
        self.several = several
        self.log_freq = log_freq

    def check(self, model: nn.Module, data: Any):
        """Refuse data without an order, and a file that another network or other settings made."""
        if not hasattr(data.dataset, '__getitem__'):
            raise OptionError(f'--certify {self.sigma:g}: the data set is a stream; images need a place of their own.')
        if not self.file:
            return
        self.settings['weights'] = fingerprint(model)
        if not self.several:
            self._check_file(data, ignore=('width',))  # which is not known yet

    def run(self, network: nn.Module, data: Any) -> Iterator[tuple[str, Any]]:
        """Yield the share of images the network abstains on, and the certified accuracy at each radius."""
        rank, world_size = data.args.rank, data.args.world_size
        done = self._read_done(data)
        indices = range(0, len(data.dataset), self.skip)
        left = [index for index in indices if index not in done]
        path = self._path(data)
        if path is not None and not done and rank == 0:
            write_whole(path, HEADER)
            write_whole(self._settings_path(path), json.dumps(self._settings(data)))
        images = self._images(data, left[rank::world_size])
        progress = Progress(f'Certify (sigma {self.sigma:g})', len(left), self.log_freq)
        for start in range(0, len(left), world_size):
            mine = self._certify_next(network, data, images, left[start : start + world_size], rank)
            for certificate in gather(mine, data.distributed):
                done[certificate.idx] = certificate
                if path is not None and rank == 0:
                    with path.open('a') as file:
                        file.write(certificate.line())
                progress.step(1)
        certificates = [done[index] for index in indices if index in done]
        yield CONDITION, f'certify sigma {self.sigma:g}'
        yield 'certified_images', len(certificates)
        yield 'abstained', 100 * sum(each.predict == ABSTAIN for each in certificates) / len(certificates)
        for radius in RADII:
            yield f'certified_{radius:g}', certified_accuracy(certificates, radius)

    def _certify_next(
        self, network: nn.Module, data: Any, images: torch.Tensor, indices: Sequence[int], rank: int
    ) -> Certificate | None:
        """Certify this process's one of some images, None if there is none for it or it cannot be read."""
        if rank >= len(indices):
            return None
        start = time.perf_counter()
        image, label = next(images)
        if label < 0:  # it cannot be read
            return None
        generator = torch.Generator(data.device).manual_seed(derived_seed('certify', self.seed, indices[rank]))
        chosen = int(self.count(network, data, image, self.n0, generator).argmax())
        successes = int(self.count(network, data, image, self.n, generator)[chosen])
        radius = certified_radius(successes, self.n, self.alpha, self.sigma)
        seconds = time.perf_counter() - start
        return Certificate(indices[rank], label, ABSTAIN if radius is None else chosen, radius or 0.0, seconds)

    def count(
        self, network: nn.Module, data: Any, image: torch.Tensor, num_copies: int, generator: torch.Generator
    ) -> torch.Tensor:
        """Count how often each class is predicted for noisy copies of an image.

        Args:
            network: The base classifier.
            data: Gives the logits of normalised images.
            image: Pixels in [0, 1]: [1, C, H, W].
            num_copies: How many copies, in batches of `--batch-size`; nothing waits for the device in between.
            generator: Of the noise, on the device of the image.

        Returns:
            Counts [K], on the device.
        """
        mean, std = (
            torch.tensor(data.data_config[key], device=image.device).view(1, -1, 1, 1) for key in ('mean', 'std')
        )
        counts = None
        for start in range(0, num_copies, data.args.batch_size):
            size = min(data.args.batch_size, num_copies - start)
            noise = torch.randn(size, *image.shape[1:], generator=generator, device=image.device)
            noisy = data.to_device((image + self.sigma * noise - mean) / std)
            output = data.logits(network, noisy)
            if counts is None:
                counts = torch.zeros(output.shape[1], dtype=torch.long, device=output.device)
            predicted = output.argmax(dim=1)
            counts.scatter_add_(0, predicted, torch.ones_like(predicted))
        return counts

    def _images(self, data: Any, indices: Sequence[int]) -> Iterator[tuple[torch.Tensor, int]]:
        """Yield the images [1, C, H, W] in float32 and labels of some places of the data set."""
        for input, target in data.loader(data.part(indices, leave_out=True), shared=False):
            for image, label in zip(input.to(data.device).float(), target.tolist()):
                yield image[None], label

    def _path(self, data: Any) -> Path | None:
        if self.file is None or not self.several:
            return self.file
        return self.file.with_stem(f'{self.file.stem}-{data.network_name}')

    def _settings(self, data: Any) -> dict[str, Any]:
        names = _IMAGES_AND_LOGITS + (_CALIBRATION if data.width not in (None, 1.0) else ())
        given = {name: value for name, value in vars(data.args).items() if name in names}
        input = {name: str(value) for name, value in {**data.data_config, **given}.items()}
        return self.settings | input | {'width': data.width, 'images': len(data.dataset)}

    @staticmethod
    def _settings_path(path: Path) -> Path:
        return path.with_name(f'{path.name}.json')

    def _read_done(self, data: Any) -> dict[int, Certificate]:
        """Certificates of an interrupted run, by image.

        The first process mends the file before the others read it, and adds the first line after they have.

        Raises:
            OptionError: The file was made with other settings, or is something else.
        """
        path, done = self._path(data), {}
        if self._check_file(data):
            if data.args.rank == 0 and not (text := path.read_text()).endswith('\n'):  # the last line was cut off
                write_whole(path, text[: text.rfind('\n') + 1])
            if data.distributed:
                dist.barrier()
            done = {each.idx: each for each in read_certificates(path)}
        if data.distributed:
            dist.barrier()
        return done

    def _check_file(self, data: Any, ignore: Sequence[str] = ()) -> bool:
        """Whether there is a file to go on with.

        Raises:
            OptionError: It was made with other settings, or is something else.
        """
        path = self._path(data)
        if path is None or not path.exists():
            return False
        option = f'--certify-file {path}'
        try:
            made_with = json.loads(self._settings_path(path).read_text())
        except (OSError, ValueError) as error:
            raise OptionError(
                f'{option}: the file is there, but not {path.name}.json, which says what it is.'
            ) from error
        settings = {key: value for key, value in self._settings(data).items() if key not in ignore}
        other = [f'{key} {made_with.get(key)}' for key in settings if made_with.get(key) != settings[key]]
        if other:
            raise OptionError(f'{option}: it was made with {", ".join(other)}; name another file.')
        return True


def fingerprint(model: nn.Module) -> str:
    """A short text that tells the weights and statistics of a model from those of any other."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(name.encode())
        digest.update(value.contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def gather(certificate: Certificate | None, distributed: bool) -> list[Certificate]:
    """The certificates of all processes, in the order of the images."""
    certificates = [certificate]
    if distributed:
        certificates = [None] * dist.get_world_size()
        dist.all_gather_object(certificates, certificate)
    return [each for each in certificates if each is not None]


def create(args: Namespace) -> Certification | None:
    """Build the evaluator from the options of validate.py."""
    if args.certify is None:
        return None
    return Certification(
        args.certify,
        n=args.certify_n,
        n0=args.certify_n0,
        alpha=args.certify_alpha,
        skip=args.certify_skip,
        file=args.certify_file,
        several=args.several_networks,
        seed=args.seed,
        log_freq=args.log_freq,
    )


def main():
    """Print the table of the files that the command line names."""
    parser = argparse.ArgumentParser(
        prog='python -m regaug.evaluators.smoothing',
        description='Certified accuracy of the best of several networks at every radius, as a table.',
    )
    parser.add_argument('files', nargs='+', metavar='FILE', help='written by validate.py --certify-file')
    print(table(parser.parse_args().files))


if __name__ == '__main__':
    from regaug import cli

    cli.run(main)
