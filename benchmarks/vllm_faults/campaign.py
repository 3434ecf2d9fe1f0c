"""Waves of requests with faults at random moments, until enough were made; what came of them as rows of the results."""

import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from benchmarks.vllm_faults import orders
from benchmarks.vllm_faults.server import REQUESTS, Server
from benchmarks.vllm_faults.strike import MEMORY_KINDS, SERVICE_KINDS, STALE
from benchmarks.vllm_faults.wave import (
    ANCHORS,
    PROMPTS,
    TOKENS,
    Answer,
    Judge,
    Key,
    Request,
    Undisturbed,
    ask,
)

REVOKED, OVERRIDDEN = "revocation in mid-stream", "override in mid-stream"
STRUCK_KINDS = (*MEMORY_KINDS, *SERVICE_KINDS)
KINDS = (*STRUCK_KINDS, REVOKED, OVERRIDDEN)
BURST = 6  # faults of a wave
SHORT = 3  # tokens
STAGGER = 2.0  # seconds within which a wave's requests come
UNDER_ORDER = 3  # requests of a wave with an order that are under the anchor that it is about
Record = dict[str, Any]
Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """A wave: its faults with the fraction of its time at which each comes, and what becomes of an anchor of its own."""

    number: int
    requests: tuple[Request, ...]
    faults: tuple[tuple[float, str, int], ...]  # moment, kind, seed
    order: str | None
    own: str | None  # the kind, where all faults are of one


@dataclass(slots=True)
class Wave:
    """What came of a wave. made: kind and what was struck. found: what /metrics counted of faults."""

    plan: Plan
    made: list[tuple[str, str]] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    receipts: int = 0
    streamed: int = 0
    found: int = 0
    rolled_back: int = 0
    seconds: float = 0.0


