"""What is uploaded beside the template: the functions' code, their layer, the processing image.

Everything is made without Docker; an unchanged asset keeps its hash, so it is uploaded once.
"""

import hashlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from infrastructure import ROOT

PYTHON_VERSION = "3.14"
"""Of the Lambda runtime that the layer is made for."""
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux2014_x86_64")


class AssetError(RuntimeError):
    """An asset could not be made; the message says which, and why."""


@dataclass(frozen=True)
class Assets:
    """The folders that every stack uploads from, and what version of the code they hold."""

    functions: Path
    layer: Path
    processing_image: Path
    code_version: str


def make_assets(cache: Path, staging: Path, code_version: str) -> Assets:
    """Stage the code in an empty folder, and find (or make) the layer in the cache.

    Raises AssetError.
    """
    return Assets(
        functions=_stage_rooms(("lambdas", "bedrock", "vectors"), staging / "functions"),
        layer=function_layer(cache),
        processing_image=_stage_rooms(
            ("bedrock", "vectors", "evaluation", "processing"),
            staging / "processing-image",
            extra=("processing/Dockerfile",),
        ),
        code_version=code_version,
    )


def _stage_rooms(rooms: Iterable[str], target: Path, extra: Iterable[str] = ()) -> Path:
    """Copy whole rooms (and single files) into a new folder, and nothing else with them."""
    for room in rooms:
        shutil.copytree(ROOT / room, target / room, ignore=shutil.ignore_patterns("__pycache__"))
    for file in extra:
        shutil.copy(ROOT / file, target / Path(file).name)
    return target


def function_layer(cache: Path) -> Path:
    """The functions' few dependencies, installed for Lambda's platform.

    Cached by a hash of the requirements, so that a machine without a network can synthesize again.

    Raises
    ------
    AssetError
        pip could not install them; says what pip said.
    """
    requirements = ROOT / "lambdas" / "requirements.txt"
    constraints = ROOT / "constraints.txt"
    pinned = constraints.read_bytes() if constraints.is_file() else b""
    key = hashlib.sha256(
        requirements.read_bytes() + pinned + repr((PYTHON_VERSION, PLATFORMS)).encode()
    ).hexdigest()[:16]
    layer = cache / f"layer-{key}"
    if layer.is_dir():
        return layer
    cache.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(dir=cache, prefix="unfinished-"))
    pip = subprocess.run(
        [
            *(sys.executable, "-m", "pip", "install", "--quiet", "--no-compile"),
            *("--disable-pip-version-check", "--only-binary=:all:", "--implementation", "cp"),
            *("--python-version", PYTHON_VERSION),
            *(word for platform in PLATFORMS for word in ("--platform", platform)),
            *("--target", str(unfinished / "python"), "--requirement", str(requirements)),
            *(("--constraint", str(constraints)) if pinned else ()),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    if pip.returncode:
        shutil.rmtree(unfinished)
        raise AssetError(
            f"The functions' layer could not be made from {requirements}; pip says:\n{pip.stderr}"
        )
    try:
        unfinished.rename(layer)
    except OSError:
        if not layer.is_dir():  # somebody else may have finished the same one meanwhile
            raise
        shutil.rmtree(unfinished)
    return layer
