"""What became of the documents: the counts that hydration leaves behind."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid")


class DocumentCounts(_Model):
    """Documents by what became of them; each is counted once."""

    added: int = 0
    changed: int = 0
    unchanged: int = 0
    removed: int = 0
    failed: int = 0


class ChunkCounts(_Model):
    """Chunks written, found in the index already, taken out of it, and failed."""

    added: int = 0
    unchanged: int = 0
    removed: int = 0
    failed: int = 0


class Failure(_Model):
    """Something of a document that could not be processed."""

    document: str
    reason: str


class Seconds(_Model):
    """How long each stage was at work. They overlap: their sum is more than `total`."""

    reading: float = 0.0
    embedding: float = 0.0
    indexing: float = 0.0
    total: float = 0.0


class HydrationReport(_Model):
    """`hydration_report.json`. A document that failed keeps the chunks it had, if it had any.

    A document whose `broken_metadata` is listed is indexed without its metadata.
    """

    schema_version: Literal["1"] = "1"
    documents_bucket: str
    index: str
    embedding_model: str
    dimensions: int
    documents: DocumentCounts = Field(default_factory=DocumentCounts)
    chunks: ChunkCounts = Field(default_factory=ChunkCounts)
    failures: list[Failure] = Field(default_factory=list)
    broken_metadata: list[Failure] = Field(default_factory=list)
    embedding_calls: int = 0
    embedding_retries: int = 0
    seconds: Seconds = Field(default_factory=Seconds)
