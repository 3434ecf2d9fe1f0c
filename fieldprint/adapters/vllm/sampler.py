"""What leaves say of vLLM's sampling parameters: numbers as decimal text, since leaves hold no floats."""

from typing import Any

TEXT = ("temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty")
WHOLE = ("top_k", "seed")


def sampler_terms(parameters: Any) -> dict[str, str | int | bool | None]:
    """The terms of one request: greedy, or every number that a draw depends on."""
    if parameters.temperature == 0:
        return {"method": "greedy"}
    terms: dict[str, str | int | bool | None] = {"method": "vllm"}
    terms |= {name: repr(float(getattr(parameters, name))) for name in TEXT}
    terms |= {name: getattr(parameters, name) for name in WHOLE}
    return terms
