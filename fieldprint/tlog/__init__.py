"""The transparency log: entries to an RFC 9162 tree, its tiles and signed checkpoints, and proofs over them."""

from fieldprint.tlog.checkpoint import Checkpoint
from fieldprint.tlog.history import Cosign, Cosigned, State
from fieldprint.tlog.merkle import (
    CompactRange,
    leaf_hash,
    node_hash,
    prove_consistency,
    prove_inclusion,
    prove_subtree,
    tree_hash,
    verify_consistency,
    verify_inclusion,
    verify_subtree,
)
from fieldprint.tlog.proof import LogProof, VerifiedEntry, prove_entry, verify_log_proof
from fieldprint.tlog.reader import LogReader
from fieldprint.tlog.status import (
    AbsenceProof,
    PresenceProof,
    StatusTree,
    verify_absent,
    verify_present,
)
from fieldprint.tlog.storage import PosixStorage, Source, Storage, open_source, open_storage
from fieldprint.tlog.trust import Trust, TrustPolicy, verify_checkpoint, verify_cosignatures
from fieldprint.tlog.writer import Appended, LogWriter, Pending, publish_cosigned

__all__ = [
    "AbsenceProof",
    "Appended",
    "Checkpoint",
    "CompactRange",
    "Cosign",
    "Cosigned",
    "LogProof",
    "LogReader",
    "LogWriter",
    "Pending",
    "PosixStorage",
    "PresenceProof",
    "Source",
    "State",
    "StatusTree",
    "Storage",
    "Trust",
    "TrustPolicy",
    "VerifiedEntry",
    "leaf_hash",
    "node_hash",
    "open_source",
    "open_storage",
    "prove_consistency",
    "prove_entry",
    "prove_inclusion",
    "prove_subtree",
    "publish_cosigned",
    "tree_hash",
    "verify_absent",
    "verify_checkpoint",
    "verify_consistency",
    "verify_cosignatures",
    "verify_inclusion",
    "verify_log_proof",
    "verify_present",
    "verify_subtree",
]
