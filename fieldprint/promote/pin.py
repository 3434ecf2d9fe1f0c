"""From VerifiedAnchor to PinnedAnchor: the gate into the semantic path."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fieldprint import blake3
from fieldprint.decoder import Decoder, Injection
from fieldprint.errors import IntegrityError, VerificationError
from fieldprint.kvcache import PagePool, SlotHasher
from fieldprint.promote.fieldprint import PAGE_SIZE, Fieldprint, compute_fieldprint, token_ids_digest
from fieldprint.verify import VerifiedAnchor


@dataclass(slots=True, eq=False)
class PinnedAnchor:
    """An anchor in pinned pages of one pool, with what is needed to watch and to rebuild it.

    `digests` are BLAKE3 digests of the resident bytes, a token each, computed from the verified codes and not from the pages.
    `repairs` counts how often the pages were written again: what was computed since the last look before may be wrong.
    """

    verified: VerifiedAnchor
    fieldprint: Fieldprint
    root: str
    pool: PagePool
    pages: tuple[int, ...]
    digests: NDArray[np.uint8]
    hasher: SlotHasher
    repairs: int = 0

    @property
    def num_tokens(self) -> int:
        """A."""
        return self.fieldprint.num_tokens

    def injection(
        self, num_q_heads: int, *, g: float | Sequence[float] = 0.0, operator: str = "floor"
    ) -> Injection:
        """Views of the pinned pages with the weight that the operator gives them.

        Args:
            num_q_heads: query heads of the decoder.
            g: the floor (or the mixture's weight) in [0, 1], one for all query heads or one per query head.
            operator: "floor" or "mixture".

        Raises:
            ValueError: g is outside [0, 1], or not one number or one per query head.
        """
        values = [float(g)] * num_q_heads if isinstance(g, (int, float)) else [float(x) for x in g]
        if len(values) != num_q_heads or not all(0 <= x <= 1 for x in values):
            raise ValueError(
                f"g must be one number in [0, 1], or one for each of {num_q_heads} query heads, not {g}"
            )
        weights = None
        if operator != "floor" or any(values):
            weights = torch.tensor(values, dtype=torch.float32, device=self.pool.storage.device)
        first, last = self.pages[0], self.pages[-1]
        slots = (
            self.pool.storage[:, :, first : last + 1].flatten(2, 3)[:, :, : self.num_tokens].transpose(2, 3)
        )
        return Injection(slots[:, 0], slots[:, 1], weights, operator)

    @property
    def slots(self) -> NDArray[np.int64]:
        """The slots of the anchor's tokens, [A]."""
        return np.arange(self.num_tokens, dtype=np.int64) + self.pages[0] * self.pool.layout.page_size

    def damaged(self) -> list[int]:
        """Indices of the anchor's pages whose bytes are not what was promoted."""
        return self.pages_that_differ(self.hasher.now(self.slots))

    def pages_that_differ(self, found: NDArray[np.uint8]) -> list[int]:
        """Indices of the anchor's pages with a slot whose digest in `found`, [A, 32], is not the promoted one."""
        bad = np.nonzero((found != self.digests).any(1))[0] // self.pool.layout.page_size
        return [int(page) for page in np.unique(bad)]

    def rewrite(self) -> None:
        """Write the pages again from the codes, whose root is compared with the signed one first.

        Raises:
            IntegrityError: the codes in host memory are damaged too; promote the anchor again.
        """
        if self.fieldprint.root() != self.root:
            raise IntegrityError(
                "the codes of the anchor are damaged in host memory", remedy="Promote the anchor again"
            )
        self.repairs += 1
        _write(self.pool, self.pages, self.fieldprint.values(self.pool.layout.dtype))
        if self.damaged():
            raise IntegrityError(
                "the anchor's pages do not keep what is written to them", remedy="Test the memory"
            )

    def release(self) -> None:
        """Unpin the pages and give them back to the pool."""
        self.pool.unpin(self.pages)
        self.pool.release(self.pages)


def promote_anchor(
    verified: VerifiedAnchor,
    decoder: Decoder,
    pool: PagePool,
    token_ids: Sequence[int],
    *,
    fieldprint_file: Path | None = None,
) -> PinnedAnchor:
    """The anchor, pinned in `pool`, only if every check below holds.

    1. `verified` was made by `verify_anchor`, for this model: it carries a signed fieldprint record, of positions 0..A-1.
    2. `token_ids` are the tokens that the record names.
    3. The record's sizes are the decoder's, its hashed pages are of this version's size, and the pool's pages are the
       decoder's.
    4. The fieldprint, loaded from `fieldprint_file` or realized here, has the signed root.
    5. The pages, read back after writing, have the digests computed from the fieldprint.

    Args:
        verified: of `verify_anchor(..., model=...)`.
        decoder: the model, which need not be where the pool is; in float32 on a CPU unless a file is given.
        pool: where the pages are pinned.
        token_ids: the anchor's text under the model's tokenizer, in the record's form.
        fieldprint_file: of `Fieldprint.save`, to check instead of recomputing.

    Raises:
        VerificationError: a check failed; nothing stays pinned.
        CapacityError: the pool has no run of free pages that is long enough.
    """
    if not isinstance(verified, VerifiedAnchor):
        raise TypeError(f"verified must be what verify_anchor returns, not {type(verified).__name__}")
    record = verified.record
    if record is None:
        raise VerificationError(
            1, "the anchor was not verified for a model", remedy="Call verify_anchor(..., model=...)"
        )
    if record.before:
        raise VerificationError(
            1,
            f"the fieldprint {record.form} is for engines that put it in front of position 0, like vLLM, not for these pages",
            remedy="Call verify_anchor without before=True",
        )
    if len(token_ids) != record.num_tokens or token_ids_digest(token_ids) != record.token_ids_sha256:
        raise VerificationError(
            2,
            "the anchor's text does not give the tokens that were signed",
            remedy="Use the tokenizer it was signed with",
        )
    sizes = (decoder.config.num_layers, decoder.config.num_kv_heads, decoder.config.head_dim)
    if sizes != (
        record.num_layers,
        record.num_kv_heads,
        record.head_dim,
    ) or pool.layout != decoder.page_layout(pool.layout.page_size):
        raise VerificationError(3, "the signed fieldprint has other sizes than this model or its page pool")
    if record.page_size != PAGE_SIZE:
        raise VerificationError(
            3,
            f"the fieldprint was hashed in pages of {record.page_size} tokens, this version hashes {PAGE_SIZE}",
            remedy="Sign the anchor again with this version",
        )
    if fieldprint_file is not None:
        fieldprint = Fieldprint.load(fieldprint_file)
    elif decoder.dtype == torch.float32 and decoder.device.type == "cpu":
        fieldprint = compute_fieldprint(decoder, token_ids)
    else:
        raise VerificationError(
            4,
            f"a decoder in {decoder.dtype} on {decoder.device} cannot realize an anchor",
            remedy="Give a fieldprint file, or load in float32 on the CPU",
        )
    root = fieldprint.root()
    if root != record.root:
        raise VerificationError(
            4,
            f"the fieldprint has root {root[:16]}..., signed is {record.root[:16]}...",
            remedy="Promote from the signer's fieldprint file: another processor may round differently",
        )
    return _pin(verified, fieldprint, root, pool)


def _pin(verified: VerifiedAnchor, fieldprint: Fieldprint, root: str, pool: PagePool) -> PinnedAnchor:
    values = fieldprint.values(pool.layout.dtype)
    rows = values.permute(2, 0, 1, 3, 4).contiguous().view(torch.uint8).flatten(1).numpy()
    digests = np.stack([np.frombuffer(blake3.digest(row.data), dtype=np.uint8) for row in rows])
    pages = pool.allocate(-(-len(rows) // pool.layout.page_size), contiguous=True)
    pool.pin(pages)
    pinned = PinnedAnchor(verified, fieldprint, root, pool, tuple(pages), digests, SlotHasher(pool))
    _write(pool, pinned.pages, values)
    if pinned.damaged():
        pinned.release()
        raise VerificationError(5, "the pages read back are not what was written", remedy="Test the memory")
    return pinned


def _write(pool: PagePool, pages: Sequence[int], values: Tensor) -> None:
    for page, part in zip(pages, values.split(pool.layout.page_size, dim=2), strict=True):
        pool.storage[:, :, page, : part.shape[2]].copy_(part)
