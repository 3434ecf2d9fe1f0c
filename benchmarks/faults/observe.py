"""A reader of the events, who knows what has to come: everything that is final must be what came undisturbed."""

from collections.abc import Generator, Iterator, Sequence

from fieldprint.generate import (
    Committed,
    Dropped,
    EffectsGate,
    Event,
    Finished,
    GenerationResult,
    Provisional,
    Released,
    RolledBack,
)


class Reader:
    """Holds every token back at the effects gate until it is released, and compares it then.

    wrong: what must not have happened. released: tokens that left the gate. unverified: those among them that were wrong,
    or were not committed.

    Args:
        expected: the undisturbed results.
    """

    def __init__(self, expected: Sequence[GenerationResult]) -> None:
        self.expected = expected
        self.wrong: list[str] = []
        self.released = self.unverified = 0
        self.results: dict[int, GenerationResult] = {}
        self._horizon = dict.fromkeys(range(len(expected)), 0)
        self._gate: EffectsGate[int] = EffectsGate()

    def follow(self, events: Generator[Event]) -> Iterator[Event]:
        """The engine's events, read and judged on their way."""
        for event in self._gate.watch(events):
            if isinstance(event, Released):
                self._release(event.request, event.upto, event.effect)
            elif not isinstance(event, Dropped):
                self._see(event)
                yield event

    def _see(self, event: Event) -> None:
        request = event.request
        if isinstance(event, Provisional):
            self._gate.hold(request, event.position + 1, event.token_id)
        elif isinstance(event, Committed):
            if event.upto < self._horizon[request]:
                self.wrong.append(f"the horizon of request {request} moved back to {event.upto}")
            self._horizon[request] = event.upto
        elif isinstance(event, RolledBack):
            if event.to < self._horizon[request]:
                self.wrong.append(f"request {request} was rolled back to {event.to}, behind its horizon")
        elif isinstance(event, Finished):
            self.results[request] = event.result

    def _release(self, request: int, upto: int, token: int) -> None:
        self.released += 1
        expected = self.expected[request]
        right = (*expected.prompt, *expected.tokens)[upto - 1]
        if token != right or upto > self._horizon[request]:
            self.unverified += 1
            self.wrong.append(f"request {request} released token {token} at {upto - 1}; {right} is right")

    def compare(self) -> bool:
        """Whether all results are the undisturbed ones, once the stream has ended."""
        before = len(self.wrong)
        for request, expected in enumerate(self.expected):
            got = self.results.get(request)
            if got is None:
                self.wrong.append(f"request {request} did not finish")
            elif (got.tokens, got.text, got.reason) != (expected.tokens, expected.text, expected.reason):
                self.wrong.append(f"request {request} ended in another text")
            elif [page.leaf for page in got.pages] != [page.leaf for page in expected.pages]:
                self.wrong.append(f"request {request} ended in other leaves")
        return len(self.wrong) == before
