"""A cable between two ends, with noise on it: a line as serial lines are."""

from __future__ import annotations

import os
import random
import select
import threading
from collections.abc import Callable

Spoil = Callable[[bytes], bytes]


class Noise:
    """Loses one byte in `rate`, changes one in `rate`, and repeats a piece now and then."""

    def __init__(self, seed: int, rate: int) -> None:
        self.chance = random.Random(seed)
        self.rate = rate
        self.spoilt = 0

    def __call__(self, data: bytes) -> bytes:
        out = bytearray(data)
        for _ in range(self._times(len(out))):
            at = self.chance.randrange(len(out)) if out else 0
            match self.chance.randrange(3):
                case 0:
                    del out[at : at + 1]
                case 1 if out:
                    out[at] ^= 1 << self.chance.randrange(8)
                case _:
                    out[at:at] = out[at : at + self.chance.randrange(200)]
            self.spoilt += 1
        return bytes(out)

    def _times(self, size: int) -> int:
        whole, rest = divmod(size, self.rate)
        return whole + (self.chance.randrange(self.rate) < rest)


class Cable:
    """Passes bytes on between two descriptors, spoilt on the way, until one ends or `pull`.

    It has descriptors of its own: a thread that outlived the given ones would carry, by their
    numbers, what belongs to the next cable.
    """

    def __init__(self, left: int, right: int, spoil: Spoil) -> None:
        self.ends = {}
        ends = os.dup(left), os.dup(right)
        for end, other in (ends, ends[::-1]):
            os.set_blocking(end, False)
            self.ends[end] = other
        self.spoil = spoil
        self.pulled, self._pull = os.pipe()
        self.thread = threading.Thread(target=self._carry)
        self.thread.start()

    def pull(self) -> None:
        """Takes it away: no byte passes any more, and its descriptors are closed."""
        os.close(self._pull)
        self.thread.join(60)
        assert not self.thread.is_alive()
        for handle in (self.pulled, *self.ends):
            os.close(handle)

    def _carry(self) -> None:
        try:
            while True:
                ready, _, _ = select.select([self.pulled, *self.ends], [], [])
                if self.pulled in ready:
                    return
                for end in ready:
                    data = os.read(end, 4096)
                    if not data:
                        return
                    self._put(self.ends[end], self.spoil(data))
        except OSError:  # An end that hung up, also while it was written to.
            return

    def _put(self, end: int, data: bytes) -> None:
        while data:
            ready, _, _ = select.select([self.pulled], [end], [])
            if ready:
                return
            data = data[os.write(end, data) :]
