"""Synthesis: settings in, a CDK cloud assembly out. No credentials, no network once cached."""

import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version
from pathlib import Path
from tempfile import TemporaryDirectory

import aws_cdk as cdk

from infrastructure import ROOT
from infrastructure.assets import AssetError, make_assets
from infrastructure.release_stack import ReleaseStack
from workflows.settings import Settings, SettingsError


def code_version() -> str:
    """The commit that is built or checked out, or the installed version where there is neither."""
    if built := os.environ.get("CODEBUILD_RESOLVED_SOURCE_VERSION"):
        return built[:12]
    git = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"],  # noqa: S607
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if git.returncode == 0 and git.stdout.strip():
        return git.stdout.strip()
    try:
        return installed_version("quench")
    except PackageNotFoundError:
        return "unknown"


def synthesize(
    settings: Settings,
    outdir: Path = Path("cdk.out"),
    cache: Path = Path(".quench/cache"),
    code: str | None = None,
) -> Path:
    """Write the cloud assembly (templates and assets) of every stack; returns its folder."""
    app = cdk.App(
        outdir=str(outdir),
        analytics_reporting=False,
        builtin_cloud_formation_validation=False,  # takes seconds; the tests have cfn-lint
    )
    with TemporaryDirectory(prefix="quench-") as staging:
        assets = make_assets(cache.resolve(), Path(staging), code or code_version())
        ReleaseStack(app, "QuenchRelease", settings=settings, assets=assets)
        return Path(app.synth().directory)


def main() -> None:
    try:
        print(synthesize(Settings.load()))
    except (SettingsError, AssetError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
