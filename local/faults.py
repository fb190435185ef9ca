"""Errors on demand: the next calls of an operation answer as a failing service would."""

import threading
from dataclasses import dataclass


@dataclass
class Fault:
    service: str
    operation: str
    code: str
    message: str
    times: int


class Faults:
    """The faults that are still to happen. Used by tests of everything that retries."""

    def __init__(self) -> None:
        self._faults: list[Fault] = []
        self._lock = threading.Lock()

    def add(self, service: str, operation: str, code: str, message: str, times: int = 1) -> None:
        """The next `times` calls of an operation answer the error `code`.

        `service` is botocore's name (`bedrock`, `s3`), `operation` the API's (`GetObject`).
        """
        with self._lock:
            self._faults.append(Fault(service, operation, code, message, times))

    def clear(self) -> None:
        with self._lock:
            self._faults.clear()

    def concerns(self, service: str) -> bool:
        """Whether any fault is waiting for a call of this service."""
        with self._lock:
            return any(fault.service == service for fault in self._faults)

    def take(self, service: str, operation: str) -> Fault | None:
        """The fault this call must answer with, if there is one; it counts as used."""
        with self._lock:
            for fault in self._faults:
                if (fault.service, fault.operation) == (service, operation):
                    fault.times -= 1
                    if fault.times <= 0:
                        self._faults.remove(fault)
                    return fault
        return None
