"""The commands of the CDK's that its pipelines run, where there is no npm to install them from."""

import shlex
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
TOOLS = {"cdk": "cdk", "cdk-assets": "cdk_assets"}


def install(folder: Path) -> None:
    """Make executables of the tools in a folder, for a build's `PATH`."""
    folder.mkdir()
    for name, module in TOOLS.items():
        # The cloud's own code must run, though a source with a `local` package of its own is the
        # working directory: -P keeps that off the path.
        words = ["env", f"PYTHONPATH={ROOT}", sys.executable, "-P", "-m", f"{__name__}.{module}"]
        file = folder / name
        file.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n', "utf-8")
        file.chmod(0o755)
