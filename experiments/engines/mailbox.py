"""Where workers of a cluster leave what they say, until it is fetched.

It is a process of its own, so this imports nothing that is large.
"""

import asyncio
import contextlib

Letter = tuple[int, bytes]  # a worker's place, and what it says, pickled


class Mailbox:
    """Letters in the order in which they came."""

    def __init__(self) -> None:
        self._letters: list[Letter] = []
        self._some = asyncio.Event()

    async def put(self, place: int, words: bytes) -> None:
        """Leave a letter."""
        self._letters.append((place, words))
        self._some.set()

    async def take(self, seconds: float) -> list[Letter]:
        """Wait for letters, but no longer than this, and return them."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._some.wait(), seconds)
        letters, self._letters = self._letters, []
        self._some.clear()
        return letters
