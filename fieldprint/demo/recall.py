"""Does the model still know the anchor when the context has run over the window? Measured side by side."""

import pydoc_data.topics
from collections.abc import Sequence
from typing import Any

from fieldprint.adapters.transformers import LoadedModel
from fieldprint.generate import AttentionSettings, Engine, EngineSettings, Finished, GenerationRequest
from fieldprint.kvcache import PagePool
from fieldprint.pipeline import anchor_tokens
from fieldprint.promote import PinnedAnchor, promote_anchor
from fieldprint.verify import VerifiedAnchor

FACTS = (
    ("Your codename is Falcon.", "Your codename is", "Falcon"),
    ("You live in Oslo.", "You live in", "Oslo"),
    ("The password is Quartz.", "The password is", "Quartz"),
    ("Your favorite color is purple.", "Your favorite color is", "purple"),
    ("The meeting is on Thursday.", "The meeting is on", "Thursday"),
    ("Your pet is a badger.", "Your pet is a", "badger"),
    ("The client is a baker.", "The client is a", "baker"),
    ("The project is called Lantern.", "The project is called", "Lantern"),
)
RULE = "Never tell anyone the location of the archive."
ANCHOR_TEXT = " ".join(fact for fact, _, _ in FACTS) + " " + RULE
CONTROL_TEXT = "You are a helpful assistant."
WINDOW = 512
NUM_SINKS = 4


def long_text(model: LoadedModel, num_tokens: int) -> str:
    """Real text of about `num_tokens` tokens: Python's own language reference."""
    topics: dict[str, str] = pydoc_data.topics.topics
    text = "\n\n".join(topics[name] for name in sorted(topics))
    return model.decode(model.encode(text[: num_tokens * 6])[:num_tokens])


def conditions() -> list[tuple[str, bool, bool, AttentionSettings]]:
    """(name, whether the facts are pinned, whether they are ordinary text, settings) of each run.

    Where the facts are not pinned a neutral anchor is, so that what differs is the facts and not the attention sink.
    """
    concat = AttentionSettings("floor", 0.0, WINDOW, NUM_SINKS)
    return [
        ("no anchor: the facts were never given", False, False, concat),
        ("ordinary text, evicted by the window", False, True, concat),
        ("anchor pinned, g = 0 (concat)", True, False, concat),
        ("anchor pinned, floor 0.1", True, False, AttentionSettings("floor", 0.1, WINDOW, NUM_SINKS)),
        (
            "anchor pinned, mixture 0.1 (the paper's)",
            True,
            False,
            AttentionSettings("mixture", 0.1, WINDOW, NUM_SINKS),
        ),
    ]


def measure_recall(
    model: LoadedModel, anchors: Sequence[VerifiedAnchor], filler: str
) -> list[dict[str, Any]]:
    """For each condition the answers to one question a fact, and how many of them are right.

    Args:
        model: the demo model.
        anchors: the anchor with the facts, and the neutral one.
        filler: the text that overflows the window.
    """
    pool = PagePool(model.decoder.page_layout(16), 1024)
    pinned = [promote_anchor(anchor, model.decoder, pool, anchor_tokens(model, anchor)) for anchor in anchors]
    engine = Engine(
        model.decoder, pool, decode=model.decode, model=model.digest, settings=EngineSettings(chunk_size=256)
    )
    rows = []
    for name, has_anchor, as_text, attention in conditions():
        answers = _answers(model, engine, pinned[0 if has_anchor else 1], as_text, attention, filler)
        right = [
            answer
            for (_, _, fact), answer in zip(FACTS, answers, strict=True)
            if fact.lower() in answer.lower()
        ]
        rows.append({"condition": name, "right": len(right), "of": len(FACTS), "answers": answers})
    return rows


def _answers(
    model: LoadedModel,
    engine: Engine,
    pinned: PinnedAnchor,
    as_text: bool,
    attention: AttentionSettings,
    filler: str,
) -> list[str]:
    prompts = [
        model.chat_tokens(
            f'{filler}\n\nComplete the sentence from your instructions: "{stem} ..."',
            system=ANCHOR_TEXT if as_text else None,
            answer=stem,
        )
        for _, stem, _ in FACTS
    ]
    shared = next(i for i, ids in enumerate(zip(*prompts, strict=False)) if len(set(ids)) > 1)
    prefix = engine.prefill(prompts[0][:shared], anchor=pinned, attention=attention)
    requests = [
        GenerationRequest(tuple(ids[shared:]), 6, stop_ids=model.stop_ids, prefix=prefix) for ids in prompts
    ]
    answers = {
        event.request: event.result.text.strip()
        for event in engine.generate(requests, anchor=pinned, attention=attention)
        if isinstance(event, Finished)
    }
    prefix.close()
    return [answers[i] for i in range(len(requests))]
