"""One thread that does long system calls in order while the caller goes on."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

__all__ = ["Pump"]

# A job is told whether it is still wanted; if not, it only lets go of what it holds.
Job = Callable[[bool], None]


class Pump:
    """Runs jobs in order, at most `most` of them behind. The thread starts with the first one."""

    def __init__(self, most: int = 16) -> None:
        self._queue: queue.Queue[Job | None] = queue.Queue(most)
        self._failure: BaseException | None = None
        self._stopped = False
        self._thread: threading.Thread | None = None

    def put(self, job: Job) -> None:
        """Hands a job over; raises what an earlier one failed with, and lets go of this one."""
        if self._failure is not None:
            job(False)
            raise self._failure
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()
        self._queue.put(job)

    def drain(self) -> None:
        """Returns when all jobs are done; raises what one failed with."""
        if self._thread is not None:
            self._queue.join()
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        """Drops what has not begun."""
        self._stopped = True
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        while (job := self._queue.get()) is not None:
            try:
                job(self._failure is None and not self._stopped)
            except BaseException as error:
                self._failure = error
            finally:
                self._queue.task_done()
