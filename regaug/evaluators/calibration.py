"""Calibration: whether a network is right as often as it is sure (Guo et al., "On Calibration of Modern Neural
Networks", arXiv 1706.04599)."""

import torch

from regaug.evaluators.ranks import sum_over_ranks

NUM_BINS = 15


class Calibration:
    """Judge the probabilities that a network gives: negative log-likelihood, and top-label calibration error.

    Args:
        device: Where the running sums stay; nothing waits for it before the end.
    """

    def __init__(self, device: torch.device):
        dtype = torch.float32 if device.type == 'mps' else torch.float64
        self.bins = torch.zeros(3, NUM_BINS, dtype=dtype, device=device)  # images, confidence, correct
        self.nll = torch.zeros((), dtype=dtype, device=device)

    @torch.no_grad()
    def update(self, output: torch.Tensor, target: torch.Tensor):
        """Add a batch of logits [B, K] and class indices [B]."""
        log_probs = output.float().log_softmax(dim=1)
        self.nll -= log_probs.gather(1, target[:, None]).sum(dtype=self.nll.dtype)
        confidence, predicted = log_probs.exp().max(dim=1)
        index = (confidence * NUM_BINS).ceil().long().clamp(1, NUM_BINS) - 1  # bin m holds ((m-1)/M, m/M]
        values = torch.stack([torch.ones_like(confidence), confidence, (predicted == target).float()])
        self.bins.index_add_(1, index, values.to(self.bins.dtype))

    def compute(self, distributed: bool = False) -> dict[str, float]:
        """`nll` (nats) and `ece` in per cent: the gap between confidence and accuracy, weighted by images per bin."""
        bins, nll = (sum_over_ranks(sums.clone(), distributed) for sums in (self.bins, self.nll))
        count, confidence, correct = bins
        num_images = count.sum().clamp(min=1)
        return {
            'nll': float(nll / num_images),
            'ece': 100 * float((confidence - correct).abs().sum() / num_images),
        }
