"""The bounds of docs/theory.md as plain functions: numbers in, the number that theory promises out.

| module | what it bounds |
|---|---|
| `mass` | the anchor's share of attention, with and without a floor, and what a context can do under one |
| `quantization` | codes, and what they do to logits, probabilities and outputs |
| `hints` | getting a code back from a value that is off by noise |
| `contraction` | a recursion under disturbance: rate and noise floor |
| `stability` | the error as a diffusion: in which sense it dies out |
| `distance` | Fisher-Rao and total variation between distributions over tokens |

Nothing here knows tensors, and nothing but the standard library is loaded. A function whose arithmetic is rational gives
exact results for `Fraction`.
"""
