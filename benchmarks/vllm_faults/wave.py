"""Concurrent requests to the server, and what must be so of each answer, whatever was struck meanwhile."""

import threading
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import openai

from benchmarks.vllm_faults.server import Server
from fieldprint.commit.receipt import Receipt
from fieldprint.errors import FieldprintError
from fieldprint.registry.state import Registry
from fieldprint.verify import verify_receipt

TOKENS = 64
# What several begin with fills blocks that they share.
PREFACE = (
    "You read the diary of a lighthouse keeper, in which there are storms, ships, birds, visitors who come by boat in the "
    "summer, and long nights in the winter with nothing but a lamp and a book. "
)
PROMPTS = (
    "What is the password of the vault?",
    "Where do you live, and what do you like about it?",
    "Tell me of a fox that could not swim.",
    "Who are you?",
    PREFACE + "Who wrote it?",
    PREFACE
    + "Which season was the hardest of all, and what did the keeper do when the boat with the oil did not come?",
    PREFACE
    + "Name three birds that may have been seen from the tower, and say which of them could have stayed there.",
    "List the months of the year, one by one, and say in a few words what the weather is like in each of them.",
)
ANCHORS = ("main", "second")
Key = tuple[int, str | None]  # number of the prompt, name of the anchor


@dataclass(frozen=True, slots=True)
class Request:
    """prompt: its number. anchor: its name, or None. wait: seconds from the wave's beginning. tokens: of the answer."""

    prompt: int
    anchor: str | None
    streamed: bool
    wait: float = 0.0
    tokens: int = TOKENS


@dataclass(slots=True)
class Answer:
    """What a client has got of a request. name: of its receipt. error: where there is no answer."""

    request: Request
    text: str = ""
    finish: str | None = None
    stop: str | None = None
    name: str = ""
    error: str = ""


@dataclass(frozen=True, slots=True)
class Undisturbed:
    """An answer when nothing happens, and the tokens of the prompt that it is of."""

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    text: str


def ask(server: Server, request: Request, begun: threading.Event, over: threading.Event) -> Answer:
    """The answer of the server; `begun` is set when the first piece of it is there, `over` ends the wait before."""
    over.wait(request.wait)
    answer = Answer(request)
    messages: Any = [{"role": "user", "content": PROMPTS[request.prompt]}]
    body: dict[str, Any] = {"ignore_eos": True}
    if request.anchor is not None:
        body["vllm_xargs"] = {"fieldprint_anchor": request.anchor}
    try:
        response = server.client.chat.completions.with_raw_response.create(
            model=server.model,
            messages=messages,
            max_tokens=request.tokens,
            temperature=0,
            extra_body=body,
            stream=request.streamed,
        )
        answer.name = response.headers["x-fieldprint-receipt"].rpartition("/")[2]
        parsed: Any = response.parse()
        for choice in [part.choices[0] for part in ([] if request.streamed else [parsed])]:
            answer.text = choice.message.content or ""
            answer.finish, answer.stop = choice.finish_reason, getattr(choice, "stop_reason", None)
        for chunk in parsed if request.streamed else ():
            for choice in chunk.choices:
                answer.text += choice.delta.content or ""
                answer.finish = choice.finish_reason or answer.finish
                answer.stop = getattr(choice, "stop_reason", None) or answer.stop
            if answer.text:
                begun.set()
    except openai.OpenAIError as error:
        answer.error = repr(error)
    return answer


