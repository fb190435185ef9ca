"""What every SageMaker resource has: an ARN and tags."""

import threading
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from local.protocol import Service
from local.sagemaker.requests import not_found, page

if TYPE_CHECKING:
    from local.cloud import Cloud

MAX_TAGS_IN_PAGE = 50


class Resources(Service):
    """Base of the rooms of SageMaker's API, and the operations on tags."""

    def __init__(self, cloud: "Cloud") -> None:
        self.cloud = cloud
        self.lock = threading.RLock()
        self._tags: dict[str, dict[str, str]] = {}  # by ARN, of every resource there is

    def arn(self, kind: str, name: str) -> str:
        """The ARN of a resource; SageMaker writes names in them in lower case."""
        config = self.cloud.config
        return f"arn:aws:sagemaker:{config.region}:{config.account_id}:{kind}/{name.lower()}"

    def keep_tags(self, arn: str, request: Mapping[str, Any]) -> None:
        """Note a new resource with the tags it was created with."""
        self._tags[arn] = _mapping(request.get("Tags", []))

    def drop_tags(self, arn: str) -> None:
        """Forget a deleted resource."""
        del self._tags[arn]

    def add_tags(self, request: dict[str, Any]) -> dict[str, Any]:
        tags = self._tags_of(request)
        tags.update(_mapping(request["Tags"]))
        return {"Tags": _list(tags)}

    def list_tags(self, request: dict[str, Any]) -> dict[str, Any]:
        tags = _list(self._tags_of(request))
        return page(tags, {"MaxResults": MAX_TAGS_IN_PAGE, **request}, lambda tag: tag, "Tags")

    def delete_tags(self, request: dict[str, Any]) -> dict[str, Any]:
        tags = self._tags_of(request)
        for key in request["TagKeys"]:
            tags.pop(key, None)
        return {}

    def _tags_of(self, request: Mapping[str, Any]) -> dict[str, str]:
        arn = request["ResourceArn"]
        if arn not in self._tags:
            raise not_found(f"The resource {arn} does not exist.")
        return self._tags[arn]


def _mapping(tags: Iterable[Mapping[str, str]]) -> dict[str, str]:
    return {tag["Key"]: tag["Value"] for tag in tags}


def _list(tags: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"Key": key, "Value": value} for key, value in tags.items()]
