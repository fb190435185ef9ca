"""Events that S3 sends through EventBridge for objects of a versioned bucket.

Source: "EventBridge event message structure" in the Amazon S3 user guide.
"""

from typing import Literal

from pydantic import BaseModel, Field


class Bucket(BaseModel):
    name: str


class S3Object(BaseModel):
    key: str  # as it is: other than in S3's own notifications, not URL-encoded
    size: int = 0
    version_id: str = Field(alias="version-id")
    sequencer: str = Field(pattern=r"^[0-9A-Fa-f]+$")

    @property
    def order(self) -> str:
        """What sorts the events of one key by time; of different keys it says nothing.

        Source: "Event message structure" in the S3 user guide: pad the shorter sequencer on the
        right with zeros, then compare as text. Without them the shorter one sorts first as well.
        """
        return self.sequencer.upper()


class ObjectDetail(BaseModel):
    bucket: Bucket
    object: S3Object


class ObjectCreated(BaseModel):
    source: Literal["aws.s3"]
    detail_type: Literal["Object Created"] = Field(alias="detail-type")
    detail: ObjectDetail


class ObjectDeleted(BaseModel):
    """A delete marker now hides the object, or one of its versions is gone for good."""

    source: Literal["aws.s3"]
    detail_type: Literal["Object Deleted"] = Field(alias="detail-type")
    detail: ObjectDetail
