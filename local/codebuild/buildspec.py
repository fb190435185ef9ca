"""A buildspec: what a build runs and what it hands on, read from YAML or JSON.

Of version 0.2 are taken variables, phases, artifacts and cache; what else a buildspec may say is
refused by name, as it would have to be ignored here.

https://docs.aws.amazon.com/codebuild/latest/userguide/build-spec-ref.html
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

DEFAULT_FILE = "buildspec.yml"
PHASES = ("install", "pre_build", "build", "post_build")


class BuildspecError(Exception):
    """A buildspec that cannot be read or honoured; the message says what of it."""


@dataclass(frozen=True)
class Artifacts:
    """The files that a build hands on: patterns below a folder of its source."""

    files: list[str]
    base_directory: str = "."


@dataclass(frozen=True)
class Buildspec:
    """What a build runs."""

    commands: dict[str, list[str]]  # by phase
    variables: dict[str, str] = field(default_factory=dict)
    exported_variables: list[str] = field(default_factory=list)
    artifacts: Artifacts | None = None
    cache_folders: list[str] = field(default_factory=list)


def load(given: str | None, source: Path) -> Buildspec:
    """A project's buildspec: given inline, or as a file of the source. Raises `BuildspecError`."""
    content = _parse(given) if given else DEFAULT_FILE
    if isinstance(content, str):  # no mapping, so a file's name
        file = source / _inside("the buildspec's file", content)
        if not file.is_file():
            raise BuildspecError(f"There is no file {content} in the source.")
        content = _parse(file.read_text("utf-8"))
    return read(content)


def read(content: Any) -> Buildspec:
    """A buildspec of its parsed content. Raises `BuildspecError`."""
    root = _mapping("the buildspec", content, "version", "env", "phases", "artifacts", "cache")
    if root.get("version") != "0.2":
        raise BuildspecError(f"The buildspec's version is {root.get('version')}: only 0.2 is run.")
    env = _mapping("env", root.get("env", {}), "variables", "exported-variables")
    phases = _mapping("phases", root.get("phases", {}), *PHASES)
    commands = {}
    for name, phase in phases.items():
        more = ("runtime-versions",) if name == "install" else ()
        phase = _mapping(f"phases.{name}", phase, "commands", *more)
        commands[name] = _texts(f"phases.{name}.commands", phase.get("commands", []))
    cache = _mapping("cache", root.get("cache", {}), "paths")
    return Buildspec(
        commands=commands,
        variables=_variables(env.get("variables", {})),
        exported_variables=_texts("env.exported-variables", env.get("exported-variables", [])),
        artifacts=_artifacts(root["artifacts"]) if "artifacts" in root else None,
        cache_folders=[_folder(path) for path in _texts("cache.paths", cache.get("paths", []))],
    )


def _parse(text: str) -> Any:
    try:
        # The loader that makes text of everything, as the shell will: `no` is not False.
        return yaml.load(text, Loader=yaml.BaseLoader)  # noqa: S506 - it makes no objects
    except yaml.YAMLError as error:
        raise BuildspecError(f"The buildspec is neither YAML nor JSON: {error}") from error


def _artifacts(content: Any) -> Artifacts:
    given = _mapping("artifacts", content, "files", "base-directory", "name")
    files = [
        _inside("artifacts.files", pattern)
        for pattern in _texts("artifacts.files", given.get("files", []))
    ]
    if not files:
        raise BuildspecError("artifacts.files is missing.")
    base = _inside("artifacts.base-directory", given.get("base-directory", "."))
    return Artifacts(files, base)


def _folder(path: str) -> str:
    """The folder that a pattern of `cache.paths` begins with: `a/b/**/*` → `a/b`."""
    parts = takewhile(lambda part: not set(part) & set("*?["), PurePosixPath(path).parts)
    folder = PurePosixPath(*parts)
    if not folder.name or ".." in folder.parts:
        raise BuildspecError(f"cache.paths must begin with a folder of the source, not be {path}.")
    return str(folder)


def _variables(content: Any) -> dict[str, str]:
    if not isinstance(content, Mapping):
        raise BuildspecError("env.variables must be a mapping.")
    for name, value in content.items():
        if not isinstance(value, str):
            raise BuildspecError(f"env.variables.{name} must be a text.")
    return dict(content)


def _mapping(what: str, content: Any, *known: str) -> Mapping[str, Any]:
    if not isinstance(content, Mapping):
        raise BuildspecError(f"{what} must be a mapping, not {content!r}.")
    if unknown := [key for key in content if key not in known]:
        raise BuildspecError(
            f"The embedded cloud does not support {', '.join(unknown)} in {what}; "
            f"it knows {', '.join(known)}."
        )
    return content


def _texts(what: str, content: Any) -> list[str]:
    texts = [content] if isinstance(content, str) else content
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise BuildspecError(f"{what} must be a list of texts.")
    return texts


def _inside(what: str, path: Any) -> str:
    if not isinstance(path, str) or path.startswith("/") or ".." in PurePosixPath(path).parts:
        raise BuildspecError(f"{what} must lie in the source, not at {path}.")
    return path
