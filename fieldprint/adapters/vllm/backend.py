"""vLLM's attention backends, with the anchor's blocks in front of each request's: one softmax over both, no kernel more.

A request's queries are at positions from 0 on, and the anchor's keys were realized at -A..-1, so rows of the block table grow in
front and sequences are longer by A; slots, positions and writes stay as they are. Causal masks are aligned at the last
position, so every query sees all of the anchor.

With `"kernel": "paged"` the same backends, their blocks and their writers' slots stay, and attention is ours (`paged.py`).
"""

from functools import cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from vllm.distributed.kv_transfer import get_kv_transfer_group, has_kv_transfer_group

from fieldprint.adapters.vllm.paged import PagedStep, Sizes, parts_of
from fieldprint.adapters.vllm.settings import PAGED, ServeSettings
from fieldprint.adapters.vllm.versions import (
    BACKENDS,
    NO_GRAPHS,
    PARENTS,
    config_of_model,
    host_lengths,
    is_batch_invariant,
    longer_by,
    settings_in,
)
from fieldprint.attention.paged import MAX_ANCHOR_TOKENS
from fieldprint.errors import CompatibilityError

NO_ANCHOR = 0


class AnchorTable:
    """Which anchor each request has, and the blocks of each, where the metadata builders of this worker read it.

    A request is known by its first block: it has that alone, or shares it with requests of the same anchor, since prefix
    caching is salted by anchor.

    Args:
        num_blocks: of the cache.
        device: of the cache.
    """

    def __init__(self, num_blocks: int, device: torch.device) -> None:
        self._of_block = torch.zeros(num_blocks, dtype=torch.int64, device=device)
        self._blocks = torch.zeros(1, 0, dtype=torch.int32, device=device)
        self._counts = torch.zeros(1, dtype=torch.int64, device=device)
        self.on_host: list[tuple[int, ...]] = [()]  # blocks of each anchor
        self._alone: int | None = None
        self.step = -1  # whose owners are in the table
        self.built = -1  # for which metadata were built last

    @property
    def num_blocks(self) -> int:
        """Of the cache."""
        return self._of_block.shape[0]

    @property
    def longest(self) -> int:
        """Blocks of the longest anchor."""
        return self._blocks.shape[1]

    def put(self, index: int, blocks: tuple[int, ...]) -> None:
        """Anchor `index` lies in `blocks` from now on; without blocks it is removed."""
        self.on_host += [()] * (index + 1 - len(self.on_host))
        self.on_host[index] = blocks
        counts = [len(of_one) for of_one in self.on_host]
        table = torch.zeros(len(counts), max([*counts, self.longest]), dtype=torch.int32)
        table[: self._blocks.shape[0], : self.longest] = self._blocks.cpu()
        table[index, : len(blocks)] = torch.tensor(blocks, dtype=torch.int32)
        device = self._of_block.device
        self._blocks, self._counts = table.to(device), torch.tensor(counts, device=device)

    def own(self, step: int, owners: dict[int, int], alone: int | None = None) -> None:
        """From `step` on, requests that begin with these blocks have these anchors; `alone`: all of the step have this one."""
        if owners:
            first = torch.tensor(list(owners), device=self._of_block.device)
            self._of_block[first] = torch.tensor(list(owners.values()), device=self._of_block.device)
        self.step, self._alone = step, alone

    def owners_of(self, table: Tensor, rows: int) -> list[int]:
        """The anchor of each request of this step, on the host: without a wait for a GPU where all have the same.

        Args:
            table: int32 [at least rows, width].
            rows: requests.
        """
        if self._alone is not None:
            return [self._alone] * rows
        owners: list[int] = self._of_block[table[:rows, 0].long()].tolist()
        return owners

    def in_front(self, table: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """The block table [rows, width + longest] with anchors in front, and by how many blocks each row is longer [rows].

        Rows of length 0 are padding and stay as they are.

        Args:
            table: int32 [rows, width].
            lengths: int32 [rows], of the sequences.
        """
        owner = torch.where(lengths > 0, self._of_block[table[:, 0].long()], NO_ANCHOR)
        counts = self._counts[owner]
        rows, width = table.shape
        column = torch.arange(width + self.longest, device=table.device).expand(rows, -1)
        own = (column - counts[:, None]).clamp(0, width - 1)
        if not self.longest:
            return table, counts
        anchor = self._blocks[owner].gather(1, column.clamp(max=self.longest - 1))
        return torch.where(column < counts[:, None], anchor, table.gather(1, own)), counts


class AnchorBuilder:
    """In front of a metadata builder of vLLM's: prepends what the worker's `AnchorTable` says.

    On a GPU the longer table and lengths lie in buffers of this builder's, the same at every step, which captured graphs
    read; they have room for the longest anchor that can be installed later.
    """

    # Another group of layers would bring its table past `build`.
    supports_update_block_table = False

    def __init__(
        self, kv_cache_spec: Any, layer_names: list[str], vllm_config: Any, device: torch.device
    ) -> None:
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)  # type: ignore[call-arg]
        self._size = kv_cache_spec.block_size
        self._room = MAX_ANCHOR_TOKENS // self._size
        self._buffers: tuple[Tensor, Tensor] | None = None
        self._paged: PagedSteps | None = None
        settings = settings_in(vllm_config)
        if settings is not None and settings.kernel == PAGED:
            self._paged = PagedSteps(settings, kv_cache_spec, vllm_config)
        elif device.type != "cpu" and vllm_config.kv_transfer_config is not None:
            rows = max(
                vllm_config.scheduler_config.max_num_seqs,
                vllm_config.compilation_config.max_cudagraph_capture_size or 0,
            )
            width = -(-vllm_config.model_config.max_model_len // self._size) + self._room + 1
            self._buffers = (
                torch.zeros(rows, width, dtype=torch.int32, device=device),
                torch.zeros(rows, dtype=torch.int32, device=device),
            )

    def build(self, common_prefix_len: int, common_attn_metadata: Any, fast_build: bool = False) -> Any:
        """The parent's metadata of the longer rows; the parent's own where no anchor can be installed; the parts for our kernel."""
        table = _anchor_table()
        if table is not None:
            table.built = table.step
        if self._paged is not None:
            return self._paged.step(common_attn_metadata, table)
        if table is not None and (table.longest or self._buffers is not None):
            common_attn_metadata = self._in_front(table, common_attn_metadata)
        return super().build(common_prefix_len, common_attn_metadata, fast_build)  # type: ignore[misc]

    @classmethod
    def get_cudagraph_support(cls, vllm_config: Any, kv_cache_spec: Any) -> Any:
        """What the parent's builder can; nothing with our kernel, whose parts depend on the step: vLLM then captures around it."""
        settings = settings_in(vllm_config)
        if settings is not None and settings.kernel == PAGED:
            return NO_GRAPHS
        return super().get_cudagraph_support(vllm_config, kv_cache_spec)  # type: ignore[misc]

    def _in_front(self, table: AnchorTable, common: Any) -> Any:
        blocks, counts = table.in_front(common.block_table_tensor, common.seq_lens)
        shift = (counts * self._size).to(common.seq_lens.dtype)
        lengths = common.seq_lens + shift
        if self._buffers is None:
            return longer_by(common, blocks, lengths, shift, table.longest * self._size)
        rows, width = blocks.shape
        at = min(width, self._buffers[0].shape[1])  # what is behind it no sequence reaches
        self._buffers[0][:rows, :at].copy_(blocks[:, :at])
        self._buffers[1][:rows].copy_(lengths)
        # An upper bound of each row, which costs no wait for the device.
        most = torch.full((rows,), table.longest * self._size, dtype=torch.int32)
        return longer_by(
            common, self._buffers[0][:rows], self._buffers[1][:rows], most, self._room * self._size
        )


class PagedSteps:
    """Makes the parts of each step for our kernel.

    Args:
        settings: of the engine.
        spec: of vLLM's cache.
        config: vLLM's.
    """

    def __init__(self, settings: ServeSettings, spec: Any, config: Any) -> None:
        self._settings, self._spec = settings.attention, spec
        self._heads = config.model_config.get_num_attention_heads(config.parallel_config)
        self._longest = config.model_config.max_model_len

    def step(self, common: Any, table: AnchorTable | None) -> PagedStep:
        """The metadata of one step; without a table, of a step that vLLM only measures, which attends to nothing.

        Raises:
            CompatibilityError: the step's queries do not see what is before them, and nothing else.
        """
        if common.causal is not True:
            raise CompatibilityError("Fieldprint's kernel attends causally only")
        if table is None:
            return PagedStep(common.num_actual_tokens, ())
        spec, rows = self._spec, common.num_reqs
        sizes = Sizes(
            table.num_blocks,
            spec.block_size,
            self._heads,
            spec.num_kv_heads,
            spec.head_size,
            spec.dtype,
        )
        blocks = common.block_table_tensor
        counts = host_lengths(common)[:rows].tolist()
        parts = parts_of(
            table.owners_of(blocks, rows),
            table.on_host,
            blocks[:rows],
            common.seq_lens[:rows],
            counts,
            common.query_start_loc_cpu[: rows + 1].tolist(),
            sizes,
            self._settings,
            decode_kernel=blocks.device.type != "cpu",
            batch_invariant=is_batch_invariant(),
            max_length=self._longest,
        )
        return PagedStep(common.num_actual_tokens, parts)


def _anchor_table() -> AnchorTable | None:
    if not has_kv_transfer_group():
        return None
    table = getattr(get_kv_transfer_group(), "table", None)
    return table if isinstance(table, AnchorTable) else None


@cache
def _backend(name: str) -> type:
    """A backend of vLLM's whose builder has `AnchorBuilder` in front."""
    module, attribute = PARENTS[name]
    parent = getattr(import_module(module), attribute)
    theirs = parent.get_builder_cls()
    builder = type(f"Anchored{theirs.__name__}", (AnchorBuilder, theirs), {})

    def impl() -> type:
        settings = settings_in(config_of_model())
        if settings is None or settings.kernel != PAGED:
            return parent.get_impl_cls()  # type: ignore[no-any-return]
        if name == "FLASHINFER":
            raise CompatibilityError(
                "FlashInfer's metadata need its own layers, and Fieldprint's kernel has others",
                remedy="Start with --attention-backend FLASH_ATTN or TRITON_ATTN",
            )
        from fieldprint.adapters.vllm.impl import PagedImpl

        return PagedImpl

    # vLLM looks a class up again by its module and name.
    members = {
        "get_builder_cls": staticmethod(lambda: builder),
        "get_impl_cls": staticmethod(impl),
        "__module__": __name__,
    }
    return type(BACKENDS[name].rpartition(".")[2], (parent,), members)


def __getattr__(name: str) -> type:
    """The backend of this name, made when vLLM asks for it: FlashAttention's cannot be imported without a GPU."""
    for known, path in BACKENDS.items():
        if path.endswith(f".{name}"):
            return _backend(known)
    raise AttributeError(name)
