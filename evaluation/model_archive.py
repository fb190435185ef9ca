"""The model artifact of the registered model package.

A custom model lives in Bedrock; SageMaker's Model Registry wants an archive in S3. Ours names it.
"""

import gzip
import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path


def write_model_archive(path: Path, model: Mapping[str, str | None]) -> None:
    """Write `model.tar.gz` holding `model.json`; the same model gives the same bytes."""
    content = json.dumps(model, indent=2, sort_keys=True).encode() + b"\n"
    entry = tarfile.TarInfo("model.json")  # its time, owner and group are 0 unless set
    entry.size = len(content)
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        path.open("wb") as file,
        gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) as zipped,
        tarfile.open(fileobj=zipped, mode="w") as archive,
    ):
        archive.addfile(entry, io.BytesIO(content))
