"""A release's build installs what its tests need, and they leave its cloud alone."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import distribution, packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

TESTS = Path(__file__).parents[1]


def required(name: str, extras: frozenset[str], seen: set[tuple[str, str]]) -> Iterator[str]:
    """A distribution and all that it requires, with these of its extras."""
    yield canonicalize_name(name)
    for extra in {"", *extras}:
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        for line in distribution(name).requires or ():
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                yield from required(requirement.name, frozenset(requirement.extras), seen)


def imported(file: Path) -> set[str]:
    """The packages that a file imports, its functions included."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name.partition(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.partition(".")[0])
    return found


@pytest.mark.slow
@pytest.mark.parametrize("extra", ["release", "local"])
def test_the_fast_tests_find_what_they_import(extra: str, slow_to_import: set[str]) -> None:
    files = [*(TESTS / "unit").glob("*.py"), *(TESTS / "infrastructure").glob("*.py")]
    installed = set(required("quench", frozenset([extra]), set()))
    providers = packages_distributions()
    missing = {
        (file.name, package)
        for file in files
        if file.name not in slow_to_import
        for package in imported(file) - sys.stdlib_module_names
        if package in providers
        and not installed & {canonicalize_name(name) for name in providers[package]}
    }
    assert missing == set()


@pytest.mark.slow
def test_the_tests_of_a_build_leave_alone_the_cloud_that_it_runs_in() -> None:
    """In the embedded cloud a build is told where that is; no test is to read or change it."""
    run = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-p",
            "no:cacheprovider",
            "tests/unit/test_cli_release.py",
        ],
        cwd=TESTS.parent,
        env={**os.environ, "AWS_ENDPOINT_URL": "http://127.0.0.1:9", "QUENCH_NAME": "other"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout
