"""Commitments: what a page of tokens commits to, its bytes in the log, and the receipt that a client keeps.

The worker thread that makes them is `fieldprint.commit.committer`; it needs torch, these formats do not.
"""

from fieldprint.commit.leaf import AbortEntry, Commitment, request_digest, text_digest, tokens_digest
from fieldprint.commit.receipt import LeafProof, Receipt, renew_receipt

__all__ = [
    "AbortEntry",
    "Commitment",
    "LeafProof",
    "Receipt",
    "renew_receipt",
    "request_digest",
    "text_digest",
    "tokens_digest",
]
