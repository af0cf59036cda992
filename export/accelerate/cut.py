"""The cheapest way to split things in two camps, when splitting some pairs costs something too.

A minimum cut (Ford and Fulkerson, https://doi.org/10.4153/CJM-1956-045-5), found by Dinic's method.
"""

from __future__ import annotations

from collections import deque

_FOREVER = 1 << 60


class Cut:
    """Numbered members of two camps; those of `SOURCE` and `SINK` are given.

    Costs are whole numbers of at least 0, so that the answer is the same everywhere.
    """

    SOURCE, SINK = 0, 1

    def __init__(self) -> None:
        self._edges: list[list[int]] = [[], []]  # per member, indices into the next two
        self._to: list[int] = []
        self._room: list[int] = []

    def member(self) -> int:
        """Add a member; return its number."""
        self._edges.append([])
        return len(self._edges) - 1

    def cost(self, first: int, second: int, cost: int = _FOREVER) -> None:
        """Say what it costs if `first` is with the source and `second` with the sink."""
        if cost > 0 and first != second:
            for start, end, room in ((first, second, cost), (second, first, 0)):
                self._edges[start].append(len(self._to))
                self._to.append(end)
                self._room.append(room)

    def solve(self) -> set[int]:
        """Return the members with the source; of equally cheap answers the smallest."""
        while True:
            level = self._levels()
            if self.SINK not in level:
                return set(level)
            tried = [0] * len(self._edges)
            while self._push(level, tried):
                pass

    def _levels(self) -> dict[int, int]:
        level, queue = {self.SOURCE: 0}, deque([self.SOURCE])
        while queue:
            here = queue.popleft()
            for edge in self._edges[here]:
                if self._room[edge] > 0 and self._to[edge] not in level:
                    level[self._to[edge]] = level[here] + 1
                    queue.append(self._to[edge])
        return level

    def _push(self, level: dict[int, int], tried: list[int]) -> bool:
        """Send as much as fits along one shortest path; False if there is none left."""
        path: list[int] = []
        here = self.SOURCE
        while here != self.SINK:
            while tried[here] < len(self._edges[here]):
                edge = self._edges[here][tried[here]]
                there = self._to[edge]
                if self._room[edge] > 0 and level.get(there, -1) == level[here] + 1:
                    path.append(edge)
                    here = there
                    break
                tried[here] += 1
            else:
                if not path:
                    return False
                here = self._to[path.pop() ^ 1]
                tried[here] += 1
        amount = min(self._room[edge] for edge in path)
        for edge in path:
            self._room[edge] -= amount
            self._room[edge ^ 1] += amount
        return True
