"""Synthesis: settings in, a CDK cloud assembly out. No credentials, no network once cached."""

import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version
from pathlib import Path
from tempfile import TemporaryDirectory

import aws_cdk as cdk

from infrastructure import ROOT
from infrastructure.assets import AssetError, make_assets
from infrastructure.inference_stack import InferenceStack
from infrastructure.knowledge_stack import KnowledgeStack
from infrastructure.tuning_stack import TuningStack
from workflows.settings import Settings, SettingsError


def code_version() -> str:
    """The commit that is checked out, or the installed version where there is no repository."""
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
    app = cdk.App(outdir=str(outdir), analytics_reporting=False)
    with TemporaryDirectory(prefix="quench-") as staging:
        assets = make_assets(cache.resolve(), Path(staging))
        version = code or code_version()
        tuning = TuningStack(
            app,
            "QuenchTuning",
            settings=settings,
            assets=assets,
            code_version=version,
            stack_name=f"{settings.name}-tuning",
            description="Quench: continuous fine-tuning on Amazon Bedrock",
        )
        knowledge = KnowledgeStack(
            app,
            "QuenchKnowledge",
            settings=settings,
            assets=assets,
            stack_name=f"{settings.name}-knowledge",
            description="Quench: documents as searchable knowledge",
        )
        inference = InferenceStack(
            app,
            "QuenchInference",
            settings=settings,
            assets=assets,
            code_version=version,
            stack_name=f"{settings.name}-inference",
            description="Quench: answers of the base model, the tuned model and the knowledge",
        )
        for before in (tuning, knowledge):  # whose parameters it reads
            inference.add_stack_dependency(before)
        return Path(app.synth().directory)


def main() -> None:
    try:
        print(synthesize(Settings.load()))
    except (SettingsError, AssetError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
