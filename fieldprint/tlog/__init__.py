"""The transparency log: entries to an RFC 9162 tree, its tiles and signed checkpoints, and proofs over them."""

from fieldprint.tlog.checkpoint import Checkpoint
from fieldprint.tlog.merkle import (
    leaf_hash,
    node_hash,
    prove_consistency,
    prove_inclusion,
    tree_hash,
    verify_consistency,
    verify_inclusion,
)
from fieldprint.tlog.proof import LogProof, VerifiedEntry, prove_entry, verify_log_proof
from fieldprint.tlog.reader import LogReader
from fieldprint.tlog.trust import Trust, TrustPolicy, verify_checkpoint, verify_cosignatures
from fieldprint.tlog.writer import Appended, LogWriter

__all__ = [
    "Appended",
    "Checkpoint",
    "LogProof",
    "LogReader",
    "LogWriter",
    "Trust",
    "TrustPolicy",
    "VerifiedEntry",
    "leaf_hash",
    "node_hash",
    "prove_consistency",
    "prove_entry",
    "prove_inclusion",
    "tree_hash",
    "verify_checkpoint",
    "verify_consistency",
    "verify_cosignatures",
    "verify_inclusion",
    "verify_log_proof",
]
