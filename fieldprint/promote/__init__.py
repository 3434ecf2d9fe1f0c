"""Promotion: a verified anchor becomes quantized, hashed, pinned pages. Nothing else may put pages before a query."""

from fieldprint.promote.fieldprint import Fieldprint, compute_fieldprint
from fieldprint.promote.pin import PinnedAnchor, promote_anchor

__all__ = ["Fieldprint", "PinnedAnchor", "compute_fieldprint", "promote_anchor"]
