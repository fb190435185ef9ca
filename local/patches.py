"""Where moto's behaviour is replaced, and put back when the cloud stops."""

from collections.abc import Callable
from typing import Any

_ABSENT = object()


class Patches:
    """Replaced attributes of moto's classes and modules, with what they were before."""

    def __init__(self) -> None:
        self._replaced: list[tuple[Any, str, Any]] = []

    def replace(self, owner: Any, name: str, replacement: Any) -> None:
        """Set `owner.name`, which need not have existed."""
        original = vars(owner).get(name, _ABSENT)
        self._replaced.append((owner, name, original))
        setattr(owner, name, replacement)

    def wrap(self, owner: Any, name: str, wrapper: Callable[[Callable[..., Any]], Any]) -> None:
        """Set `owner.name` to `wrapper(original)`."""
        self.replace(owner, name, wrapper(getattr(owner, name)))

    def restore(self) -> None:
        while self._replaced:
            owner, name, original = self._replaced.pop()
            if original is _ABSENT:
                delattr(owner, name)
            else:
                setattr(owner, name, original)
