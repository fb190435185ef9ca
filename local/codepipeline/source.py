"""Source actions: a snapshot of the working tree, in the place of a repository nobody runs here."""

import hashlib
import os
import shutil
import subprocess
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

# Of a folder that is no git checkout, which says itself what to leave out.
LEFT_OUT = {
    ".git",
    ".quench",
    ".venv",
    "cdk.out",
    "__pycache__",
    ".mypy_cache",
    ".pytest_cache",
    ".ruff_cache",
    ".import_linter_cache",
    ".hypothesis",
}


class SourceError(Exception):
    """A working tree that could not be read; the message says why."""


@dataclass(frozen=True)
class Revision:
    """What a snapshot holds.

    `id` is the commit's; if the working tree differs from it, followed by a hash of the snapshot.
    """

    id: str
    message: str
    created: datetime
    author_date: datetime | None = None
    committer_date: datetime | None = None


def snapshot(source: Path, target: Path) -> Revision:
    """Copy a working tree to a folder that does not exist yet. Raises `SourceError`.

    Of a git checkout, that is what is tracked, as it lies there, and what is new and not ignored.
    """
    is_checkout = (source / ".git").exists()
    target.mkdir(parents=True)
    for path in _checkout_files(source) if is_checkout else _files(source, LEFT_OUT):
        copy = target / path
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source / path, copy, follow_symlinks=False)
    fingerprint = _fingerprint(target)
    commit = _commit(source) if is_checkout else None
    if commit is None:
        return Revision(fingerprint, "", datetime.now(UTC))
    if _git(source, "status", "--porcelain"):
        return replace(commit, id=f"{commit.id}-dirty-{fingerprint[:12]}")
    return commit


def _checkout_files(source: Path) -> Iterator[Path]:
    listed = _git(source, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    for name in listed.split(b"\0"):
        path = Path(os.fsdecode(name))
        # A tracked file may be deleted; a submodule or a repository within is listed as a folder.
        if name and ((source / path).is_file() or (source / path).is_symlink()):
            yield path


def _files(folder: Path, left_out: Collection[str] = ()) -> Iterator[Path]:
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name not in left_out]
        links = [name for name in folders if Path(parent, name).is_symlink()]
        for name in (*files, *links):
            yield Path(parent, name).relative_to(folder)


def _fingerprint(folder: Path) -> str:
    """A hash of every file's name, mode and content."""
    digest = hashlib.sha256()
    for path in sorted(_files(folder)):
        file = folder / path
        if file.is_symlink():
            kind, content = "link", os.fsencode(os.readlink(file))
        else:
            kind = "executable" if os.access(file, os.X_OK) else "file"
            content = file.read_bytes()
        digest.update(f"{kind} {len(content)} {path.as_posix()}\n".encode(errors="surrogateescape"))
        digest.update(content)
    return digest.hexdigest()


def _commit(source: Path) -> Revision | None:
    """The commit that is checked out; None in a repository without any."""
    if not _git(source, "rev-list", "-n1", "--all"):
        return None
    text = _git(source, "log", "-1", "--format=%H%x00%aI%x00%cI%x00%B").decode(errors="replace")
    commit, authored, committed, message = text.split("\0", 3)
    author_date, committer_date = (
        datetime.fromisoformat(date).astimezone(UTC) for date in (authored, committed)
    )
    return Revision(commit, message.strip(), committer_date, author_date, committer_date)


def _git(source: Path, *arguments: str) -> bytes:
    # A hook of git's would have us look at its own repository and index.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    command = ["git", "-C", str(source), *arguments]
    try:
        return subprocess.run(command, env=environment, capture_output=True, check=True).stdout
    except FileNotFoundError as error:
        raise SourceError(f"{source} is a git checkout, and git is not installed.") from error
    except subprocess.CalledProcessError as error:
        reason = error.stderr.decode(errors="replace").strip()
        raise SourceError(f"git {arguments[0]} failed in {source}: {reason}") from error
