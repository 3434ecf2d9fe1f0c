"""Reading entries: parsing and checking signatures, which depends on no state and so can be done ahead by processes.

A signature costs a tenth of a millisecond, more than all the rest of an event, and the library holds Python's lock for it:
threads do not help, processes do. What they give is applied in the order of the log.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from fieldprint.anchor.policy import Policy
from fieldprint.errors import FormatError
from fieldprint.registry.events import Event, EventError, check_signers, event_type, read_event

if TYPE_CHECKING:
    from concurrent.futures import Future

CHUNK = 512
AHEAD = 3  # chunks for each process


@dataclass(frozen=True, slots=True)
class Reading:
    """What an entry says. type: None if it is no event. refused: why it is not believed, whatever the state is."""

    type: str | None
    event: Event | None = None
    refused: tuple[str, str] | None = None


def read_entry(entry: bytes, policy: Policy) -> Reading:
    """What the entry says, with its signatures checked."""
    kind = event_type(entry)
    if kind is None:
        return Reading(None)
    try:
        event = read_event(kind, entry, policy)
        check_signers(event, policy)
    except (FormatError, EventError) as error:
        why = error.why if isinstance(error, EventError) else "malformed"
        return Reading(kind, None, (why, str(error)))
    return Reading(kind, event)


def read_ahead(entries: Iterable[bytes], policy: Policy, workers: int = 0) -> Iterator[Reading]:
    """What each entry says, in order; `workers` processes read ahead of whoever consumes it, 0 reads in this one."""
    if not workers:
        yield from (read_entry(entry, policy) for entry in entries)
        return
    # An auditor who reads a short log would wait for these imports and not need them.
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    source = iter(entries)
    context = multiprocessing.get_context("spawn")  # no locks and no open files come along
    pool = ProcessPoolExecutor(workers, context, _begin, (policy.to_bytes(),))
    waiting: deque[Future[list[Reading]]] = deque()
    try:
        while chunk := tuple(islice(source, CHUNK)):
            waiting.append(pool.submit(_read_chunk, chunk))
            if len(waiting) >= AHEAD * workers:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


_policy: list[Policy] = []  # of a worker process, which has nothing else


def _begin(policy: bytes) -> None:
    _policy[:] = [Policy.from_bytes(policy)]


def _read_chunk(entries: tuple[bytes, ...]) -> list[Reading]:
    return [read_entry(entry, _policy[0]) for entry in entries]
