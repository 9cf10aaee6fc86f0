"""What may never happen to the templates of a host, whatever its life: the judge of the random
tests, of those against the model and of those against the real thing.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field


@dataclass
class Judge:
    """Told what is deployed on what; *sizes* and *quota* in bytes."""

    sizes: Mapping[str, int]
    quota: int
    machines: dict[str, str] = field(default_factory=dict)
    pinned: set[str] = field(default_factory=set)

    @property
    def needed(self) -> set[str]:
        """The templates that machines, running or not, stand on."""
        return set(self.machines.values())

    @property
    def kept(self) -> set[str]:
        """What no collection deletes."""
        return self.needed | self.pinned

    def fits(self, name: str) -> bool:
        """Whether a template can be had, when all goes that may."""
        return sum(self.sizes[each] for each in {*self.kept, name}) <= self.quota

    def check(self, when: str, published: Collection[str], held: int) -> None:
        """At any moment."""
        lost = self.needed - set(published)
        assert not lost, f"{when}: {sorted(lost)} needed and gone"
        assert held <= self.quota, f"{when}: {held} bytes held, over the quota of {self.quota}"

    def check_collected(self, when: str, published: Collection[str]) -> None:
        """After a collection that could look at everything, without any grace."""
        left = set(published) - self.kept
        assert not left, f"{when}: {sorted(left)} needed by nobody and not deleted"
