"""What `generate --stream` shows of events: pieces of text, rollbacks, and characters of several tokens."""

import io
import json
from collections.abc import Sequence

import pytest

pytest.importorskip("torch")  # the events are the engine's

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from fieldprint.cli.stream import Answer, JsonStream, TerminalStream
from fieldprint.generate import Committed, Event, Finished, GenerationResult, Provisional, RolledBack

BYTES = "I live in Øslo \N{BADGER}.".encode()


def decode(tokens: Sequence[int]) -> str:
    """A tokenizer whose tokens are bytes."""
    return bytes(tokens).decode(errors="replace")


def provisional(first: int, data: bytes) -> list[Event]:
    return [Provisional(0, first + i, token) for i, token in enumerate(data)]


def finished() -> Finished:
    result = GenerationResult((1,) * 10, tuple(BYTES), decode(BYTES), "stop", bytes(16))
    return Finished(0, result)


def with_a_rollback() -> list[Event]:
    script = [*provisional(10, BYTES[:12]), Committed(0, 16), *provisional(22, BYTES[12:17])]
    script += [RolledBack(0, 16, "a test"), *provisional(16, BYTES[6:])]
    return [*script, Committed(0, 10 + len(BYTES)), finished()]


def test_each_event_is_one_line_and_the_committed_text_is_the_answer(
    capsys: pytest.CaptureFixture[str],
) -> None:
    stream = JsonStream(decode)
    for event in with_a_rollback():
        stream(event)
    stream.close()
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == len(with_a_rollback())
    assert lines[0] == {"event": "provisional", "request": 0, "position": 10, "token_id": 73, "text": "I"}
    assert [line["text"] for line in lines if line["event"] == "committed"] == [
        "I live",
        " in Øslo \N{BADGER}.",
    ]
    assert {"event": "rolled_back", "request": 0, "to": 16, "reason": "a test"} in lines
    assert lines[-1] == {
        "event": "finished",
        "request": 0,
        "text": decode(BYTES),
        "tokens": len(BYTES),
        "reason": "stop",
    }


@given(st.text(max_size=12), st.data())
def test_pieces_together_are_the_text_that_is_decoded_at_once(text: str, data: st.DataObject) -> None:
    answer, whole, final = Answer(decode), text.encode().replace("\ufffd".encode(), b"?"), ""
    for position, token in enumerate(whole):
        answer.add(7 + position, token)
        if data.draw(st.booleans()):
            final += answer.commit(7 + data.draw(st.integers(answer.final, position + 1)))
        if data.draw(st.integers(0, 4)) == 0:
            back = answer.final
            answer.back(7 + back)
            for again in range(back, position + 1):
                answer.add(7 + again, whole[again])
    final += answer.commit(7 + len(whole))
    assert final == "".join(answer.pieces) == whole.decode()


def dim(stream: TerminalStream) -> list[str]:
    view = stream.view()
    return [view.plain[span.start : span.end] for span in view.spans if span.style == "dim"]


def test_provisional_text_is_dim_on_a_terminal_until_it_is_committed() -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=60, height=20, color_system="standard")
    stream = TerminalStream(decode, ["Where\x1b do you live?"], console)
    for event in with_a_rollback()[:13]:
        stream(event)
    assert dim(stream) == [" in Ø"]
    assert "\x1b[2m" in screen.getvalue() and "Where?" in stream.view().plain
    for event in with_a_rollback()[13:]:
        stream(event)
    assert dim(stream) == ["1 rolled back"]
    assert "1 rolled back" in stream.view().plain and decode(BYTES) in stream.view().plain
    stream.close()


def test_of_a_long_answer_the_end_is_shown() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=20, height=8)
    stream = TerminalStream(decode, ["a", "b"], console)
    for i in range(400):
        stream(Provisional(1, i, 97 + i % 26))
    stream.close()
    shown = stream.view().plain
    assert len(shown.splitlines()) <= 8 and shown.rstrip().endswith(chr(97 + 399 % 26))
