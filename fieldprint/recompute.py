"""The other check: are these tokens what this model gives? The model runs once more over them, and each is drawn again.

    receipt -> verify_receipt -> the anchor's K/V, compared with the signed root -> one prefill of all tokens -> draw, or how far off

A draw depends on nothing but logits, seed and position (`Sampler`), so it needs no help from who generated. Logits come out a
little different on another machine, in another batch, with another kernel, so there is a tolerance tau: a token passes if logits
within tau of the recomputed ones exist for which it is drawn. What passes for that reason is counted and shown. This says nothing
of K/V, which integrity is about (`verify_receipt`), and no prompt is drawn.

`needed` of a token is the least tau with which it passes: 0 where it is drawn again as it is; half the distance of its logit from
the largest, where the likeliest was to be taken; with a seed the least one for which u K lies in the token's share of the
cumulative probabilities, all three bounded over every logits within tau.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import torch
from torch import Tensor

from fieldprint.anchor import Policy
from fieldprint.commit import Receipt
from fieldprint.commit.leaf import Commitment
from fieldprint.decoder import Injection
from fieldprint.errors import CompatibilityError, FormatError, IntegrityError, VerificationError
from fieldprint.generate import AttentionSettings, EngineSettings
from fieldprint.generate.passes import Passes
from fieldprint.generate.sampling import Sampler
from fieldprint.kvcache import PagedSequence, PagePool
from fieldprint.pipeline import Model, anchor_tokens
from fieldprint.promote import compute_fieldprint
from fieldprint.registry import RegistryView, StatusProof
from fieldprint.verify import VerifiedAnchor, VerifiedReceipt, verify_receipt

TAU = 0.01
OK, OUT_OF_TOLERANCE = "OK", "OUT_OF_TOLERANCE"
CHUNK = 512  # tokens of a pass
ROWS = 64  # of logits at once
LOOKED_FOR = 64  # differences
SPLITS = 30  # of the interval in which `needed` is looked for
FARTHEST = 30.0  # logits; what needs more is not explained by noise of any kind
MOST = 300.0  # e^300 and what is made of it are numbers, and quick ones
SLACK = 1e-12  # of sums of many small numbers


@dataclass(frozen=True, slots=True)
class Difference:
    """A committed token that is not the one drawn again.

    position: counts prompt and answer from 0 on. passes: within tau. needed: the least tau with which it passes, None if that is above
    30 or was not looked for, which is done for the first 64 differences.
    """

    position: int
    token: int
    drawn: int
    passes: bool
    needed: float | None


@dataclass(frozen=True, slots=True)
class Recomputation:
    """What came of one receipt.

    verdict: "OK", or "OUT_OF_TOLERANCE" if a token needs more than `tau`. num_tokens: of the answer.
    differences: every token that was not drawn again as it is, passing or not.
    """

    receipt: VerifiedReceipt
    tau: float
    num_tokens: int
    differences: tuple[Difference, ...]

    @property
    def verdict(self) -> str:
        """As above."""
        return OUT_OF_TOLERANCE if self.failed else OK

    @property
    def failed(self) -> tuple[Difference, ...]:
        """The differences that need more than `tau`."""
        return tuple(found for found in self.differences if not found.passes)


def recompute_receipt(
    data: bytes,
    policy: Policy,
    *,
    model: Model,
    now: datetime,
    registry: RegistryView | None = None,
    status: StatusProof | None = None,
    tau: float = TAU,
    on_progress: Callable[[int, int], object] | None = None,
) -> Recomputation:
    """Verify a receipt, compute the logits of its answer in one prefill, and draw every token of it again.

    Args:
        data: the receipt's bytes.
        policy: whose signatures count.
        model: in float32 on a CPU where the receipt names an anchor, which is realized again.
        now: the time of the checks.
        registry: for revocations, or None.
        status: a status proof instead of it, or None.
        tau: logits by which the recomputed ones may be off.
        on_progress: called with the tokens that are through, and how many there are.

    Raises:
        VerificationError: the receipt is not what the policy asks for.
        CompatibilityError: it was generated with another model, or drawn in a way that cannot be repeated.
        IntegrityError: the anchor's K/V, computed here, do not have the signed root.
        FormatError: a leaf names a sampler or an operator that is not known.
    """
    if not tau >= 0:
        raise ValueError(f"tau must not be negative, got {tau}")
    verified = verify_receipt(data, policy, now=now, registry=registry, status=status)
    receipt = Receipt.from_bytes(data)
    leaf = Commitment.from_bytes(receipt.leaves[0].leaf)
    if leaf.model != model.digest:
        raise CompatibilityError(
            f"the answer was generated with the model {leaf.model[:16]}..., and this is {model.digest[:16]}...",
            remedy="Give the folder of that model with --model",
        )
    sampler = sampler_of(leaf.sampler)
    every = [*receipt.prompt, *receipt.tokens]
    if not receipt.prompt or not 0 <= min(every) <= max(every) < model.decoder.embedding.shape[0]:
        raise FormatError("the receipt has no prompt, or tokens that the model does not know")
    passes = _passes(model, verified.anchor, leaf, len(every))
    differences: list[Difference] = []
    for first, logits in _logits(passes, every, len(receipt.prompt), on_progress):
        for row, position in zip(logits, range(first, first + len(logits)), strict=True):
            drawn = sampler.draw(row, position)
            if drawn != every[position]:
                draw = Draw(row, sampler, position)
                token, look = every[position], len(differences) < LOOKED_FOR
                needed = draw.least_tau(token) if look else None
                differences.append(Difference(position, token, drawn, draw.passes(token, tau), needed))
    return Recomputation(verified, tau, len(receipt.tokens), tuple(differences))


def sampler_of(terms: Mapping[str, str | int | bool | None]) -> Sampler:
    """The sampler that a leaf names.

    Raises:
        CompatibilityError: its draws depend on what is not committed. FormatError: its terms are not understood.
    """
    if terms == {"method": "greedy"}:
        return Sampler()
    if terms.get("method") == "vllm":
        raise CompatibilityError(
            "vLLM drew these tokens with a random generator of its own, which nobody can repeat from a receipt",
            remedy="Recompute answers that were generated with temperature 0, or by Fieldprint's own engine",
        )
    try:
        sampler = Sampler(
            float(str(terms["temperature"])), float(str(terms["top_p"])), int(str(terms["seed"]))
        )
    except (KeyError, ValueError) as error:
        raise FormatError(f"the leaf's sampler is not understood: {terms}") from error
    if sampler.terms() != terms:
        raise FormatError(f"the leaf's sampler is not understood: {terms}")
    return sampler


def _attention_of(terms: Mapping[str, str | int | bool | None]) -> AttentionSettings:
    try:
        weights = tuple(float(part) for part in str(terms["g"]).split(","))
        window = terms["window"]
        settings = AttentionSettings(
            str(terms["operator"]),
            weights[0] if len(weights) == 1 else weights,
            None if window is None else int(window),
            int(str(terms["num_sinks"])),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(f"the leaf's attention is not understood: {terms}") from error
    if settings.terms() != terms:
        raise FormatError(f"the leaf's attention is not understood: {terms}")
    return settings


def _passes(model: Model, anchor: VerifiedAnchor | None, leaf: Commitment, count: int) -> Passes:
    """What computes the request again, with room for `count` tokens."""
    decoder = model.decoder
    attention = _attention_of(leaf.attention)
    injection = None if anchor is None else _injection(model, anchor, attention)
    settings = EngineSettings()
    pool = PagePool(decoder.page_layout(settings.page_size), -(-count // settings.page_size) + 1)
    windows = [each for each in (attention.window, decoder.config.native_window) if each is not None]
    window = min(windows) if windows else None
    return Passes(decoder, pool, settings, injection, window, attention.num_sinks)


def _injection(model: Model, anchor: VerifiedAnchor, attention: AttentionSettings) -> Injection:
    """The anchor's K/V, realized here and compared with what was signed."""
    record = anchor.record
    if record is None:
        raise VerificationError(10, "the anchor has no fieldprint under this model")
    tokens = anchor_tokens(model, anchor)
    first = -len(tokens) if record.before else 0
    fieldprint = compute_fieldprint(model.decoder, tokens, first_position=first)
    if fieldprint.root() != record.root:
        raise IntegrityError(
            "the anchor's K/V, as this machine computes them, do not have the signed root",
            remedy="Recompute on a machine of the signer's kind, whose arithmetic gives the same bits",
        )
    values = fieldprint.values(model.decoder.dtype).transpose(2, 3)
    heads = model.decoder.config.num_q_heads
    weights = [*attention.weights] * (heads if len(attention.weights) == 1 else 1)
    if len(weights) != heads:
        raise FormatError(f"the leaf has {len(weights)} weights, and the model {heads} query heads")
    plain = attention.operator == "floor" and not any(weights)
    g = None if plain else torch.tensor(weights, dtype=torch.float32)
    return Injection(values[:, 0], values[:, 1], g, attention.operator, before=record.before)


