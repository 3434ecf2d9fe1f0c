"""vLLM's attention backends, with the anchor's blocks in front of each request's: one softmax over both, no kernel more.

A request's queries are at positions from 0 on, and the anchor's keys were realized at -A..-1, so rows of the block table grow in
front and sequences are longer by A; slots, positions and writes stay as they are. Causal masks are aligned at the last
position, so every query sees all of the anchor.
"""

from functools import cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from vllm.distributed.kv_transfer import get_kv_transfer_group, has_kv_transfer_group

from fieldprint.adapters.vllm.versions import BACKENDS, PARENTS, longer_by
from fieldprint.attention.paged import MAX_ANCHOR_TOKENS

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
        self._on_host = [NO_ANCHOR]  # blocks of each anchor
        self.step = -1  # whose owners are in the table
        self.built = -1  # for which metadata were built last

    @property
    def longest(self) -> int:
        """Blocks of the longest anchor."""
        return self._blocks.shape[1]

    def put(self, index: int, blocks: tuple[int, ...]) -> None:
        """Anchor `index` lies in `blocks` from now on; without blocks it is removed."""
        counts = self._on_host + [0] * (index + 1 - len(self._on_host))
        counts[index] = len(blocks)
        table = torch.zeros(len(counts), max([*counts, self.longest]), dtype=torch.int32)
        table[: self._blocks.shape[0], : self.longest] = self._blocks.cpu()
        table[index, : len(blocks)] = torch.tensor(blocks, dtype=torch.int32)
        device = self._of_block.device
        self._on_host = counts
        self._blocks, self._counts = table.to(device), torch.tensor(counts, device=device)

    def own(self, step: int, owners: dict[int, int]) -> None:
        """From `step` on, requests that begin with these blocks have these anchors."""
        if owners:
            first = torch.tensor(list(owners), device=self._of_block.device)
            self._of_block[first] = torch.tensor(list(owners.values()), device=self._of_block.device)
        self.step = step

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
        if device.type != "cpu" and vllm_config.kv_transfer_config is not None:
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
        """The parent's metadata of the longer rows; the parent's own where no anchor can be installed."""
        table = _anchor_table()
        if table is not None:
            table.built = table.step
            if table.longest or self._buffers is not None:
                common_attn_metadata = self._in_front(table, common_attn_metadata)
        return super().build(common_prefix_len, common_attn_metadata, fast_build)  # type: ignore[misc]

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
    # vLLM looks a class up again by its module and name.
    members = {"get_builder_cls": staticmethod(lambda: builder), "__module__": __name__}
    return type(BACKENDS[name].rpartition(".")[2], (parent,), members)


def __getattr__(name: str) -> type:
    """The backend of this name, made when vLLM asks for it: FlashAttention's cannot be imported without a GPU."""
    for known, path in BACKENDS.items():
        if path.endswith(f".{name}"):
            return _backend(known)
    raise AttributeError(name)
