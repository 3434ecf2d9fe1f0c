"""The registry: what became of every anchor, as replaying the log gives it.

    entry -> events (parse, signatures) -> state (is it allowed now?) -> lineage (taint, descent) -> Change, or Refused

The log holds everything that was appended. `Registry.apply` is the one place where an event is believed or not.
"""

from fieldprint.registry.append import append_event, append_made, believe_event, open_log
from fieldprint.registry.events import (
    EVENT_TYPES,
    MAX_EVENT_SIZE,
    Event,
    EventError,
    Promotion,
    check_signers,
    event_entry,
    read_fields,
    registration_entry,
    revocation_entry,
)
from fieldprint.registry.lineage import AnchorRecord
from fieldprint.registry.state import Change, Refused, Registry, RegistryView, Standing
from fieldprint.registry.status import StatusProof, prove_not_revoked, verify_not_revoked

__all__ = [
    "EVENT_TYPES",
    "MAX_EVENT_SIZE",
    "AnchorRecord",
    "Change",
    "Event",
    "EventError",
    "Promotion",
    "Refused",
    "Registry",
    "RegistryView",
    "Standing",
    "StatusProof",
    "append_event",
    "append_made",
    "believe_event",
    "check_signers",
    "event_entry",
    "open_log",
    "prove_not_revoked",
    "read_fields",
    "registration_entry",
    "revocation_entry",
    "verify_not_revoked",
]
