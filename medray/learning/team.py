"""Workers that train in step, seen from one of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Team:
    """This worker among all: rank and size, and the few things they say to each other."""

    rank: int = 0
    size: int = 1

    @staticmethod
    def current() -> Team:
        import torch.distributed as dist

        if dist.is_available() and dist.is_initialized():
            return Team(dist.get_rank(), dist.get_world_size())
        return Team()

    def gathered(self, value: Any) -> list[Any]:
        """Every worker's value, in rank order, on every worker."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def from_first(self, value: Any) -> Any:
        """Worker 0's value on every worker."""
        if self.size == 1:
            return value
        import torch.distributed as dist

        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]