def plan_of(seed: int, number: int) -> Plan:
    """The plan of a wave, always the same. Odd ones have faults of one kind, even ones of all, and an anchor of their own."""
    chance = random.Random(f"fieldprint vllm faults {seed} {number}")  # noqa: S311
    own = STRUCK_KINDS[number // 2 % len(STRUCK_KINDS)] if number % 2 else None
    order = None if number % 2 else (REVOKED, OVERRIDDEN)[number // 2 % 2]
    name = f"wave-{number}"
    requests = []
    for place in range(REQUESTS):
        under = order is not None and place < UNDER_ORDER
        prompt = chance.randrange(len(PROMPTS))
        anchor = name if under else chance.choice(ANCHORS)
        wait = 0.0 if under else chance.random() * STAGGER
        # A short answer is committed soon after its prompt was computed.
        tokens = TOKENS if under else chance.choice((SHORT, TOKENS, TOKENS, TOKENS))
        requests.append(Request(prompt, anchor, place % 2 == 0, wait, tokens))
    first = number // 2 * BURST
    kinds = [own or STRUCK_KINDS[(first + place) % len(STRUCK_KINDS)] for place in range(BURST)]
    faults = sorted((chance.uniform(0.05, 0.95), kind, chance.getrandbits(32)) for kind in kinds)
    return Plan(number, tuple(requests), tuple(faults), order, own)


class Campaign:
    """Waves on one server.

    Args:
        server: that runs.
        seed: of all plans.
        tell: takes lines for whoever watches.
    """

    def __init__(self, server: Server, seed: int, tell: Tell) -> None:
        self.server, self.seed, self._tell = server, seed, tell
        self._times = [10.0]
        self._override = 0
        # Nothing is bound yet that could be struck; the plugin begins to watch.
        server.strike(STALE, 0)
        self.undisturbed = self._learn()

    def _learn(self) -> dict[Key, Undisturbed]:
        """What is said when nothing happens, asked twice in waves of another order.

        Raises:
            ServerError: two undisturbed answers differ, so that there is nothing to compare with.
        """
        known: dict[Key, Undisturbed] = {}
        keys: list[Key] = [(prompt, anchor) for anchor in ANCHORS for prompt in range(len(PROMPTS))]
        for again in (keys, keys[::-2] + keys[::2]):
            for start in range(0, len(again), REQUESTS):
                requests = [Request(*key, streamed=False) for key in again[start : start + REQUESTS]]
                started = time.monotonic()
                answers = _together(self.server, requests, threading.Event(), threading.Event())
                self._times.append(time.monotonic() - started)
                for answer in answers:
                    key = (answer.request.prompt, answer.request.anchor)
                    receipt, wrong = Judge(self.server, known).verified(answer.name, None)
                    if receipt is None or wrong or answer.error or answer.text != receipt.text:
                        raise self.server.failed(f"undisturbed, {key}: {wrong} {answer}")
                    said = Undisturbed(receipt.prompt, receipt.tokens, receipt.text)
                    if known.setdefault(key, said) != said:
                        raise self.server.failed(f"undisturbed, {key} has two answers: {known[key]}, {said}")
        self._times = self._times[1:]
        return known

    def play(self, plan: Plan) -> Wave:
        """What came of a wave."""
        wave, name = Wave(plan), f"wave-{plan.number}"
        before, started = self.server.metrics(), time.monotonic()
        if plan.order is not None:
            orders.install(self.server, name)
            orders.known_to_clients(self.server, name)
        begun, over = threading.Event(), threading.Event()
        with ThreadPoolExecutor(2) as pool:
            striking = pool.submit(self._strike, plan, over, wave)
            ordering = pool.submit(self._order, plan, begun, over, wave)
            try:
                answers = _together(self.server, plan.requests, begun, threading.Event())
            finally:
                over.set()
            striking.result()
            ordering.result()
        if plan.order == OVERRIDDEN and any(kind == OVERRIDDEN for kind, _ in wave.made):
            orders.lift(self.server, self._override)
        wave.seconds = time.monotonic() - started
        self._times.append(wave.seconds)
        self._judge(wave, answers)
        now = self.server.metrics()
        wave.found = int(now["faults"] - before["faults"])
        wave.rolled_back = int(now["rolled_back"] - before["rolled_back"])
        if wave.wrong:
            self._tell_miss(wave, answers)
        return wave

    def _strike(self, plan: Plan, over: threading.Event, wave: Wave) -> None:
        """Make the faults of a plan, each at its moment, or later where there is nothing to strike by then."""
        started, whole = time.monotonic(), median(self._times[-9:])
        for moment, kind, seed in plan.faults:
            if over.wait(max(0.0, started + moment * whole - time.monotonic())):
                return
            while (what := self.server.strike(kind, seed)) is None:
                if over.wait(0.1):
                    return
            wave.made.append((kind, f"at {time.monotonic() - started:.2f} s: {what}"))

    def _order(self, plan: Plan, begun: threading.Event, over: threading.Event, wave: Wave) -> None:
        """Take the anchor of the wave away once an answer has begun, after a moment."""
        if plan.order is None:
            return
        chance = random.Random(plan.faults[0][2])  # noqa: S311
        while not begun.wait(0.02):
            if over.is_set():
                return
        if over.wait(chance.random() * 1.5):
            return
        if plan.order == REVOKED:
            orders.revoke(self.server, f"wave-{plan.number}")
        else:
            self._override += 1
            orders.bypass(self.server, f"wave-{plan.number}", self._override)
        wave.made.append((plan.order, f"of wave-{plan.number}"))

    def _judge(self, wave: Wave, answers: list[Answer]) -> None:
        registry = self.server.world.registry()
        judge = Judge(self.server, self.undisturbed)
        for answer in answers:
            anchor = answer.request.anchor
            if anchor in ANCHORS:
                wrong = judge.same(answer, registry)
            elif wave.plan.order == REVOKED:
                wrong = judge.revoked(answer, orders.LIKE)
            else:
                wrong = judge.overridden(answer, orders.LIKE, registry)
            wave.wrong += [
                f"prompt {answer.request.prompt} under {anchor}, {answer.name}: {w}" for w in wrong
            ]
        wave.receipts = judge.receipts
        wave.streamed = sum(answer.request.streamed for answer in answers)

    def _tell_miss(self, wave: Wave, answers: list[Answer]) -> None:
        self._tell(f"MISS in wave {wave.plan.number} of seed {self.seed}:")
        for line in (*wave.wrong, *map(str, wave.made), *map(str, answers)):
            self._tell(f"  {line}")
        self._tell(f"  again: python -m benchmarks.vllm_faults --seed {self.seed} --wave {wave.plan.number}")


def _together(
    server: Server,
    requests: list[Request] | tuple[Request, ...],
    begun: threading.Event,
    over: threading.Event,
) -> list[Answer]:
    with ThreadPoolExecutor(len(requests)) as pool:
        return list(pool.map(lambda request: ask(server, request, begun, over), requests))


def rows_of(waves: list[Wave]) -> list[Record]:
    """Rows of the results: what was made by kind, what was found where waves have one kind alone, and sums."""
    made = Counter(kind for wave in waves for kind, _ in wave.made)
    rows = []
    for kind in KINDS:
        rows.append(_row(kind, "made", made[kind]))
        own = [wave for wave in waves if wave.plan.own == kind]
        if own:
            rows.append(_row(kind, "made in waves of this kind alone", sum(len(wave.made) for wave in own)))
            rows.append(_row(kind, "counted by /metrics in those", sum(wave.found for wave in own)))
        waves_with = [wave for wave in waves if any(kind == k for k, _ in wave.made)]
        rows.append(_row(kind, "misses", sum(len(wave.wrong) for wave in waves_with)))
    sums = {
        "faults": sum(made.values()),
        "misses": sum(len(wave.wrong) for wave in waves),
        "waves": len(waves),
        "requests": sum(len(wave.plan.requests) for wave in waves),
        "requests that were streamed": sum(wave.streamed for wave in waves),
        "receipts verified": sum(wave.receipts for wave in waves),
        "faults that /metrics counted": sum(wave.found for wave in waves),
        "requests taken back, by /metrics": sum(wave.rolled_back for wave in waves),
        "seconds of the waves": round(sum(wave.seconds for wave in waves), 1),
    }
    return rows + [_row("all", name, value) for name, value in sums.items()]


def _row(cell: str, metric: str, number: float) -> Record:
    return {"cell": cell, "metric": metric, "unit": "", "ours": number, "peers": {}, "ratio": None}


def table_of(result: Record) -> str:
    """A results file as the table of docs/vllm.md."""
    found = {(row["cell"], row["metric"]): row["ours"] for row in result["rows"]}
    lines = [
        "| kind | made | in waves of this kind alone | counted by `/metrics` in those |",
        "|---|---:|---:|---:|",
    ]
    for kind in KINDS:
        alone = [
            found.get((kind, f"{name}"), "")
            for name in ("made in waves of this kind alone", "counted by /metrics in those")
        ]
        lines.append(f"| {kind} | {found[kind, 'made']} | {alone[0]} | {alone[1]} |")
    return "\n".join(lines) + "\n"
