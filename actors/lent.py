"""Large constructor arguments that are still there when an actor is restarted."""

from __future__ import annotations

from typing import Generic, TypeVar

import ray

T = TypeVar("T")


class Lent(Generic[T]):
    """A value in the object store, for as long as whoever made this holds it.

    Ray puts a constructor argument of more than 100 kB into the object store and lets go of it once
    the actor stands, which then cannot be made a second time (ray-project/ray issue 53727). Give
    the actor a Lent instead, and keep it until the actor has ended.
    """

    def __init__(self, value: T) -> None:
        self._ref = ray.put(value)

    def get(self) -> T:
        """The value, in any process that was handed this."""
        value: T = ray.get(self._ref)
        return value
