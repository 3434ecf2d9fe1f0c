"""BLAKE3 of many pages where they lie: on a GPU by one lane a chunk, on a CPU by the `blake3` package.

    digests = hash_pages(pool_view, indices)            # [n, 32] uint8, on the device of the pages
    bitmap = verify_pages(pool_view, expected, indices)  # bit i: message i is not what was expected

A message is one page: the bytes of `pages[i]` in the order of its elements, whatever its strides.
"""

from dataclasses import dataclass

import blake3 as _package
import numpy as np
import torch
from torch import Tensor

from fieldprint.blake3.naive import DERIVE_MATERIAL, IV, KEYED_HASH, context_key

CHUNK_SIZE = 1024
LANES = 64  # chunks, or pairs of nodes, that a program takes at a time
LEVELS = 7  # of the tree that one launch takes: 128 nodes become one
SPREAD = 132 * 8  # programs of a merge below which a program takes one group only
SCRATCH = 64 << 20  # bytes of chaining values at a time
ONE_RUN = 1 << 30  # a run that no message is longer than


@dataclass(frozen=True, slots=True)
class Mode:
    """One of BLAKE3's three modes: the key words that every chunk starts from, and its flag."""

    words: tuple[int, ...] = IV
    flag: int = 0
    key: bytes | None = None
    context: str | None = None

    @classmethod
    def keyed(cls, key: bytes) -> "Mode":
        """The keyed mode. Raises ValueError unless the key has 32 bytes."""
        if len(key) != 32:
            raise ValueError(f"key must have 32 bytes, not {len(key)}")
        return cls(tuple(np.frombuffer(key, "<u4").tolist()), KEYED_HASH, key=key)

    @classmethod
    def derive_key(cls, context: str) -> "Mode":
        """The derive-key mode under a context text."""
        return cls(tuple(context_key(context)), DERIVE_MATERIAL, context=context)

    def digest(self, data: bytes | memoryview) -> bytes:
        """32 bytes, by the package."""
        if self.key is not None:
            return _package.blake3(data, key=self.key).digest()
        if self.context is not None:
            return _package.blake3(data, derive_key_context=self.context).digest()
        return _package.blake3(data).digest()

    def scalars(self) -> list[int]:
        """The words as signed numbers, and the flag: what a kernel takes."""
        return [word - (word >> 31 << 32) for word in self.words] + [self.flag, 1]


PLAIN = Mode()


