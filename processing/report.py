"""What became of a dataset: the counts that preprocessing leaves behind."""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


class Counts(BaseModel):
    """Records read, and where each of them went: read = written + duplicates + rejected."""

    model_config = ConfigDict(extra="forbid", validate_assignment=False)

    read: int = 0
    train: int = 0
    validation: int = 0
    test: int = 0
    duplicates: int = 0
    rejected: int = 0
    rejected_reasons: dict[str, int] = Field(default_factory=dict)

    @property
    def written(self) -> int:
        """Records in any of the splits."""
        return self.train + self.validation + self.test

    @model_validator(mode="after")
    def _everything_is_somewhere(self) -> Self:
        if self.read != self.written + self.duplicates + self.rejected:
            raise ValueError(f"records are unaccounted for: {self!r}")
        if self.rejected != sum(self.rejected_reasons.values()):
            raise ValueError(f"rejected records are without a reason: {self!r}")
        return self


class FileReport(Counts):
    """Counts of one file. A file that could not be read has an `error`, and no counts."""

    name: str
    error: str | None = None


class PreprocessReport(BaseModel):
    """`preprocess_report.json`: counts for each file, and over all files."""

    model_config = ConfigDict(extra="forbid")

    schema_version: Literal["1"] = "1"
    dataset_uri: str
    dataset_version: str
    base_model: str
    data_format: str
    total: Counts
    rejected_files: int
    files: list[FileReport]
