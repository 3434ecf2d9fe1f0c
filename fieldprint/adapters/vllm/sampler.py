"""What leaves say of vLLM's sampling parameters: numbers as decimal text, since leaves hold no floats."""

from typing import Any

TEXT = ("temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty")
WHOLE = ("top_k", "seed", "min_tokens")
# What changes even the likeliest token.
NEUTRAL = {"presence_penalty": 0, "frequency_penalty": 0, "repetition_penalty": 1, "min_tokens": 0}


def sampler_terms(parameters: Any) -> dict[str, str | int | bool | None]:
    """The terms of one request: greedy, or the numbers that a draw depends on; lists of words and grammars are not among them."""
    plain = all(getattr(parameters, name) == value for name, value in NEUTRAL.items())
    if parameters.temperature == 0 and plain:
        return {"method": "greedy"}
    terms: dict[str, str | int | bool | None] = {"method": "vllm"}
    terms |= {name: repr(float(getattr(parameters, name))) for name in TEXT}
    terms |= {name: getattr(parameters, name) for name in WHOLE}
    return terms
