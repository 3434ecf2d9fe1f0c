"""What goes into the engine and what comes out of it: plain values."""

import secrets
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fieldprint.attention.paged import OPERATORS
from fieldprint.commit.committer import CommittedPage
from fieldprint.commit.leaf import SALT_SIZE
from fieldprint.generate.sampling import Sampler
from fieldprint.kvcache import PagedSequence


@dataclass(frozen=True, slots=True)
class AttentionSettings:
    """The injection operator and what the context may see.

    g: floor (or the mixture's weight), one number for every query head or one per head.
    window: positions of context that a query sees; None means all. The anchor is always seen.
    num_sinks: first positions of the context that stay visible whatever the window.
    """

    operator: str = "floor"
    g: float | tuple[float, ...] = 0.0
    window: int | None = None
    num_sinks: int = 0

    def __post_init__(self) -> None:
        if self.operator not in OPERATORS:
            raise ValueError(f"operator must be one of {OPERATORS}, not {self.operator!r}")
        if not all(0 <= x <= 1 for x in self.weights):
            raise ValueError(f"g must lie within [0, 1], not {self.g}")
        if self.window is not None and self.window < 1:
            raise ValueError(f"window must be at least 1 or None, not {self.window}")
        if self.num_sinks < 0:
            raise ValueError(f"num_sinks must not be negative, got {self.num_sinks}")

    @property
    def weights(self) -> tuple[float, ...]:
        """g as numbers: one for all query heads, or one for each."""
        return (self.g,) if isinstance(self.g, (int, float)) else self.g

    def terms(self) -> dict[str, str | int | bool | None]:
        """What a leaf says of the operator."""
        return {
            "g": ",".join(repr(float(x)) for x in self.weights),
            "num_sinks": self.num_sinks,
            "operator": self.operator,
            "window": self.window,
        }


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """Sizes and intervals of the engine.

    page_size: slots of a page, and tokens of a leaf.
    chunk_size: tokens of one prefill pass; chunks lie at fixed positions, so a replay computes the same bits.
    provisional_cap: generated tokens of a request that may be uncommitted; at the cap it waits.
    commit_interval: generated tokens after which a pass of checks and leaves starts.
    scrub_interval: decode steps between checks of the pinned pages.
    scrub_budget: share of the held context that a step checks again, of what was not checked for 1 / scrub_budget steps.
    log_timeout: seconds that the log may take to answer.
    max_faults: faults in a row without progress after which generation ends with an error.
    pack_weights: whether batches of four and more decode on a second copy of the weights, packed for them (CPU).
    decode_kernel: whether decode steps run in the Triton kernel, on a GPU as a CUDA graph; None: on a GPU, not on a CPU,
        where Triton's interpreter is needed for it.
    """

    page_size: int = 16
    chunk_size: int = 512
    provisional_cap: int = 64
    commit_interval: int = 48
    scrub_interval: int = 1
    scrub_budget: float = 0.01
    log_timeout: float = 30.0
    max_faults: int = 3
    pack_weights: bool = True
    decode_kernel: bool | None = None

    def __post_init__(self) -> None:
        for name in (
            "page_size",
            "chunk_size",
            "provisional_cap",
            "commit_interval",
            "scrub_interval",
            "max_faults",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not 0 <= self.scrub_budget <= 1:
            raise ValueError(f"scrub_budget must lie within [0, 1], not {self.scrub_budget}")
        if not self.log_timeout > 0:
            raise ValueError(f"log_timeout must be above 0 seconds, not {self.log_timeout}")
        if self.chunk_size % self.page_size:
            raise ValueError(f"chunk_size {self.chunk_size} must be a multiple of page_size {self.page_size}")
        if self.provisional_cap <= self.page_size:
            # K/V of the newest token is not there yet, so a page is whole one token after its last one.
            raise ValueError(
                f"provisional_cap {self.provisional_cap} must be above the page size of {self.page_size}, or no page "
                "would ever be whole"
            )


@dataclass(frozen=True, slots=True, eq=False)
class Prefix:
    """A prefilled beginning that several requests share; `close` it when they are done.

    `digests` are those of its slots, [tokens, 32], taken before any of them was evicted; `anchor` is the digest of the
    anchor that it was computed under, `attention` the settings.
    """

    tokens: tuple[int, ...]
    sequence: PagedSequence
    chunks: tuple[tuple[int, int], ...]
    digests: NDArray[np.uint8]
    anchor: str | None
    attention: AttentionSettings

    def close(self) -> None:
        """Release the pages."""
        self.sequence.close()


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """A prompt and how to go on from it.

    prompt: token ids; with a prefix, what follows it.
    max_new_tokens: at least 1.
    stop_ids: a token of this set ends the answer and is its last token.
    salt: 16 bytes that blind the digests in the log; random unless given.
    prefix: a shared beginning of `Engine.prefill`.
    """

    prompt: tuple[int, ...]
    max_new_tokens: int = 256
    sampler: Sampler = field(default_factory=Sampler)
    stop_ids: frozenset[int] = frozenset()
    salt: bytes = field(default_factory=lambda: secrets.token_bytes(SALT_SIZE), repr=False)
    prefix: Prefix | None = None

    def __post_init__(self) -> None:
        if not self.prompt:
            raise ValueError("prompt must hold at least one token")
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, not {self.max_new_tokens}")
        if len(self.salt) != SALT_SIZE:
            raise ValueError(f"salt must have {SALT_SIZE} bytes, not {len(self.salt)}")


@dataclass(frozen=True, slots=True)
class GenerationResult:
    """A finished request; `pages` are its leaves, empty without a log.

    reason: "stop", "length", "interrupted", or why a gate ended it: "frozen", "bypassed", "revoked", "expired",
    "registry-lost"; where damage was found at such an end, what is final may lack its last leaf, and a receipt of it then does
    not verify. before: what was generated under an anchor that had to be left; its tokens are the end of `prompt`.
    """

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    text: str
    reason: str
    salt: bytes = field(repr=False)
    pages: tuple[CommittedPage, ...] = ()
    before: "GenerationResult | None" = None

    @property
    def all_tokens(self) -> tuple[int, ...]:
        """The tokens of the whole answer."""
        return self.tokens if self.before is None else self.before.all_tokens + self.tokens


@dataclass(frozen=True, slots=True)
class Provisional:
    """A token was generated; it may still be taken back."""

    request: int
    position: int
    token_id: int


@dataclass(frozen=True, slots=True)
class Committed:
    """Everything of the request below `upto` is final: hashed, in the log, under a signed checkpoint."""

    request: int
    upto: int


@dataclass(frozen=True, slots=True)
class RolledBack:
    """The request goes on from `to`; provisional tokens from there on never happened."""

    request: int
    to: int
    reason: str


@dataclass(frozen=True, slots=True)
class Bypassed:
    """The request goes on from `position` without its anchor; what came before is final, and a result of its own."""

    request: int
    position: int
    reason: str


@dataclass(frozen=True, slots=True)
class Finished:
    """The request is complete and, with a log, committed to its last token."""

    request: int
    result: GenerationResult


Event = Provisional | Committed | RolledBack | Bypassed | Finished
