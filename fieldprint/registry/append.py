"""Writing an event into a log, only if the registry believes it there."""

from collections.abc import Callable
from pathlib import Path

from fieldprint.anchor.keys import load_private_key
from fieldprint.anchor.policy import Policy
from fieldprint.errors import VerificationError
from fieldprint.note import NoteSigner
from fieldprint.registry.events import EventError
from fieldprint.registry.state import Change, Registry
from fieldprint.tlog.history import Cosign
from fieldprint.tlog.reader import LogReader
from fieldprint.tlog.writer import LogWriter


def open_log(
    place: str,
    log_key: Path,
    policy: Policy,
    *,
    last_signed: Path | None = None,
    adopt: bool = False,
    cosign: Cosign | None = None,
) -> LogWriter:
    """The log's writer, if the key is the one that the policy names; other arguments as `LogWriter`'s.

    Raises:
        VerificationError: it is another key (check 2).
        FieldprintError: the key or the log cannot be opened.
    """
    signer = NoteSigner(policy.log_key.name, load_private_key(log_key))
    if signer.verifier_key != policy.log_key:
        raise VerificationError(
            2, f"{log_key} is not the log key of the policy", remedy="Give the key of that log"
        )
    return LogWriter(place, signer, last_signed=last_signed, adopt=adopt, cosign=cosign)


def believe_event(registry: Registry, entry: bytes) -> Change:
    """What the registry makes of the event as the next entry of its log; it has applied it then.

    Raises:
        EventError: it is refused, with the name that the registry gives.
    """
    index = registry.position
    change = registry.apply(index, entry)
    if change is None:
        refused = registry.refused[-1] if registry.refused else None
        if refused is None or refused.index != index:
            raise EventError("malformed", "it is no event")
        raise EventError(refused.why, f"the registry refuses it ({refused.why}): {refused.what}")
    return change


def append_event(log: LogWriter, policy: Policy, entry: bytes) -> int:
    """The index of the event's entry, which is appended only if the registry that the log gives believes it.

    Raises:
        EventError: it is refused, with the name that the registry gives; the log is as it was.
        LogError: the log cannot be read or written.
    """
    return append_made(log, policy, lambda _registry: entry)


def append_made(log: LogWriter, policy: Policy, make: Callable[[Registry], bytes]) -> int:
    """As `append_event`, of an entry that is made from the registry in front of it.

    The log's lock is held by its writer, so nothing comes in between.
    """
    registry = Registry.replay(LogReader(log.source, [policy.log_key]).entries(), policy)
    entry = make(registry)
    believe_event(registry, entry)
    return log.append([entry]).first_index
