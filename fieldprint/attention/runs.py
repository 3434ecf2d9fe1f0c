"""Attention run by run: torch's own flash attention on views of the pages, merged by log-sum-exp.

All of it on a CPU; on a GPU the prefill, where decode steps have a kernel of their own. A run of neighbouring pages is
a plain view; only pages that do not lie together are gathered. A long run is cut into splits of fixed length, all of
which go to torch in one call; partial outputs are merged in the order of their positions. What a sequence gets depends
on its own length and pages only, never on the rest of the batch.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from fieldprint.attention.plan import AttentionPlan, Run, SequencePlan

SPLIT = 512  # keys of one split of a long run
LONG = 2048  # keys from which one query is worth several tasks for torch's threads

_FLASH_CPU = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_FLASH_GPU = torch.ops.aten._scaled_dot_product_flash_attention.default
_EFFICIENT_GPU = torch.ops.aten._scaled_dot_product_efficient_attention.default

Partial = tuple[Tensor, Tensor]  # output [rows, num_q_heads, head_dim] and lse [rows, num_q_heads]


def attend(
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    plan: AttentionPlan,
    anchor: tuple[Tensor, Tensor] | None,
    q_anchor: Tensor | None,
    g: Tensor | None,
    mixture: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """`out`, lse of the context, and with an anchor its lse, `mass` and `weight`; arguments as the entry's, checked."""
    num_kv_heads, head_dim = k_pages.shape[2:]
    k_slots = k_pages.view(-1, num_kv_heads, head_dim)
    v_slots = v_pages.view(-1, num_kv_heads, head_dim)
    contexts = [_context(q, k_slots, v_slots, sequence, scale) for sequence in plan.sequences]
    if len(contexts) == 1:
        o_c, lse_c = contexts[0]
    else:
        o_c, lse_c = torch.cat([o for o, _ in contexts]), torch.cat([lse for _, lse in contexts])
    if anchor is None:
        return o_c, lse_c, None, None, None
    o_a, lse_a = _anchor(q if q_anchor is None else q_anchor, plan, anchor, scale)
    mass = torch.sigmoid(lse_a - lse_c)
    if g is None:
        weight = torch.where(torch.isneginf(lse_c), 1.0, 0.0) if mixture else mass
    elif mixture:
        weight = torch.where(torch.isneginf(lse_c), 1.0, g)  # an empty context has nothing to give a share to
    else:
        weight = torch.maximum(g, mass)
    out = torch.lerp(o_c, o_a, weight.unsqueeze(-1).to(q.dtype))
    return out, lse_c, lse_a, mass, weight


def _anchor(q: Tensor, plan: AttentionPlan, anchor: tuple[Tensor, Tensor], scale: float) -> Partial:
    """Every query against the anchor; a sequence's result depends on its own queries alone.

    A matrix product gives other bits for another number of rows, so sequences do not share one: steps of one query a
    sequence go as a batch, others one sequence after the other, whose queries and heads of a KV head share one tile.
    """
    total, num_q_heads, head_dim = q.shape
    num_kv_heads = anchor[0].shape[0]
    keys, values = anchor[0].unsqueeze(0), anchor[1].unsqueeze(0)
    if all(sequence.stop - sequence.first == 1 for sequence in plan.sequences):
        tiles = q.view(total, num_kv_heads, -1, head_dim)
        expanded = (total, -1, -1, -1)
        o, lse = _flash(tiles, keys.expand(expanded), values.expand(expanded), scale=scale)
        return o.reshape(total, num_q_heads, head_dim), lse.reshape(total, num_q_heads)
    outs, lses = [], []
    for sequence in plan.sequences:
        rows = sequence.stop - sequence.first
        if rows == 0:
            continue
        own = q[sequence.first : sequence.stop].view(rows, num_kv_heads, -1, head_dim)
        o, lse = _flash(own.transpose(0, 1).reshape(1, num_kv_heads, -1, head_dim), keys, values, scale=scale)
        outs.append(
            o.reshape(num_kv_heads, rows, -1, head_dim).transpose(0, 1).reshape(rows, num_q_heads, head_dim)
        )
        lses.append(lse.reshape(num_kv_heads, rows, -1).transpose(0, 1).reshape(rows, num_q_heads))
    return torch.cat(outs), torch.cat(lses)


def _context(q: Tensor, k_slots: Tensor, v_slots: Tensor, sequence: SequencePlan, scale: float) -> Partial:
    """Queries of one sequence against its runs."""
    queries = q[sequence.first : sequence.stop]
    if not sequence.runs:
        return torch.zeros_like(queries), torch.full(queries.shape[:2], -math.inf, device=q.device)
    attend_run = _decode_run if queries.shape[0] == 1 else _prefill_run
    partials = [part for run in sequence.runs for part in attend_run(queries, k_slots, v_slots, run, scale)]
    if len(partials) == 1:
        return partials[0]
    outs, lses = torch.stack([o for o, _ in partials]), torch.stack([lse for _, lse in partials])
    lse = torch.logsumexp(lses, 0)
    shares = torch.exp(lses - lse).nan_to_num_(0.0)  # a query that sees nothing at all: -inf - -inf
    return (outs.float() * shares.unsqueeze(-1)).sum(0).to(q.dtype), lse