@dataclass(frozen=True, slots=True)
class _Runs:
    """Where the bytes of a page lie: `outer` x `inner` runs of `run` bytes, the strides in bytes."""

    run: int
    inner: int
    inner_stride: int
    outer: int
    outer_stride: int

    @property
    def length(self) -> int:
        return self.run * self.inner * self.outer

    @property
    def num_chunks(self) -> int:
        return max(1, -(-self.length // CHUNK_SIZE))


def _runs(pages: Tensor) -> _Runs:
    """The runs of one page.

    Raises:
        ValueError: the page has more than two strides that do not merge.
    """
    run = pages.element_size()
    dims: list[tuple[int, int]] = []  # (count, stride in bytes) of what does not merge, innermost first
    for count, elements in zip(reversed(pages.shape[1:]), reversed(pages.stride()[1:]), strict=True):
        stride = elements * pages.element_size()
        if count == 1:
            continue
        if not dims and stride == run:
            run *= count
        elif dims and stride == dims[-1][0] * dims[-1][1]:
            dims[-1] = (count * dims[-1][0], dims[-1][1])
        else:
            dims.append((count, stride))
    if len(dims) > 2:
        raise ValueError(
            f"pages of shape {list(pages.shape)} and strides {list(pages.stride())} lie in more than two strides"
        )
    dims += [(1, 0)] * (2 - len(dims))
    return _Runs(run, dims[0][0], dims[0][1], dims[1][0], dims[1][1])


def hash_pages(
    pages: Tensor, indices: Tensor | None = None, *, mode: Mode = PLAIN, use_kernel: bool | None = None
) -> Tensor:
    """BLAKE3 digests of pages, [n, 32] uint8 on their device; `torch.empty` and launches only, so no synchronization.

    Args:
        pages: [num_pages, ...], any dtype; a page may lie in two strides of runs.
        indices: [n] int32 or int64, which pages, in any order; None for all. One that is not there gets a digest of ones.
        mode: plain, keyed, or derive-key.
        use_kernel: the Triton kernel or the `blake3` package; None: the kernel where the pages are on a GPU.

    Raises:
        ValueError: the pages lie in more than two strides, or on a GPU without the kernel.
    """
    return _hash(pages, indices, mode, use_kernel, root=True)[0]


def verify_pages(
    pages: Tensor,
    expected: Tensor,
    indices: Tensor | None = None,
    *,
    mode: Mode = PLAIN,
    use_kernel: bool | None = None,
) -> Tensor:
    """A bitmap of the pages whose digest is not the expected one, [ceil(n / 32)] int32 on their device.

    Bit i % 32 of word i // 32 is message i; all words are 0 where every page is what it should be.

    Args:
        pages: as in `hash_pages`.
        expected: [n, 32] uint8 on the same device.
        indices: as in `hash_pages`.
        mode: of the digests.
        use_kernel: as in `hash_pages`.

    Raises:
        ValueError: as `hash_pages`, or `expected` has another shape, dtype or device.
    """
    count = pages.shape[0] if indices is None else indices.shape[0]
    if (
        expected.shape != (count, 32)
        or expected.dtype != torch.uint8
        or expected.device != pages.device
        or not expected.is_contiguous()
    ):
        raise ValueError(f"expected must be uint8 [{count}, 32] without gaps on {pages.device}")
    return _hash(pages, indices, mode, use_kernel, root=True, expected=expected)[1]


def subtree_values(
    pages: Tensor,
    first_chunks: Tensor,
    indices: Tensor | None = None,
    *,
    mode: Mode = PLAIN,
    use_kernel: bool | None = None,
) -> Tensor:
    """Chaining values of pages as subtrees of a longer message, [n, 32] uint8; `merge_subtrees` has their root.

    A page that starts at chunk c of the message, c a multiple of the page's chunks and those a power of two, is a node
    of the message's tree, so an append hashes new pages only.

    Args:
        pages: as in `hash_pages`.
        first_chunks: [n] int64 on the same device, the chunk of the message where each page starts.
        indices: as in `hash_pages`.
        mode: as in `hash_pages`.
        use_kernel: as in `hash_pages`; the package does not know chaining values.
    """
    return _hash(pages, indices, mode, use_kernel, root=False, first_chunks=first_chunks)[0]


def merge_subtrees(values: Tensor, *, mode: Mode = PLAIN) -> Tensor:
    """The digest of the message whose subtrees have these chaining values in order, [32] uint8; at least two of them.

    Raises:
        ValueError: fewer than two; the digest of one page is `hash_pages`.
    """
    if values.dim() != 2 or values.shape[0] < 2 or values.shape[1] != 32:
        raise ValueError(f"values must be [n, 32] with n of at least 2, not {list(values.shape)}")
    nodes = values.contiguous().view(torch.int32).t().expand(2, 8, -1).contiguous()
    digests = torch.empty(1, 8, dtype=torch.int32, device=values.device)
    _merge(nodes, 1, mode, digests, None, digests, root=True)
    return digests.view(torch.uint8)[0]


def _hash(
    pages: Tensor,
    indices: Tensor | None,
    mode: Mode,
    use_kernel: bool | None,
    *,
    root: bool,
    expected: Tensor | None = None,
    first_chunks: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Digests (or chaining values) and the bitmap of those that are not expected."""
    runs = _runs(pages)
    count = pages.shape[0] if indices is None else indices.shape[0]
    mismatch = torch.zeros(-(-count // 32), dtype=torch.int32, device=pages.device)
    if not (pages.device.type != "cpu" if use_kernel is None else use_kernel):
        if pages.device.type != "cpu" or not root:
            raise ValueError(f"pages on {pages.device} are hashed by the kernel only, and so are subtrees")
        digests = _by_package(pages, indices, mode)
        if expected is not None:
            for i in torch.nonzero((digests != expected).any(1)).flatten().tolist():
                mismatch[i // 32] |= 1 << i % 32 if i % 32 < 31 else -(1 << 31)
        return digests, mismatch
    found = torch.empty(count, 8, dtype=torch.int32, device=pages.device)
    step = max(
        32, SCRATCH // (64 * runs.num_chunks) // 32 * 32
    )  # 32, so that no two slices share a bitmap's word
    for start in range(0, count, step):
        part = slice(start, start + step)
        _launch(
            pages if indices is not None else pages[part],
            runs,
            None if indices is None else indices[part],
            None if first_chunks is None else first_chunks[part],
            mode,
            found[part],
            None if expected is None else expected.view(torch.int32)[part],
            mismatch[start // 32 :],
            root=root,
        )
    return found.view(torch.uint8), mismatch


def _launch(
    pages: Tensor,
    runs: _Runs,
    indices: Tensor | None,
    first_chunks: Tensor | None,
    mode: Mode,
    digests: Tensor,
    expected: Tensor | None,
    mismatch: Tensor,
    *,
    root: bool,
) -> None:
    from fieldprint.blake3.hash_kernel import chunk_kernel

    stride = pages.stride(0) * pages.element_size()
    steps = (stride, runs.inner_stride, runs.outer_stride, pages.data_ptr())
    aligned = runs.run % 64 == 0 and all(number % 16 == 0 for number in steps)
    unit = 4 if aligned else 1
    one_run = runs.inner == runs.outer == 1
    count, chunks = digests.shape[0], runs.num_chunks
    nodes = torch.empty(2, 8, count * chunks if chunks > 1 else 0, dtype=torch.int32, device=pages.device)
    chunk_kernel[(-(-count * chunks // LANES),)](
        _words(pages, unit),
        digests if indices is None else indices,
        digests if first_chunks is None else first_chunks,
        nodes,
        digests,
        digests if expected is None else expected,
        mismatch,
        count,
        chunks,
        pages.shape[0] - 1,
        runs.length,
        stride // unit,
        runs.inner,
        runs.outer_stride // unit,
        runs.inner_stride // unit,
        *mode.scalars(),
        ONE_CHUNK=chunks == 1,
        RUN=ONE_RUN if one_run else runs.run // unit,
        ALIGNED=aligned,
        WHOLE=runs.length > 0 and runs.length % CHUNK_SIZE == 0,
        HAS_INDICES=indices is not None,
        HAS_FIRST=first_chunks is not None,
        IS_ROOT=root and chunks == 1,
        HAS_EXPECTED=expected is not None,
        LANES=LANES,
        num_warps=LANES // 32,
    )
    if chunks > 1:
        _merge(nodes, count, mode, digests, expected, mismatch, root=root)


def _merge(
    nodes: Tensor,
    count: int,
    mode: Mode,
    digests: Tensor,
    expected: Tensor | None,
    mismatch: Tensor,
    *,
    root: bool,
) -> None:
    """Bring the nodes of `count` messages down to one each, [2, 8, count * nodes a message] int32, the second half spare."""
    from fieldprint.blake3.hash_kernel import merge_kernel

    while True:
        width = nodes.shape[2] // count
        levels = min(LEVELS, (width - 1).bit_length())
        groups = -(-width // (1 << levels))
        total = count * groups
        share = 1 << min(16, max(1, total // SPREAD)).bit_length() - 1
        merged = torch.empty(2, 8, total if groups > 1 else 0, dtype=torch.int32, device=nodes.device)
        merge_kernel[(-(-total // share),)](
            nodes,
            merged,
            digests,
            digests if expected is None else expected,
            mismatch,
            count,
            width,
            levels,
            share,
            *mode.scalars(),
            ONE_GROUP=groups == 1,
            IS_ROOT=root,
            HAS_EXPECTED=expected is not None,
            LANES=LANES,
            num_warps=LANES // 32,
        )
        if groups == 1:
            return
        nodes = merged


def _words(pages: Tensor, unit: int) -> Tensor:
    """The memory from the first page on as words of four bytes, or as bytes."""
    storage = pages.untyped_storage()
    dtype = torch.int32 if unit == 4 else torch.uint8
    first = pages.storage_offset() * pages.element_size() // unit
    words = torch.empty(0, dtype=dtype, device=pages.device)
    return words.set_(storage, first, (max(0, storage.nbytes() // unit - first),), (1,))


def _by_package(pages: Tensor, indices: Tensor | None, mode: Mode) -> Tensor:
    digests = []
    for index in range(pages.shape[0]) if indices is None else indices.tolist():
        if 0 <= index < pages.shape[0]:
            page = pages[index].contiguous().reshape(-1).view(torch.uint8).numpy()
            digests.append(mode.digest(page.data))
        else:
            digests.append(b"\xff" * 32)
    return torch.frombuffer(bytearray(b"".join(digests)), dtype=torch.uint8).reshape(-1, 32)