def _logits(
    passes: Passes, tokens: Sequence[int], prompt_len: int, on_progress: Callable[[int, int], object] | None
) -> Iterator[tuple[int, Tensor]]:
    """Positions of the answer, and the logits from which the token there was drawn, a few rows at a time."""
    sequence = PagedSequence(passes.pool)
    last = len(tokens) - 1  # nothing was drawn from the last token
    for start in range(0, last, CHUNK):
        chunk = tokens[start : min(start + CHUNK, last)]
        hidden = passes.forward_chunk(sequence, chunk)
        for row in range(max(0, prompt_len - 1 - start), len(chunk), ROWS):
            yield start + row + 1, passes.decoder.logits(hidden[row : row + ROWS])
        if on_progress is not None:
            on_progress(start + len(chunk), last)


class Draw:
    """One draw, and how far logits would have to be off for a token to be drawn.

    The likeliest token is to be taken: the token's logit may lack 2 tau. With a seed and d = tau / temperature and r = e^(2d), whoever moves logits by at most tau moves a set's probability p, the rest having q, to
    between p / (p + q r) and p r / (p r + q). Tokens whose scaled logit is more than 2d larger come before a token in any case, those
    more than 2d smaller never do. So its share of the cumulative probabilities lies within two bounds, and so does the mass K that
    top_p keeps; it passes if u K can lie in the share.

    Args:
        logits: [vocab_size].
        sampler: greedy, or with a temperature.
        position: of the token, for u.
    """

    def __init__(self, logits: Tensor, sampler: Sampler, position: int) -> None:
        self._logits, self._greedy = logits.double(), sampler.temperature == 0
        if self._greedy:
            return
        self._temperature, self._u = sampler.temperature, sampler.uniform(position)
        self._ordered, self._ids = torch.sort(
            logits.double() / sampler.temperature, descending=True, stable=True
        )
        self._probabilities = torch.softmax(self._ordered, 0)
        none = torch.zeros(1, dtype=torch.float64)
        self._first = torch.cat([none, self._probabilities.cumsum(0)])  # of the n likeliest tokens
        self._rest = torch.cat([self._probabilities.flip(0).cumsum(0).flip(0), none])  # of all but these
        self._wanted = min(sampler.top_p, float(self._first[-1]))

    def passes(self, token: int, tau: float) -> bool:
        """Whether `token` may be drawn from some logits within `tau` of these; false only if from none."""
        if self._greedy:
            return self._lacks(token) <= tau
        distance = 2 * tau / self._temperature
        if distance > MOST:
            return True
        grown = math.exp(distance)
        surely = torch.searchsorted(-self._ordered, -(self._ordered + distance))  # how many come before each
        maybe = torch.searchsorted(
            -self._ordered, -(self._ordered - distance), right=True
        )  # at most, itself included
        before = _least(self._first[surely], self._rest[surely], grown)
        through = _most(self._first[maybe], self._rest[maybe], grown)
        rest = (self._rest[surely] - self._probabilities).clamp(min=0)
        through_least = _least(self._first[surely] + self._probabilities, rest, grown)
        last = (before < self._wanted + SLACK) & (
            through >= self._wanted - SLACK
        )  # what may be the last that is kept
        rank = int((self._ids == token).nonzero()[0, 0])
        if not bool(last.any()) or float(before[rank]) >= self._wanted + SLACK:
            return False
        kept_least = max(self._wanted, float(through_least[last].min()))
        kept_most = float(through[last].max())
        low, high = float(before[rank]) - SLACK, float(through[rank]) + SLACK
        return self._u * kept_least <= high and self._u * kept_most >= low

    def _lacks(self, token: int) -> float:
        """Half of what the token's logit lacks to the largest."""
        return float(self._logits.max() - self._logits[token]) / 2

    def least_tau(self, token: int) -> float | None:
        """The least tau with which `token` passes, with a seed to one part in 2^30 of 30 logits; None if it is above that."""
        if not self.passes(token, FARTHEST):
            return None
        if self._greedy:
            return self._lacks(token)
        low, high = 0.0, FARTHEST
        for _ in range(SPLITS):
            middle = (low + high) / 2
            if self.passes(token, middle):
                high = middle
            else:
                low = middle
        return high


def _least(p: Tensor, q: Tensor, grown: float) -> Tensor:
    return p / (p + q * grown)


def _most(p: Tensor, q: Tensor, grown: float) -> Tensor:
    return p * grown / (p * grown + q)
