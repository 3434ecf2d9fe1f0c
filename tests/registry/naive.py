"""The slow twin of lineage: the formula of its docstring, written down as a recursion over what was registered."""

from fieldprint.anchor import Policy, Registration


def naive_taint(
    registered: list[Registration], endorsed: dict[str, set[str]], policy: Policy
) -> dict[str, set[str]]:
    """The effective taint of each anchor, given all registrations in order and all endorsements."""

    def taint(index: int) -> set[str]:
        made = registered[index]
        labels = set(made.taint) | set(policy.kinds[made.kind].adds_taint)
        for earlier in range(index):
            if (
                registered[earlier].anchor in made.parents
                or registered[earlier].text_sha256 == made.text_sha256
            ):
                labels |= taint(earlier)
        return labels - endorsed.get(made.anchor, set())

    return {made.name: taint(index) for index, made in enumerate(registered)}


def naive_ancestors(registered: list[Registration], name: str) -> set[str]:
    """The names of all ancestors."""
    by_digest = {made.anchor: made for made in registered}
    (start,) = (made for made in registered if made.name == name)
    parents = {by_digest[parent].name for parent in start.parents}
    return parents.union(*(naive_ancestors(registered, parent) for parent in parents))
