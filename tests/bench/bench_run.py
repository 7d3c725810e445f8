"""What `guest.run(["true"])` adds to what the guest needs, and what the streams carry."""

from __future__ import annotations

import io
import statistics
import time

from guestctl import Pool

ROUNDS = 100
MIB = 1 << 20


class _Count:
    size = 0

    def write(self, data: bytes, /) -> None:
        self.size += len(data)


def main() -> None:
    with Pool("armv5l", 1) as pool:
        begin = time.monotonic()
        guest = pool.lease(10)
        lease = time.monotonic() - begin
        guest.run(["true"])
        added = []
        whole = []
        for _ in range(ROUNDS):
            result = guest.run(["true"])
            whole.append(result.seconds)
            added.append(result.seconds - result.usage.wall)
        sink = _Count()
        begin = time.monotonic()
        guest.run(["dd", "if=/dev/zero", "bs=1M", "count=100"], stdout=sink).check()
        out = sink.size / MIB / (time.monotonic() - begin)
        begin = time.monotonic()
        guest.run(["cat"], stdin=io.BytesIO(bytes(100 * MIB)), stdout=sink).check()
        through = 100 / (time.monotonic() - begin)
        pings = sorted(guest.ping() for _ in range(ROUNDS))
        guest.release()
    print(f"lease and attach                {lease * 1000:7.1f} ms")
    print(f"ping, median                    {pings[ROUNDS // 2] * 1000:7.1f} ms")
    print(f"run true, median                {statistics.median(whole) * 1000:7.1f} ms")
    print(f"of that above the guest's own   {statistics.median(added) * 1000:7.1f} ms (target 30)")
    print(f"stdout of a command             {out:7.1f} MiB/s")
    print(f"through cat and back            {through:7.1f} MiB/s")
