"""The sampler: greedy, or seeded so that a token depends on nothing but the seed and its position.

The random number of a position is BLAKE3(seed, position), so a rollback needs no generator state, and an auditor who
has the logits can draw the same token.
"""

import struct
from dataclasses import dataclass

import torch
from torch import Tensor

from fieldprint import blake3


@dataclass(frozen=True, slots=True)
class Sampler:
    """How a token is drawn. Temperature 0 is greedy; numbers are milli-units where they enter a leaf.

    temperature: 0 for the most likely token, else the divisor of the logits.
    top_p: the smallest set of most likely tokens that holds this probability is kept.
    seed: of the random numbers.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature <= 100:
            raise ValueError(f"temperature must lie within [0, 100], not {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must lie within (0, 1], not {self.top_p}")
        if not 0 <= self.seed < 2**53:
            raise ValueError(f"seed must lie within [0, 2^53), not {self.seed}")

    def terms(self) -> dict[str, str | int | bool | None]:
        """What a leaf says of the sampler; numbers as decimal text, since leaves hold no floats."""
        if self.temperature == 0:
            return {"method": "greedy"}
        return {
            "method": "seeded",
            "seed": self.seed,
            "temperature": repr(float(self.temperature)),
            "top_p": repr(float(self.top_p)),
        }

    def draw(self, logits: Tensor, position: int) -> int:
        """The token at `position`, drawn from logits [vocab_size]; ties go to the lowest id."""
        if self.temperature == 0:
            return int(torch.argmax(logits))
        probabilities = torch.softmax(logits.double() / self.temperature, 0)
        ordered, ids = torch.sort(probabilities, descending=True, stable=True)
        cumulative = torch.cumsum(ordered, 0)
        kept = int(torch.searchsorted(cumulative, min(self.top_p, float(cumulative[-1])))) + 1
        kept = min(
            kept, len(ordered)
        )  # of NaN logits, which damaged pages give: the token will be taken back
        target = self.uniform(position) * float(cumulative[kept - 1])
        index = int(torch.searchsorted(cumulative[:kept], target, right=True))
        return int(ids[min(index, kept - 1)])

    def uniform(self, position: int) -> float:
        """The random number of `position`, in [0, 1)."""
        return _uniform(self.seed, position)


def draw_rows(logits: Tensor, temperature: Tensor, top_p: Tensor, uniform: Tensor) -> Tensor:
    """`Sampler.draw` for every row at once, where the logits are: [rows] int64; the host is not asked.

    Args:
        logits: [rows, vocab_size].
        temperature: [rows] float64; 0 is greedy.
        top_p: [rows] float64.
        uniform: [rows] float64, each row's `Sampler.uniform` of its position.
    """
    greedy = temperature == 0
    divisor = torch.where(greedy, 1.0, temperature).unsqueeze(1)
    probabilities = torch.softmax(logits.double() / divisor, -1)
    ordered, ids = torch.sort(probabilities, dim=-1, descending=True, stable=True)
    cumulative = torch.cumsum(ordered, -1)
    bound = torch.minimum(top_p, cumulative[:, -1]).unsqueeze(1)
    last = (cumulative < bound).sum(-1, keepdim=True)
    target = uniform.unsqueeze(1) * cumulative.gather(1, last)
    index = torch.minimum((cumulative <= target).sum(-1, keepdim=True), last)
    return torch.where(greedy, torch.argmax(logits, -1), ids.gather(1, index).squeeze(1))


def _uniform(seed: int, position: int) -> float:
    """A number in [0, 1) with 53 bits, from BLAKE3 of seed and position."""
    digest = blake3.digest(b"fieldprint/sampler/v1\n" + struct.pack("<QQ", seed, position))
    return float(int.from_bytes(digest[:8], "little") >> 11) / float(1 << 53)
