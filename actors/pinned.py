"""Large constructor arguments that are still there when an actor is restarted."""

from __future__ import annotations

import pickle
from typing import Generic, TypeVar

import ray

T = TypeVar("T")


class Pinned(Generic[T]):
    """A value in the object store, for as long as the process lives that put it there.

    Ray puts a constructor argument of more than 100 kB into the object store and lets go of it once
    the actor stands, which then cannot be made a second time (ray-project/ray issue 53727); of the
    handles of other actors it warns that they may go the same way.
    """

    def __init__(self, value: T) -> None:
        # As bytes, which Ray does not see through: a reference that travels so is never let go of,
        # and an argument that holds a plain one earns the warning that a restart will fail.
        self._reference: bytes = ray.cloudpickle.dumps(ray.put(value))

    def get(self) -> T:
        """The value, in any process that was handed this."""
        value: T = ray.get(pickle.loads(self._reference))
        return value
