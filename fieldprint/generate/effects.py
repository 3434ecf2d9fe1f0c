"""The effects gate: tool calls, memory writes and answers leave the system from committed tokens only.

    Provisional(0, 31)   "...)" completes a call: hold(0, 32, call)
    Committed(0, 16)
    RolledBack(0, 16)    Dropped(0, 32, call): the tokens that said so never happened
    Provisional(0, 31)   they come again: hold(0, 32, call)
    Committed(0, 32)     Released(0, 32, call): now, and never again

What was dropped was not acted upon, and what was released rests on tokens that no rollback reaches. Whoever acts on
`Released` alone need not know that there are rollbacks.
"""

from collections.abc import Generator, Iterable
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from fieldprint.errors import IntegrityError
from fieldprint.generate.request import Bypassed, Committed, Event, Provisional, RolledBack

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Released(Generic[T]):
    """The effect may happen: all tokens of the request below `upto` are final."""

    request: int
    upto: int
    effect: T


@dataclass(frozen=True, slots=True)
class Dropped(Generic[T]):
    """The effect must not happen: tokens below `upto` were taken back. It can be held again when they come again."""

    request: int
    upto: int
    effect: T


@dataclass(slots=True)
class _Stream(Generic[T]):
    """One request: its tokens from position `start` on, how far it is final, and its effects by `upto`."""

    start: int | None = None
    tokens: list[int] = field(default_factory=list)
    committed: int = 0
    held: dict[int, T] = field(default_factory=dict)
    released: dict[int, T] = field(default_factory=dict)

    @property
    def end(self) -> int:
        """The position behind the newest token that is known."""
        return max(self.committed, 0 if self.start is None else self.start + len(self.tokens))


class EffectsGate(Generic[T]):
    """Holds effects until the tokens that they come from are committed; for one stream of events.

        gate: EffectsGate[ToolCall] = EffectsGate()
        for event in gate.watch(engine.generate(requests, anchor=pinned, log=log)):
            if isinstance(event, Provisional):
                if call := find_call(gate.tokens(event.request)):
                    gate.hold(event.request, event.position + 1, call)
            elif isinstance(event, Released):
                perform(event.effect)

    An effect is a value that says what to do, of any type `T`.
    """

    def __init__(self) -> None:
        self._streams: dict[int, _Stream[T]] = {}
        self._watching: bool | None = None  # None: not yet; False: no more

    def watch(self, events: Iterable[Event]) -> Generator[Event | Released[T] | Dropped[T]]:
        """The events, and behind each one what it released or dropped.

        Behind `Committed` and `Finished` come the effects that they cover, by `upto`; behind `RolledBack` those that it
        took back, by `upto`. What is held when its tokens are committed already comes next. If the stream is closed or
        fails, nothing more is released; `held` says what was left.

        Args:
            events: all that `Engine.generate` gives; closed with this generator.

        Raises:
            ValueError: the gate has watched a stream before.
            IntegrityError: the events are no stream of the engine: a token is missing, or what was committed is taken
                back.
        """
        if self._watching is not None:
            raise ValueError("a gate watches one stream; make another gate")
        self._watching = True
        try:
            with closing(events) if isinstance(events, Generator) else nullcontext():
                for event in events:
                    dropped = self._see(event)
                    yield event
                    yield from dropped
                    while (released := self._next_due()) is not None:
                        yield released
        finally:
            self._watching = False

    def hold(self, request: int, upto: int, effect: T) -> bool:
        """Hold an effect that comes from the request's tokens below position `upto`; says whether it is a new one.

        A request has one effect at an `upto`; several calls that one token completes are one effect. To hold the same
        effect there again changes nothing, whether it waits or was released: so it is safe to look for effects in the
        whole text at every token, if each is held at the token that completes it.

        Raises:
            ValueError: nothing is watched, `upto` is not positive or beyond the newest token that was seen, or another
                effect is or was there.
        """
        if not self._watching:
            raise ValueError(
                "hold effects while the events are watched; before and after there is nothing to wait for"
            )
        stream = self._streams.get(request)
        if stream is None or not 0 < upto <= stream.end:
            end = 0 if stream is None else stream.end
            raise ValueError(
                f"upto must lie within 1 and {end}, the tokens of request {request} so far, not {upto}"
            )
        for effects in (stream.held, stream.released):
            if upto in effects:
                if effects[upto] != effect:
                    raise ValueError(f"request {request} has another effect at {upto}; hold both as one")
                return False
        stream.held[upto] = effect
        return True

    def tokens(self, request: int) -> tuple[int, ...]:
        """The tokens that the request has generated so far, without those that were taken back."""
        stream = self._streams.get(request)
        return () if stream is None else tuple(stream.tokens)

    @property
    def held(self) -> tuple[tuple[int, int, T], ...]:
        """What waits: request, `upto` and effect, in that order."""
        return tuple(
            (request, upto, stream.held[upto])
            for request, stream in sorted(self._streams.items())
            for upto in sorted(stream.held)
        )

    def _see(self, event: Event) -> list[Dropped[T]]:
        """Take note of an event; returns what it took back."""
        stream = self._streams.setdefault(event.request, _Stream())
        if isinstance(event, RolledBack):
            return self._rolled_back(stream, event)
        if isinstance(event, Provisional):
            stream.start = event.position if stream.start is None else stream.start
            if event.position != stream.start + len(stream.tokens):
                raise _broken(f"a token of request {event.request} is missing before {event.position}")
            stream.tokens.append(event.token_id)
            return []
        if isinstance(event, Committed):
            upto = event.upto
        elif isinstance(event, Bypassed):
            upto = event.position
        else:
            upto = len(event.result.prompt) + len(event.result.tokens)
        if stream.start is not None and upto > stream.start + len(stream.tokens):
            raise _broken(f"tokens of request {event.request} are missing before {upto}")
        stream.committed = max(stream.committed, upto)
        return []

    def _rolled_back(self, stream: _Stream[T], event: RolledBack) -> list[Dropped[T]]:
        if event.to < stream.committed:
            raise _broken(
                f"request {event.request} went back to {event.to}, and was committed to {stream.committed}"
            )
        if stream.start is not None:
            del stream.tokens[max(0, event.to - stream.start) :]
        gone = sorted(upto for upto in stream.held if upto > event.to)
        return [Dropped(event.request, upto, stream.held.pop(upto)) for upto in gone]

    def _next_due(self) -> Released[T] | None:
        """The next effect whose tokens are final; it counts as released from here on."""
        for request, stream in self._streams.items():
            upto = min(stream.held, default=stream.committed + 1)
            if upto <= stream.committed:
                effect = stream.released[upto] = stream.held.pop(upto)
                return Released(request, upto, effect)
        return None


def _broken(what: str) -> IntegrityError:
    return IntegrityError(what, remedy="Give the gate every event of one stream, and act on none of this one")
