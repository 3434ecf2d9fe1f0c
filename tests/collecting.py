"""Reads a stream of the engine to its end, for tests that act at a token of it."""

from collections.abc import Callable, Iterable

from fieldprint.generate import Event, Finished, GenerationResult, Provisional

OnToken = Callable[[int, Event], object]


def collect(
    events: Iterable[Event], on_token: OnToken = lambda number, event: None
) -> tuple[list[GenerationResult], list[Event]]:
    """The results by request, and all events; `on_token` is called with each generated token and its number from 1."""
    seen: list[Event] = []
    results: dict[int, GenerationResult] = {}
    generated = 0
    for event in events:
        seen.append(event)
        if isinstance(event, Provisional):
            generated += 1
            on_token(generated, event)
        elif isinstance(event, Finished):
            results[event.request] = event.result
    return [results[i] for i in range(len(results))], seen