def _decode_run(query: Tensor, k_slots: Tensor, v_slots: Tensor, run: Run, scale: float) -> list[Partial]:
    """One query; the query heads of a KV head share one tile. Whole splits of a long run go in one call."""
    num_kv_heads, head_dim = k_slots.shape[1:]
    num_q_heads = query.shape[1]
    tile = query.view(1, num_kv_heads, -1, head_dim)
    whole = run.num_keys // SPLIT if run.num_keys >= LONG else 0
    border = whole * SPLIT
    keys, values = _rows(k_slots, run), _rows(v_slots, run)
    partials: list[Partial] = []
    if whole:
        k = keys[:border].view(whole, SPLIT, num_kv_heads, head_dim).transpose(1, 2)
        v = values[:border].view(whole, SPLIT, num_kv_heads, head_dim).transpose(1, 2)
        o, lse = _flash(tile.expand(whole, -1, -1, -1), k, v, scale=scale)
        outs, lses = o.reshape(whole, 1, num_q_heads, head_dim), lse.reshape(whole, 1, num_q_heads)
        total = torch.logsumexp(lses, 0)
        partials.append(((outs.float() * torch.exp(lses - total).unsqueeze(-1)).sum(0).to(o.dtype), total))
    if border < run.num_keys:
        k, v = keys[border:].transpose(0, 1).unsqueeze(0), values[border:].transpose(0, 1).unsqueeze(0)
        o, lse = _flash(tile, k, v, scale=scale)
        partials.append((o.reshape(1, num_q_heads, head_dim), lse.reshape(1, num_q_heads)))
    return partials


def _prefill_run(queries: Tensor, k_slots: Tensor, v_slots: Tensor, run: Run, scale: float) -> list[Partial]:
    """Many queries; the query heads of a KV head share its keys through a stride of 0."""
    rows, num_q_heads, head_dim = queries.shape
    num_kv_heads = k_slots.shape[1]
    tile = queries.view(rows, num_kv_heads, -1, head_dim).permute(1, 2, 0, 3)
    mask = run.mask.to(queries.dtype) if isinstance(run.mask, Tensor) else None
    keys, values = _expanded(k_slots, run, tile.shape[1]), _expanded(v_slots, run, tile.shape[1])
    o, lse = _flash(tile, keys, values, is_causal=isinstance(run.mask, str), attn_mask=mask, scale=scale)
    if run.unseeing is not None:  # torch gives such a query an output of 0 and an lse of 0, not -inf
        lse = lse.masked_fill(run.unseeing, -math.inf)
    return [
        (
            o.permute(2, 0, 1, 3).reshape(rows, num_q_heads, head_dim),
            lse.permute(2, 0, 1).reshape(rows, num_q_heads),
        )
    ]


def _rows(slots: Tensor, run: Run) -> Tensor:
    """K or V of the run, [num_keys, num_kv_heads, head_dim]."""
    if run.slots is not None:
        return slots.index_select(0, run.slots)
    return slots[run.first_slot : run.first_slot + run.num_keys]


def _expanded(slots: Tensor, run: Run, group: int) -> Tensor:
    return _rows(slots, run).transpose(0, 1).unsqueeze(1).expand(-1, group, -1, -1)


def _flash(
    q: Tensor, k: Tensor, v: Tensor, *, scale: float, is_causal: bool = False, attn_mask: Tensor | None = None
) -> Partial:
    """(output, natural lse) of torch's attention for the device and dtype of `q`, [batch, heads, rows, head_dim].

    torch's public call does not give the log-sum-exp back. These are its private names, so
    test_torch_flash_returns_natural_lse holds them to what is used here.
    """
    if q.device.type == "cpu":
        on_cpu: Partial = _FLASH_CPU(q, k, v, 0.0, is_causal, attn_mask=attn_mask, scale=scale)
        return on_cpu
    if attn_mask is None and q.dtype != torch.float32:
        out, lse = _FLASH_GPU(q, k, v, 0.0, is_causal, False, scale=scale)[:2]
        return out, lse[..., : q.shape[2]]
    bias = None  # flash attention on a GPU knows neither float32 nor masks
    if attn_mask is not None:  # rows of the bias must begin at multiples of 16 elements
        columns = attn_mask.shape[-1]
        bias = F.pad(attn_mask, (0, -columns % 16))[..., :columns].expand(*q.shape[:2], -1, -1)
    out, lse = _EFFICIENT_GPU(q, k, v, bias, True, 0.0, is_causal, scale=scale)[:2]
    return out, lse[..., : q.shape[2]]
