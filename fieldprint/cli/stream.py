"""What `generate --stream` shows while tokens come: which are provisional, which are final, which were taken back.

    {"event": "provisional", "request": 0, "position": 31, "token_id": 288, "text": " Os"}
    {"event": "committed", "request": 0, "upto": 32, "text": "I live in Os"}
    {"event": "rolled_back", "request": 0, "to": 32, "reason": "a context page was damaged"}
    {"event": "bypassed", "request": 0, "position": 34, "reason": "the anchor was revoked at ..."}
    {"event": "finished", "request": 0, "text": "I live in Oslo.", "tokens": 7, "reason": "stop"}

`text` is what the token adds, or what became final; a character of several tokens comes with the last of them.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.live import Live
from rich.text import Text

from fieldprint.cli.output import printable

if TYPE_CHECKING:
    from fieldprint.generate import Event

REFRESH = 0.1  # seconds


@dataclass(slots=True)
class Answer:
    """The text of one request so far, a piece for each token; the first `final` pieces are committed."""

    decode: Callable[[Sequence[int]], str]
    start: int = 0
    tokens: list[int] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)
    final: int = 0

    def add(self, position: int, token: int) -> str:
        """Take a token; returns what it adds to the text."""
        if not self.tokens:
            self.start = position
        self.tokens.append(token)
        whole = self.decode(self.tokens).rstrip("\N{REPLACEMENT CHARACTER}")
        self.pieces.append(whole[sum(map(len, self.pieces)) :])
        return self.pieces[-1]

    def commit(self, upto: int) -> str:
        """Move the horizon; returns the text that became final."""
        before, self.final = self.final, max(self.final, min(upto - self.start, len(self.tokens)))
        return "".join(self.pieces[before : self.final])

    def back(self, to: int) -> None:
        """Forget the tokens from position `to` on."""
        keep = max(0, to - self.start)
        del self.tokens[keep:], self.pieces[keep:]


class JsonStream:
    """Prints one JSON object a line for each event."""

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._answers: dict[int, Answer] = {}

    def __call__(self, event: "Event") -> None:
        from fieldprint.generate import Bypassed, Committed, Provisional, RolledBack

        answer = self._answers.setdefault(event.request, Answer(self._decode))
        fields: dict[str, Any]
        if isinstance(event, Provisional):
            text = answer.add(event.position, event.token_id)
            fields = {"position": event.position, "token_id": event.token_id, "text": text}
            kind = "provisional"
        elif isinstance(event, Committed):
            kind, fields = "committed", {"upto": event.upto, "text": answer.commit(event.upto)}
        elif isinstance(event, RolledBack):
            answer.back(event.to)
            kind, fields = "rolled_back", {"to": event.to, "reason": event.reason}
        elif isinstance(event, Bypassed):
            kind, fields = "bypassed", {"position": event.position, "reason": event.reason}
        else:
            result, tokens = event.result, event.result.all_tokens
            fields = {"text": self._decode(tokens), "tokens": len(tokens), "reason": result.reason}
            kind = "finished"
        typer.echo(json.dumps({"event": kind, "request": event.request} | fields, ensure_ascii=False))

    def close(self) -> None:
        """Nothing is left open."""


class TerminalStream:
    """Shows the answers on a terminal while they grow, provisional text dim; what it shows is gone at the end."""

    def __init__(
        self, decode: Callable[[Sequence[int]], str], prompts: Sequence[str], console: Console | None = None
    ) -> None:
        self._prompts = prompts
        self._answers = [Answer(decode) for _ in prompts]
        self._backs = 0
        self._notes: list[str] = []
        self._shown = 0.0
        self._console = console or Console(highlight=False)
        self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._live.start()

    def __call__(self, event: "Event") -> None:
        from fieldprint.generate import Bypassed, Committed, Provisional, RolledBack

        answer = self._answers[event.request]
        if isinstance(event, Provisional):
            answer.add(event.position, event.token_id)
        elif isinstance(event, Committed):
            answer.commit(event.upto)
        elif isinstance(event, RolledBack):
            answer.back(event.to)
            self._backs += 1
        elif isinstance(event, Bypassed):
            self._notes.append(f"without the anchor from here on: {printable(event.reason)}")
        if time.monotonic() >= self._shown + REFRESH or not isinstance(event, Provisional):
            self._shown = time.monotonic()
            self._live.update(self.view(), refresh=True)

    def view(self) -> Text:
        """The answers as they are now, each as much of its end as there is room for."""
        rows = max(1, (self._console.height - 2) // len(self._answers) - 2)
        room = rows * self._console.width
        view = Text()
        for prompt, answer in zip(self._prompts, self._answers, strict=True):
            final = printable("".join(answer.pieces[: answer.final]))
            rest = printable("".join(answer.pieces[answer.final :]))
            both = Text(final).append(rest, style="dim")
            view.append(f"> {printable(prompt)}\n", style="bold").append(both[-room:]).append("\n")
        notes = [f"{self._backs} rolled back"] if self._backs else []
        if notes or self._notes:
            view.append("; ".join([*notes, *dict.fromkeys(self._notes)]), style="dim")
        return view

    def close(self) -> None:
        """Clear it; what is final is printed after."""
        self._live.stop()
