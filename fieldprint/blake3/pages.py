"""BLAKE3 of many pages where they lie: on a GPU by one lane a chunk, on a CPU by the `blake3` package.

    digests = hash_pages(pool_view, indices)            # [n, 32] uint8, on the device of the pages
    bitmap = verify_pages(pool_view, expected, indices)  # bit i: message i is not what was expected

A message is one page: the bytes of `pages[i]` in the order of its elements, whatever its strides.

Source: BLAKE3 specification, sections 2.1 (tree) and 2.3 (modes).
"""

import math
from dataclasses import dataclass, field

import blake3 as _package
import numpy as np
import torch
from torch import Tensor

from fieldprint.blake3.naive import DERIVE_MATERIAL, IV, KEYED_HASH, context_key

CHUNK_SIZE = 1024
LANES = 64  # chunks, or pairs of nodes, that a program takes at a time
LEVELS = 7  # of the tree that one launch takes: 128 nodes become one
SPREAD = 132 * 8  # programs of a merge below which a program takes one group only
SCRATCH = 128 << 20  # bytes of chaining values at a time
LONGEST = 1 << 30  # bytes of a page; the kernel's positions within one are numbers of 32 bits
ABSENT = b"\xff" * 32  # the digest of a page that is not there


@dataclass(frozen=True, slots=True)
class Mode:
    """One of BLAKE3's three modes: the key words that every chunk starts from, and its flag. A key is never printed."""

    words: tuple[int, ...] = field(default=IV, repr=False)
    flag: int = 0
    key: bytes | None = field(default=None, repr=False)
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
        """The words as signed numbers, the flag, and the 1 that `chunk_kernel` multiplies by: what a kernel takes."""
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
        ValueError: there is no first dimension, the page is too long, or has more than two strides that do not merge.
    """
    if pages.dim() == 0:
        raise ValueError("pages must be [num_pages, ...]")
    size = math.prod(pages.shape[1:]) * pages.element_size()
    if size == 0:
        return _Runs(0, 1, 0, 1, 0)
    if size > LONGEST:
        raise ValueError(f"a page of {size} bytes is longer than {LONGEST}")
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
    """BLAKE3 digests of pages, [n, 32] uint8 on their device.

    On a GPU it is `torch.empty` and launches on the current stream: no synchronization, and a CUDA graph can hold it.

    Args:
        pages: [num_pages, ...], any dtype, at most 1 GiB a page; a page may lie in two strides of runs.
        indices: [n] int32 or int64 without gaps, which pages, in any order, on the same device; None for all. A page that
            is not there gets a digest of ones.
        mode: plain, keyed, or derive-key.
        use_kernel: the Triton kernel (on a CPU under Triton's interpreter) or the `blake3` package; None: the kernel
            where the pages are on a GPU.

    Raises:
        ValueError: the pages are longer or lie in more strides, `indices` is not like that, or the pages are on a GPU and
            the kernel is not to be used.
    """
    return _hash(pages, indices, mode, use_kernel)[0]


def verify_pages(
    pages: Tensor,
    expected: Tensor,
    indices: Tensor | None = None,
    *,
    mode: Mode = PLAIN,
    use_kernel: bool | None = None,
) -> Tensor:
    """A bitmap of the pages whose digest is not the expected one, [ceil(n / 32)] int32 on their device.

    Bit i % 32 of word i // 32 is message i; all words are 0 where every page is what it should be. The bit of a page that
    is not there is set, whatever was expected of it.

    Args:
        pages: as in `hash_pages`.
        expected: [n, 32] uint8 without gaps on the same device, at an address of four bytes' multiple.
        indices: as in `hash_pages`.
        mode: of the digests.
        use_kernel: as in `hash_pages`.

    Raises:
        ValueError: as `hash_pages`, or `expected` is not like that.
    """
    count = pages.shape[0] if indices is None else indices.shape[0]
    if (
        expected.shape != (count, 32)
        or expected.dtype != torch.uint8
        or expected.device != pages.device
        or not expected.is_contiguous()
        or expected.storage_offset() % 4
    ):
        raise ValueError(
            f"expected must be uint8 [{count}, 32] without gaps on {pages.device}, in whole words"
        )
    return _hash(pages, indices, mode, use_kernel, expected=expected)[1]


def subtree_values(
    pages: Tensor,
    first_chunks: Tensor,
    indices: Tensor | None = None,
    *,
    mode: Mode = PLAIN,
    use_kernel: bool | None = None,
) -> Tensor:
    """Chaining values of pages as subtrees of a longer message, [n, 32] uint8; `merge_subtrees` has their root.

    A page of 2^k chunks that starts at a multiple of 2^k chunks is a node of the message's tree, so an append hashes new
    pages only. The message's last page may have any length up to that. Whether pages are such nodes is not checked.

    Args:
        pages: as in `hash_pages`.
        first_chunks: [n] int64 without gaps on the same device, the chunk of the message where each page starts.
        indices: as in `hash_pages`.
        mode: as in `hash_pages`.
        use_kernel: as in `hash_pages`; the package does not know chaining values.

    Raises:
        ValueError: as `hash_pages`, or `first_chunks` is not like that, or the kernel is not to be used.
    """
    _check_vector("first_chunks", first_chunks, pages, torch.int64)
    return _hash(pages, indices, mode, use_kernel, first_chunks=first_chunks)[0]


def merge_subtrees(values: Tensor, *, mode: Mode = PLAIN) -> Tensor:
    """The digest of the message whose subtrees have these chaining values in order, [32] uint8; by the kernel.

    Raises:
        ValueError: fewer than two values (the digest of one page is `hash_pages`), or not uint8 [n, 32].
    """
    if values.dim() != 2 or values.shape[0] < 2 or values.shape[1] != 32 or values.dtype != torch.uint8:
        raise ValueError(
            f"values must be uint8 [n, 32] with n of at least 2, not {values.dtype} {list(values.shape)}"
        )
    planes = values.clone(memory_format=torch.contiguous_format).view(torch.int32).t()
    nodes = planes.expand(2, 8, -1).contiguous()
    digests = torch.empty(1, 8, dtype=torch.int32, device=values.device)
    with torch.cuda.device_of(values):
        _merge(_Job(digests, None, mode, root=True), nodes)
    return digests.view(torch.uint8)[0]


@dataclass(frozen=True, slots=True)
class _Job:
    """What chunks and merges of a launch share: where digests of messages go, and what is made of them.

    expected, mismatch: both or neither; the digests that are compared, and the bitmap's words.
    indices: which page each message is, of 0..last_index.
    """

    digests: Tensor
    indices: Tensor | None
    mode: Mode
    root: bool
    last_index: int = 0
    expected: Tensor | None = None
    mismatch: Tensor | None = None

    @property
    def count(self) -> int:
        return self.digests.shape[0]

    @property
    def pointers(self) -> tuple[Tensor, ...]:
        """Indices, digests, expected, mismatch; a kernel does not follow one that stands in for what is not there."""
        given = (self.indices, self.digests, self.expected, self.mismatch)
        return tuple(self.digests if tensor is None else tensor for tensor in given)


def _check_vector(name: str, vector: Tensor, pages: Tensor, *dtypes: torch.dtype) -> None:
    if (
        vector.dim() != 1
        or vector.dtype not in dtypes
        or vector.device != pages.device
        or not vector.is_contiguous()
    ):
        wanted = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise ValueError(f"{name} must be {wanted} [n] without gaps on {pages.device}")


def _hash(
    pages: Tensor,
    indices: Tensor | None,
    mode: Mode,
    use_kernel: bool | None,
    *,
    expected: Tensor | None = None,
    first_chunks: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Digests, or chaining values where there are first chunks, and the bitmap of those that are not expected."""
    runs = _runs(pages)
    if indices is not None:
        _check_vector("indices", indices, pages, torch.int32, torch.int64)
    count = pages.shape[0] if indices is None else indices.shape[0]
    if first_chunks is not None and first_chunks.shape[0] != count:
        raise ValueError(f"first_chunks must have {count} numbers, not {first_chunks.shape[0]}")
    if not (pages.device.type != "cpu" if use_kernel is None else use_kernel):
        if pages.device.type != "cpu" or first_chunks is not None:
            raise ValueError(f"pages on {pages.device} are hashed by the kernel only, and so are subtrees")
        return _by_package(pages, indices, mode, expected)
    found = torch.empty(count, 8, dtype=torch.int32, device=pages.device)
    mismatch = torch.zeros(0 if expected is None else -(-count // 32), dtype=torch.int32, device=pages.device)
    # Slices begin at multiples of 32, so that each begins a word of the bitmap.
    step = max(32, SCRATCH // (64 * runs.num_chunks) // 32 * 32)
    with torch.cuda.device_of(pages):
        for start in range(0, count, step):
            part = slice(start, start + step)
            some = pages if indices is not None else pages[part]
            job = _Job(
                found[part],
                None if indices is None else indices[part],
                mode,
                root=first_chunks is None,
                last_index=some.shape[0] - 1,
                expected=None if expected is None else expected.view(torch.int32)[part],
                mismatch=None if expected is None else mismatch[start // 32 :],
            )
            _launch(job, some, runs, None if first_chunks is None else first_chunks[part])
    return found.view(torch.uint8), mismatch


def _launch(job: _Job, pages: Tensor, runs: _Runs, first_chunks: Tensor | None) -> None:
    """Hash the job's messages."""
    from fieldprint.blake3.hash_kernel import chunk_kernel

    stride, unit = pages.stride(0) * pages.element_size(), _unit(pages, runs)
    one_run = runs.inner == runs.outer == 1
    count, chunks = job.count, runs.num_chunks
    nodes = torch.empty(2, 8, count * chunks if chunks > 1 else 0, dtype=torch.int32, device=pages.device)
    indices, *others = job.pointers
    chunk_kernel[(-(-count * chunks // LANES),)](
        _words(pages, unit),
        indices,
        indices if first_chunks is None else first_chunks,
        nodes,
        *others,
        count,
        chunks,
        job.last_index,
        runs.length,
        stride // unit,
        runs.inner,
        runs.outer_stride // unit,
        runs.inner_stride // unit,
        *job.mode.scalars(),
        ONE_CHUNK=chunks == 1,
        RUN=LONGEST if one_run else runs.run // unit,
        ALIGNED=unit == 4,
        WHOLE=runs.length > 0 and runs.length % CHUNK_SIZE == 0,
        HAS_INDICES=job.indices is not None,
        HAS_FIRST=first_chunks is not None,
        IS_ROOT=job.root and chunks == 1,
        HAS_EXPECTED=job.expected is not None,
        LANES=LANES,
        num_warps=LANES // 32,
    )
    if chunks > 1:
        _merge(job, nodes)


def _merge(job: _Job, nodes: Tensor) -> None:
    """Bring the nodes down to one a message, [2, 8, messages * nodes a message] int32, the second half spare."""
    from fieldprint.blake3.hash_kernel import merge_kernel

    while True:
        width = nodes.shape[2] // job.count
        levels = min(LEVELS, (width - 1).bit_length())
        groups = -(-width // (1 << levels))
        total = job.count * groups
        share = 1 << min(16, max(1, total // SPREAD)).bit_length() - 1
        merged = torch.empty(2, 8, total if groups > 1 else 0, dtype=torch.int32, device=nodes.device)
        merge_kernel[(-(-total // share),)](
            nodes,
            merged,
            *job.pointers,
            job.count,
            width,
            job.last_index,
            levels,
            share,
            *job.mode.scalars(),
            ONE_GROUP=groups == 1,
            HAS_INDICES=job.indices is not None,
            IS_ROOT=job.root,
            HAS_EXPECTED=job.expected is not None,
            LANES=LANES,
            num_warps=LANES // 32,
        )
        if groups == 1:
            return
        nodes = merged


def _unit(pages: Tensor, runs: _Runs) -> int:
    """4 where pages can be read in loads of 16 bytes, a block out of one run; else 1."""
    size = pages.element_size()
    # Words count from the storage's begin, so both the first page's address and its offset must be aligned.
    first = (pages.data_ptr(), pages.storage_offset() * size)
    steps = (*first, pages.stride(0) * size, runs.inner_stride, runs.outer_stride)
    return 4 if runs.run % 64 == 0 and all(step % 16 == 0 for step in steps) else 1


def _words(pages: Tensor, unit: int) -> Tensor:
    """The memory from the first page on as words of four bytes, or as bytes."""
    storage = pages.untyped_storage()
    dtype = torch.int32 if unit == 4 else torch.uint8
    first = pages.storage_offset() * pages.element_size() // unit
    words = torch.empty(0, dtype=dtype, device=pages.device)
    return words.set_(storage, first, (max(0, storage.nbytes() // unit - first),), (1,))


def _by_package(
    pages: Tensor, indices: Tensor | None, mode: Mode, expected: Tensor | None
) -> tuple[Tensor, Tensor]:
    """`_hash` on a CPU."""
    chosen = range(pages.shape[0]) if indices is None else indices.tolist()
    found = np.empty((len(chosen), 32), dtype=np.uint8)
    wrong = np.zeros(len(chosen), dtype=np.bool_)
    for i, index in enumerate(chosen):
        wrong[i] = not 0 <= index < pages.shape[0]
        digest = ABSENT
        if not wrong[i]:
            page = pages[index].detach().contiguous().reshape(-1).view(torch.uint8).numpy()
            digest = mode.digest(page.data)
        found[i] = np.frombuffer(digest, dtype=np.uint8)
    if expected is not None:
        wrong |= (found != expected.numpy()).any(axis=1)
    bits = np.packbits(wrong, bitorder="little")
    return torch.from_numpy(found), torch.from_numpy(np.pad(bits, (0, -len(bits) % 4)).view("<i4"))
