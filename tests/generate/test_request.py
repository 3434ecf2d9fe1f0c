"""What goes into the engine is checked when it is made, before a log or a pool has seen anything."""

import pytest

pytest.importorskip("torch")

from fieldprint.generate import AttentionSettings


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"operator": "foo"}, "operator must be one of"),
        ({"g": 2.0}, "g must lie within"),
        ({"g": -0.1}, "g must lie within"),
        ({"g": (0.1, float("nan"))}, "g must lie within"),
        ({"window": 0}, "window must be at least 1"),
        ({"num_sinks": -1}, "num_sinks must not be negative"),
    ],
    ids=str,
)
def test_impossible_attention_settings_are_named(change: dict[str, object], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        AttentionSettings(**change)


def test_terms_say_the_settings_as_text() -> None:
    terms = AttentionSettings("mixture", (0.1, 1.0), 512, 4).terms()
    assert terms == {"g": "0.1,1.0", "num_sinks": 4, "operator": "mixture", "window": 512}