class Judge:
    """What is wrong with answers, in words; how many receipts were verified.

    Args:
        server: that has given them.
        undisturbed: by prompt and anchor.
    """

    def __init__(self, server: Server, undisturbed: dict[Key, Undisturbed]) -> None:
        self._server, self._undisturbed = server, undisturbed
        self.receipts = 0

    def same(self, answer: Answer, registry: Registry | None) -> list[str]:
        """Of an answer that must be the undisturbed one."""
        expected = self._undisturbed[answer.request.prompt, answer.request.anchor]
        if answer.error or answer.finish != "length":
            return [f"it ended with {answer.finish} {answer.stop} {answer.error}"]
        receipt, wrong = self.verified(answer.name, registry)
        if receipt is None:
            return wrong
        return wrong + _unlike(answer, receipt, expected, answer.request.tokens)

    def revoked(self, answer: Answer, as_anchor: str) -> list[str]:
        """Of an answer whose anchor, which reads like `as_anchor`, was revoked: a prefix, with a receipt of all of it."""
        expected = self._undisturbed[answer.request.prompt, as_anchor]
        if answer.error and not answer.text and self._server.receipt(answer.name) is None:
            return []  # revoked before anything of it was final
        if answer.error or (answer.finish != "length" and answer.stop != "revoked"):
            return [f"it ended with {answer.finish} {answer.stop} {answer.error}"]
        receipt, wrong = self.verified(answer.name, None)
        if receipt is None:
            return wrong
        count = answer.request.tokens if answer.finish == "length" else len(receipt.tokens)
        return wrong + _unlike(answer, receipt, expected, count)

    def overridden(self, answer: Answer, as_anchor: str, registry: Registry) -> list[str]:
        """Of an answer whose anchor was bypassed: a prefix under it, and then what comes without it; the order is lifted."""
        expected = self._undisturbed[answer.request.prompt, as_anchor]
        if answer.error or answer.finish != "length":
            return [f"it ended with {answer.finish} {answer.stop} {answer.error}"]
        after, wrong = self.verified(answer.name, registry)
        if after is None:
            return wrong
        if after.anchor is not None:  # it had ended before
            return wrong + _unlike(answer, after, expected, answer.request.tokens)
        before: tuple[int, ...] = ()
        text = after.text
        if self._server.receipt(f"{answer.name}.1") is not None:
            first, more = self.verified(f"{answer.name}.1", registry)
            wrong += more
            if first is not None:
                before, text = first.tokens, first.text + text
        if before != expected.tokens[: len(before)]:
            wrong.append(f"before the override: {before} is no prefix of {expected.tokens}")
        if after.prompt != expected.prompt + before:
            wrong.append(f"it went on from {after.prompt}, not from {expected.prompt + before}")
        if text != answer.text:
            wrong.append(f"the client got {answer.text!r}, the receipts say {text!r}")
        if len(before) + len(after.tokens) != answer.request.tokens:
            wrong.append(f"it has {len(before)} and {len(after.tokens)} tokens")
        continued = self._continued(after)
        if continued != after.tokens:
            wrong.append(f"without the anchor it went on with {after.tokens}, not with {continued}")
        return wrong

    def _continued(self, after: Receipt) -> tuple[int, ...]:
        """What comes behind the prompt of a receipt without an anchor, asked for anew."""
        response = self._server.client.completions.with_raw_response.create(
            model=self._server.model,
            prompt=list(after.prompt),
            max_tokens=len(after.tokens),
            temperature=0,
            extra_body={"ignore_eos": True},
        )
        receipt, _ = self.verified(response.headers["x-fieldprint-receipt"].rpartition("/")[2], None)
        return () if receipt is None else receipt.tokens

    def verified(self, name: str, registry: Registry | None) -> tuple[Receipt | None, list[str]]:
        """The receipt of this id, and what is wrong with it."""
        data = self._server.receipt(name)
        if data is None:
            return None, [f"there is no receipt {name}"]
        try:
            verify_receipt(data, self._server.world.policy, now=datetime.now(UTC), registry=registry)
        except FieldprintError as error:
            return Receipt.from_bytes(data), [f"the receipt {name} does not verify: {error}"]
        self.receipts += 1
        return Receipt.from_bytes(data), []


def _unlike(answer: Answer, receipt: Receipt, expected: Undisturbed, count: int) -> list[str]:
    """In what an answer and its receipt differ from the first `count` tokens of what is expected."""
    wrong = []
    if receipt.tokens != expected.tokens[:count]:
        wrong.append(f"tokens {receipt.tokens}, not {expected.tokens[:count]}")
    if answer.text != receipt.text:
        wrong.append(f"the client got {answer.text!r}, the receipt says {receipt.text!r}")
    if count == len(expected.tokens) and receipt.text != expected.text:
        wrong.append(f"text {receipt.text!r}, not {expected.text!r}")
    if receipt.prompt != expected.prompt:
        wrong.append(f"prompt {receipt.prompt}, not {expected.prompt}")
    return wrong
