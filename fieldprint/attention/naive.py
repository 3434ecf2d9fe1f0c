"""The operator in float64, one query and one head at a time: the truth that every fast path answers to.

For a query at position p of its sequence, with context keys k_i (i <= p, and i > p - window or i < num_sinks),
anchor keys k_j and softmax scale s:

    lse_c = log sum_i exp(s q k_i)        O_c = sum_i exp(s q k_i - lse_c) v_i
    lse_a = log sum_j exp(s q' k_j)       O_a = sum_j exp(s q' k_j - lse_a) v_j        q' = q_anchor, else q
    a = sigmoid(lse_a - lse_c)            w = max(g, a) (floor) or g (mixture)
    out = (1 - w) O_c + w O_a             lse = log(exp(lse_c) + exp(lse_a))

With a soft cap c every logit x becomes c tanh(x / c). An empty context gives the anchor's output (w = 1); without an anchor w = 0.
"""

import math

import torch
from torch import Tensor


def naive_attention(
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    page_table: Tensor,
    seq_lens: Tensor,
    cu_seqlens_q: Tensor,
    *,
    anchor_k: Tensor | None = None,
    anchor_v: Tensor | None = None,
    q_anchor: Tensor | None = None,
    g: Tensor | float = 0.0,
    operator: str = "floor",
    softmax_scale: float | None = None,
    window: int | None = None,
    num_sinks: int = 0,
    soft_cap: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`out` [total_q, num_q_heads, head_dim], `lse`, `mass` a and `weight` w [total_q, num_q_heads], all float64.

    Args: as `paged_fieldprint_attention`; anchor_k and anchor_v are [num_kv_heads, A, head_dim].
    """
    total, num_q_heads, head_dim = q.shape
    page_size, num_kv_heads = k_pages.shape[1], k_pages.shape[2]
    group = num_q_heads // num_kv_heads
    scale = 1 / math.sqrt(head_dim) if softmax_scale is None else softmax_scale
    floor = torch.as_tensor(g, dtype=torch.float64).expand(num_q_heads)
    out = torch.full((total, num_q_heads, head_dim), math.nan, dtype=torch.float64)
    lse, mass, weight = (torch.full((total, num_q_heads), math.nan, dtype=torch.float64) for _ in range(3))
    for row in range(len(seq_lens)):
        first, stop, length = int(cu_seqlens_q[row]), int(cu_seqlens_q[row + 1]), int(seq_lens[row])
        for token in range(first, stop):
            position = length - (stop - token)
            visible = [
                i for i in range(position + 1) if window is None or i > position - window or i < num_sinks
            ]
            slots = [(int(page_table[row, i // page_size]), i % page_size) for i in visible]
            for head in range(num_q_heads):
                kv = head // group
                query = q[token, head].double()
                lse_c, o_c = _softmax_output(
                    query, [k_pages[s][kv] for s in slots], [v_pages[s][kv] for s in slots], scale, soft_cap
                )
                if anchor_k is None or anchor_v is None or anchor_k.shape[1] == 0:
                    lse_a, o_a = -math.inf, torch.zeros(head_dim, dtype=torch.float64)
                else:
                    query = query if q_anchor is None else q_anchor[token, head].double()
                    lse_a, o_a = _softmax_output(
                        query, list(anchor_k[kv]), list(anchor_v[kv]), scale, soft_cap
                    )
                if lse_a == -math.inf:
                    a = 0.0
                elif lse_c == -math.inf:
                    a = 1.0
                else:
                    a = 1 / (1 + math.exp(min(lse_c - lse_a, 700.0)))
                w = max(float(floor[head]), a) if operator == "floor" else float(floor[head])
                w = 1.0 if lse_c == -math.inf and lse_a > -math.inf else w
                out[token, head] = (1 - w) * o_c + w * o_a
                lse[token, head] = torch.logaddexp(torch.tensor(lse_c).double(), torch.tensor(lse_a).double())
                mass[token, head], weight[token, head] = a, w
    return out, lse, mass, weight


def _softmax_output(
    query: Tensor, keys: list[Tensor], values: list[Tensor], scale: float, soft_cap: float
) -> tuple[float, Tensor]:
    if not keys:
        return -math.inf, torch.zeros_like(query)
    logits = torch.stack([scale * torch.dot(query, key.double()) for key in keys])
    if soft_cap:
        logits = soft_cap * torch.tanh(logits / soft_cap)
    lse = torch.logsumexp(logits, 0)
    probabilities = torch.exp(logits - lse)
    return float(lse), sum(
        (p * v.double() for p, v in zip(probabilities, values, strict=True)), torch.zeros_like(query)
    )
