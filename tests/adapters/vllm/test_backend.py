"""Block tables with anchors in front, against loops that a student can follow."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fieldprint.adapters.vllm.backend import AnchorTable
from fieldprint.adapters.vllm.versions import BACKENDS

NUM_BLOCKS = 64


def naive(
    table: list[list[int]],
    lengths: list[int],
    anchors: dict[int, tuple[int, ...]],
    owners: dict[int, int],
    size: int,
) -> list[tuple[list[int], int]]:
    """Each row's blocks as far as its sequence reaches, and its length."""
    rows = []
    for row, length in zip(table, lengths, strict=True):
        used = row[: -(-length // size)]
        front = anchors.get(owners.get(row[0], 0), ()) if length else ()
        rows.append(([*front, *used], length + len(front) * size))
    return rows


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_rows_have_their_anchor_in_front(data: st.DataObject) -> None:
    size = 4
    blocks = data.draw(st.permutations(range(1, NUM_BLOCKS)))
    anchors: dict[int, tuple[int, ...]] = {}
    for index in range(1, data.draw(st.integers(0, 3)) + 1):
        count = data.draw(st.integers(1, 4))
        anchors[index] = tuple(blocks.pop() for _ in range(count))
    width = data.draw(st.integers(1, 5))
    rows = data.draw(st.integers(1, 5))
    table = [[blocks.pop() for _ in range(width)] for _ in range(rows)]
    lengths = data.draw(st.lists(st.integers(0, width * size), min_size=rows, max_size=rows))
    owners = {row[0]: data.draw(st.sampled_from([0, *anchors])) for row in table}
    found = AnchorTable(NUM_BLOCKS, torch.device("cpu"))
    for index, front in anchors.items():
        found.put(index, front)
    found.own(1, owners)
    longer, counts = found.in_front(
        torch.tensor(table, dtype=torch.int32), torch.tensor(lengths, dtype=torch.int32)
    )
    for row, (expected, length) in enumerate(naive(table, lengths, anchors, owners, size)):
        assert longer[row, : len(expected)].tolist() == expected
        assert lengths[row] + int(counts[row]) * size == length


def test_an_owner_counts_until_its_block_has_another() -> None:
    table = AnchorTable(8, torch.device("cpu"))
    table.put(1, (5, 6))
    table.put(2, (7,))
    one, length = torch.tensor([[3, 4]], dtype=torch.int32), torch.tensor([8], dtype=torch.int32)
    table.own(1, {3: 1})
    table.own(2, {})
    assert table.in_front(one, length)[0][0].tolist()[:3] == [5, 6, 3]
    table.own(3, {3: 2})
    assert table.in_front(one, length)[0][0].tolist()[:2] == [7, 3]
    table.own(4, {3: 0})
    assert table.in_front(one, length)[0][0].tolist()[:2] == [3, 4]


def test_the_cpu_backend_is_found_by_its_module_and_name() -> None:
    from vllm.utils.import_utils import resolve_obj_by_qualname

    backend = resolve_obj_by_qualname(BACKENDS["CPU_ATTN"])
    assert resolve_obj_by_qualname(f"{backend.__module__}.{backend.__qualname__}") is backend
    assert backend.get_name() == "CPU_ATTN"
    with pytest.raises(AttributeError):
        resolve_obj_by_qualname("fieldprint.adapters.vllm.backend.OtherBackend")
