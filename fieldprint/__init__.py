"""Signed texts, pinned as K/V pages that every query attends to, with a public log of what was generated under them.

    text -> anchor/ -> verify -> promote -> kvcache/ -> attention/ -> generate -> commit -> tlog/

    step        in                           out
    ----------  ---------------------------  ----------------------------------------------------------------
    anchor/     text, kind, lineage, keys    signed artifact; it is what is authenticated, tensors are derived
    verify      artifact, policy, registry   VerifiedAnchor, or an error that says which check failed
    promote     VerifiedAnchor, model        PinnedAnchor: K/V quantized, hashed, compared, written, pinned
    kvcache/    pages                        pages; pinned ones are never evicted, those of the context may be
    attention/  q, context pages, anchor     out, lse, anchor mass, by one operator in one fused pass
    generate    prompts, PinnedAnchor        tokens: provisional first, then final
    commit      tokens, page digests         leaf; on failure generation rolls back to the last committed page
    tlog/       leaves                       checkpoints, proofs, receipts; the log is never truncated

Names are loaded when they are first used, so an auditor's `import fieldprint` needs neither torch nor numpy.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fieldprint.anchor import AnchorArtifact, Policy, sign_anchor
    from fieldprint.attention import paged_fieldprint_attention
    from fieldprint.errors import FieldprintError, VerificationError
    from fieldprint.generate import EffectsGate, Engine, GenerationRequest
    from fieldprint.kvcache import PagePool
    from fieldprint.promote import PinnedAnchor, promote_anchor
    from fieldprint.registry import Registry
    from fieldprint.tlog import LogReader, LogWriter, TrustPolicy, verify_log_proof
    from fieldprint.verify import VerifiedAnchor, verify_anchor, verify_receipt

__all__ = [
    "AnchorArtifact",
    "EffectsGate",
    "Engine",
    "FieldprintError",
    "GenerationRequest",
    "LogReader",
    "LogWriter",
    "PagePool",
    "PinnedAnchor",
    "Policy",
    "Registry",
    "TrustPolicy",
    "VerificationError",
    "VerifiedAnchor",
    "paged_fieldprint_attention",
    "promote_anchor",
    "sign_anchor",
    "verify_anchor",
    "verify_log_proof",
    "verify_receipt",
]

_HOME = {
    "AnchorArtifact": "anchor",
    "EffectsGate": "generate",
    "Engine": "generate",
    "FieldprintError": "errors",
    "GenerationRequest": "generate",
    "LogReader": "tlog",
    "LogWriter": "tlog",
    "PagePool": "kvcache",
    "PinnedAnchor": "promote",
    "Policy": "anchor",
    "Registry": "registry",
    "TrustPolicy": "tlog",
    "VerificationError": "errors",
    "VerifiedAnchor": "verify",
    "paged_fieldprint_attention": "attention",
    "promote_anchor": "promote",
    "sign_anchor": "anchor",
    "verify_anchor": "verify",
    "verify_log_proof": "tlog",
    "verify_receipt": "verify",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*globals(), *(name for name in __all__ if name not in globals())]
