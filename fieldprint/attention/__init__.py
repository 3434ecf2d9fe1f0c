"""PagedFieldprintAttention: queries over their own paged context and the pinned anchor, in one operator."""

from fieldprint.attention.paged import AttentionOutput, paged_fieldprint_attention
from fieldprint.attention.plan import AttentionPlan, plan_attention

__all__ = ["AttentionOutput", "AttentionPlan", "paged_fieldprint_attention", "plan_attention"]
