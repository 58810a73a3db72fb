"""Seen: a value as a watch has seen it last, and a store's mark of where it found that value unchanged."""

from typing import Generic, TypeVar

V = TypeVar("V")


class Seen(Generic[V]):
    """`value` never changes: a newer value gets a Seen of its own, so a mark is never taken for another value's.

    `mark` is the store's alone, and None until the store sets it.
    """

    __slots__ = ("mark", "value")

    def __init__(self, value: V) -> None:
        self.value = value
        self.mark: int | None = None
