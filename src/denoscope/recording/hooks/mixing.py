"""How a pipeline mixes the outputs of its denoiser into the prediction that the scheduler receives.

Any linear guidance is a sum, `Σ b_k output_k + a sample`: u + w (c − u), three-way guidance, a negated output, a
preconditioned one. The factors are read off the recorded numbers by least squares.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

MOST = 2**16
"""Numbers of one step that factors are fitted to; more are thinned out evenly."""
FITS = {torch.float64: 1e-8, torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 2e-2}
"""Largest root mean square of what is left over by a fit, relative to that of the prediction."""


@dataclass(frozen=True)
class Mixture:
    """The prediction `own · sample + Σ shares_k · output_k`.

    `rounding` is what the fit leaves over, the root mean square relative to that of the prediction.
    """

    shares: tuple[float, ...]
    own: float = 0.0
    rounding: float = field(default=0.0, compare=False)

    @classmethod
    def fitted(
        cls, outputs: Sequence[torch.Tensor], sample: torch.Tensor, prediction: torch.Tensor
    ) -> "Mixture | None":
        """Return the mixture that makes the prediction of the outputs; None if none does.

        Tried are shares that add up to 1, then any shares, then any with a part of the sample. The first one is taken
        that leaves no more over than the freest of them, which leaves rounding alone.
        """
        y, columns = _numbers(prediction), [_numbers(output) for output in outputs]
        largest = FITS.get(prediction.dtype, 1e-2)
        rest = [column - columns[0] for column in columns[1:]]
        weights = _solved(rest, y - columns[0])
        candidates = [cls((1.0 - sum(weights), *weights)), cls(tuple(_solved(columns, y)))]
        if sample.shape == prediction.shape:
            *shares, own = _solved([*columns, _numbers(sample)], y)
            candidates.append(cls(tuple(shares), own))
        lefts = [mixture.left_over(outputs, sample, prediction) for mixture in candidates]
        rounding = 1.5 * min(lefts) + torch.finfo(prediction.dtype).eps / 10
        for mixture, left in zip(candidates, lefts, strict=True):
            if left <= min(largest, rounding):
                return replace(mixture, rounding=left)
        return None

    def __call__(self, outputs: Sequence[torch.Tensor], samples: torch.Tensor) -> torch.Tensor:
        """Return the prediction, computed in single precision at least, in the outputs' own dtype."""
        first = outputs[0]
        if self.shares == (1.0,) and not self.own:
            return first
        wide = torch.promote_types(first.dtype, torch.float32)
        total = self.shares[0] * first.to(wide)
        for share, output in zip(self.shares[1:], outputs[1:], strict=True):
            total = total + share * output.to(wide)
        if self.own:
            total = total + self.own * samples.to(wide)
        return total.to(first.dtype)

    def left_over(self, outputs: Sequence[torch.Tensor], sample: torch.Tensor, prediction: torch.Tensor) -> float:
        """Return the root mean square of prediction − mixture, relative to that of the prediction."""
        y = _numbers(prediction)
        parts = [share * _numbers(output) for share, output in zip(self.shares, outputs, strict=True)]
        total = torch.stack(parts).sum(dim=0) + (self.own * _numbers(sample) if self.own else 0.0)
        size = y.square().mean().sqrt().clamp(min=1e-30)
        return float((y - total).square().mean().sqrt() / size)


def _numbers(values: torch.Tensor) -> torch.Tensor:
    """Return values in a row, thinned out evenly, on the CPU in double precision."""
    flat = values.detach().reshape(-1)
    return flat[:: (len(flat) // MOST) | 1].cpu().double()


def _solved(columns: Sequence[torch.Tensor], y: torch.Tensor) -> list[float]:
    """Return the factors of the columns that bring their sum closest to y; the smallest ones if several do."""
    if not columns:
        return []
    matrix = torch.stack(list(columns), dim=1)
    sizes = matrix.square().mean(dim=0).sqrt().clamp(min=1e-30)
    solution = torch.linalg.lstsq(matrix / sizes, y[:, None], driver="gelsd").solution[:, 0]
    return [float(value) for value in solution / sizes]
