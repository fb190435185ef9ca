"""The peak memory of this process and everything that it started."""

import threading
import time
from types import TracebackType
from typing import Self

import psutil

INTERVAL_SECONDS = 0.5
SHARE = 0.02  # of a core, at most: the kernel goes through all pages to sum them up


class PeakMemory:
    """Samples, in a thread, the summed memory of this process and all its descendants.

    Counts PSS (pages shared between processes count once), or RSS where the system has no PSS.
    """

    def __init__(self) -> None:
        self.peak_mb = 0.0
        self.measure = "PSS" if hasattr(psutil.Process().memory_full_info(), "pss") else "RSS"
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="peak-memory", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stopped.set()
        self._thread.join()

    def _sample(self) -> None:
        while True:
            began = time.monotonic()
            self.peak_mb = max(self.peak_mb, self._total() / 2**20)
            took = time.monotonic() - began
            if self._stopped.wait(max(INTERVAL_SECONDS, took / SHARE)):
                return

    def _total(self) -> float:
        this = psutil.Process()
        total = 0.0
        for process in [this, *this.children(recursive=True)]:
            try:
                if self.measure == "PSS":
                    total += process.memory_full_info().pss
                else:
                    total += process.memory_info().rss
            except psutil.Error:  # it ended while we looked
                continue
        return total
