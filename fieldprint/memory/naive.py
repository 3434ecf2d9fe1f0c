"""The slow twins: what a search gives and which labels a memory has, straight from their definitions."""

from collections.abc import Collection, Mapping, Sequence


def nearest(
    vectors: Mapping[str, Sequence[float]], query: Sequence[float], k: int, allowed: Collection[str]
) -> list[tuple[str, float]]:
    """(id, cosine) of the k allowed vectors of length 1 that are nearest to the query, by looking at every one."""
    scores = [
        (sum(a * b for a, b in zip(vector, query, strict=True)), key)
        for key, vector in vectors.items()
        if key in allowed
    ]
    return [(key, score) for score, key in sorted(scores, key=lambda pair: (-pair[0], pair[1]))[:k]]


def labels(
    memory: str, own: Mapping[str, Collection[str]], parents: Mapping[str, Collection[str]]
) -> frozenset[str]:
    """The memory's own labels and those of everything that it was derived from."""
    found = set(own.get(memory, ()))
    for parent in parents.get(memory, ()):
        found |= labels(parent, own, parents)
    return frozenset(found)
