"""EventBridge: what is published on the default bus reaches the targets of the rules it matches.

moto keeps rules and matches patterns; delivery, which moto does in part and at once, happens here
and in the background. Targets are functions, queues, topics, state machines and pipelines. A rule
on a schedule is refused: nothing would ever fire it.
"""

from __future__ import annotations

import json
import logging
import re
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from itertools import count
from typing import TYPE_CHECKING, Any

from jsonpath_ng.ext.parser import parse as parse_json_path
from moto.events.models import EventsBackend, Rule
from moto.s3 import notifications
from moto.s3.models import S3Backend
from moto.sqs.models import sqs_backends

from local.patches import Patches
from local.protocol import ServiceError

if TYPE_CHECKING:
    from local.cloud import Cloud

log = logging.getLogger(__name__)

DELIVERY_THREADS = 4
EMPTY_ETAG = "d41d8cd98f00b204e9800998ecf8427e"  # a delete marker's
TARGETS = {
    "lambda": "functions",
    "sqs": "queues",
    "sns": "topics",
    "states": "state machines",
    "codepipeline": "pipelines",
}
INPUT_SETTINGS = {"Id", "Arn", "RoleArn", "Input", "InputPath", "InputTransformer"}
DELIVERY_SETTINGS = {"DeadLetterConfig", "RetryPolicy"}


class Events:
    """Publishes events and delivers them."""

    def __init__(self, cloud: Cloud) -> None:
        self._cloud = cloud
        self._patches = Patches()
        self._delivery = ThreadPoolExecutor(DELIVERY_THREADS, thread_name_prefix="events")
        self._sequence = count(int(datetime.now(UTC).timestamp() * 1_000_000))
        self._s3_lock = threading.RLock()
        self._stopped = False

    def start(self) -> None:
        self._patches.replace(Rule, "send_to_targets", self._send_to_targets())
        self._patches.wrap(EventsBackend, "put_targets", _refusing_targets)
        self._patches.wrap(EventsBackend, "put_rule", _refusing_schedules)
        self._patches.replace(
            notifications, "_send_event_bridge_message", self._publish_object_created
        )
        self._patches.wrap(S3Backend, "delete_object", self._publishing_object_deleted)
        for change in ("put_object", "copy_object", "complete_multipart_upload", "delete_object"):
            self._patches.wrap(S3Backend, change, self._one_after_another)

    def stop(self) -> None:
        self._stopped = True
        self._patches.restore()
        self._delivery.shutdown(wait=False, cancel_futures=True)

    def publish(
        self, source: str, detail_type: str, detail: dict[str, Any], resources: list[str]
    ) -> None:
        """Put an event on the default bus, as an AWS service does."""
        if self._stopped:  # by what ends because the cloud does
            return
        entry = {
            "Source": source,
            "DetailType": detail_type,
            "Detail": json.dumps(detail),
            "Resources": resources,
        }
        # moto's own method, not the API: customers may not publish under a source of AWS's.
        self._backend().put_events([entry])

    def _backend(self) -> Any:
        from moto.events.models import events_backends

        config = self._cloud.config
        return events_backends[config.account_id][config.region]

    # Delivery

    def _send_to_targets(self) -> Callable[..., None]:
        def send_to_targets(rule: Rule, original_event: Any, transform_input: bool = True) -> None:
            if rule.state == "DISABLED" or not rule.event_pattern.matches_event(original_event):
                return
            event = {key: value for key, value in original_event.items() if key != "ingestion-time"}
            event["time"] = _event_time(event["time"])
            for target in list(rule.targets):
                self._delivery.submit(self._deliver, rule, dict(target), event)

        return send_to_targets

    def _deliver(self, rule: Rule, target: dict[str, Any], event: dict[str, Any]) -> None:
        try:
            payload = target_input(target, event, rule.name, rule.arn)
            self._deliver_to(target["Arn"], target, payload)
        except Exception as error:
            log.exception("Rule %s could not deliver to %s", rule.name, target["Arn"])
            if queue := target.get("DeadLetterConfig", {}).get("Arn"):
                attributes = {
                    "RULE_ARN": rule.arn,
                    "TARGET_ARN": target["Arn"],
                    "ERROR_CODE": type(error).__name__,
                    "ERROR_MESSAGE": str(error)[:1024] or "-",
                }
                self._send_message(queue, json.dumps(event), attributes=attributes)

    def _deliver_to(self, arn: str, target: dict[str, Any], payload: str) -> None:
        service = arn.split(":")[2]
        if service == "lambda":
            self._cloud.functions.invoke_async(arn, payload.encode())
        elif service == "sqs":
            group = target.get("SqsParameters", {}).get("MessageGroupId")
            self._send_message(arn, payload, group=group)
        elif service == "sns":
            self._cloud.client("sns").publish(TopicArn=arn, Message=payload)
        elif service == "codepipeline":
            name = arn.rpartition(":")[2]
            self._cloud.client("codepipeline").start_pipeline_execution(name=name)
        else:
            states = self._cloud.client("stepfunctions")
            states.start_execution(stateMachineArn=arn, input=payload)

    def _send_message(
        self,
        queue_arn: str,
        body: str,
        *,
        group: str | None = None,
        attributes: dict[str, str] | None = None,
    ) -> None:
        *_, region, account, name = queue_arn.split(":")
        # moto's own method, not the API: a thousand events come at once.
        sqs_backends[account][region].send_message(
            name,
            body,
            {
                attribute: {"DataType": "String", "StringValue": value}
                for attribute, value in (attributes or {}).items()
            },
            group_id=group,
        )

    # Events of S3
    # https://docs.aws.amazon.com/AmazonS3/latest/userguide/ev-events.html

    def _one_after_another(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Of two changes to a key, the one that S3 keeps has the later sequencer."""

        def change(*args: Any, **kw: Any) -> Any:
            with self._s3_lock:
                return original(*args, **kw)

        return change

    def _publish_object_created(
        self, _account_id: str, bucket: Any, event_name: str, key: Any
    ) -> None:
        event_name = getattr(event_name, "value", event_name)
        if not event_name.startswith("s3:ObjectCreated:"):
            return
        reasons = {"Put": "PutObject", "Post": "POST Object", "Copy": "CopyObject"}
        reason = event_name.rpartition(":")[2]
        if reason == "Put" and key.multipart is not None:
            return  # moto completes an upload with a put, and tells of both
        item = {"size": key.size, "etag": key.etag.strip('"')}
        self._publish_object_event(
            bucket, "Object Created", key.name, key.version_id, item, reasons.get(reason, reason)
        )

    def _publishing_object_deleted(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def delete_object(
            backend: S3Backend, bucket_name: str, key_name: str, *args: Any, **kw: Any
        ) -> Any:
            bucket = backend.get_bucket(bucket_name)
            version = args[0] if args else kw.get("version_id")
            existed = any(
                version is None or str(found.version_id) == str(version)
                for found in bucket.keys.getlist(key_name, [])
            )
            answer = original(backend, bucket_name, key_name, *args, **kw)
            settings = bucket.notification_configuration
            if existed and settings is not None and settings.event_bridge is not None:
                marker = bucket.is_versioned and version is None
                self._publish_object_event(
                    bucket,
                    "Object Deleted",
                    key_name,
                    answer[1].get("version-id") if marker else version,
                    {"etag": EMPTY_ETAG} if marker else {},
                    "DeleteObject",
                    {"deletion-type": "Delete Marker Created" if marker else "Permanently Deleted"},
                )
            return answer

        return delete_object

    def _publish_object_event(
        self,
        bucket: Any,
        detail_type: str,
        key: str,
        version_id: str | None,
        item: dict[str, Any],
        reason: str,
        more: dict[str, Any] | None = None,
    ) -> None:
        item = {"key": key, **item, "sequencer": f"{next(self._sequence):018X}"}
        if bucket.is_versioned and version_id is not None:
            item["version-id"] = str(version_id)
        detail = {
            "version": "0",
            "bucket": {"name": bucket.name},
            "object": item,
            "request-id": uuid.uuid4().hex[:16].upper(),
            "requester": self._cloud.config.account_id,
            "source-ip-address": "127.0.0.1",
            "reason": reason,
            **(more or {}),
        }
        self.publish("aws.s3", detail_type, detail, [bucket.arn])


def target_input(target: dict[str, Any], event: dict[str, Any], rule: str, rule_arn: str) -> str:
    """What a target is sent: the event, or what its input settings make of it.

    https://docs.aws.amazon.com/eventbridge/latest/userguide/eb-transform-target-input.html
    """
    if (constant := target.get("Input")) is not None:
        return str(constant)
    if (path := target.get("InputPath")) is not None:
        return json.dumps(_first(path, event))
    if (transformer := target.get("InputTransformer")) is None:
        return json.dumps(event)
    values = {
        name: _first(path, event) for name, path in transformer.get("InputPathsMap", {}).items()
    }
    values |= {
        "aws.events.rule-name": rule,
        "aws.events.rule-arn": rule_arn,
        "aws.events.event.ingestion-time": event["time"],
        "aws.events.event.json": event,
        "aws.events.event": event,
    }
    template = transformer["InputTemplate"]

    def fill(match: re.Match[str]) -> str:
        if match[1] not in values:
            return match[0]
        value = values[match[1]]
        # Between quotes a value is text; elsewhere in a template it is JSON.
        quoted = template[: match.start()].count('"') % 2 == 1
        if quoted and isinstance(value, str):
            return json.dumps(value)[1:-1]
        if quoted:
            return json.dumps(json.dumps(value))[1:-1]
        return json.dumps(value)

    filled = re.sub(r"<([A-Za-z0-9_.\-]+)>", fill, template)
    json.loads(filled)  # what is not JSON, EventBridge does not deliver
    return filled


def _first(path: str, event: dict[str, Any]) -> Any:
    # jsonpath_ng wants a name with a hyphen (`$.detail-type`) quoted; EventBridge does not.
    quoted = re.sub(r"\.([A-Za-z0-9_]*-[A-Za-z0-9_\-]*)", r".'\1'", path)
    found = parse_json_path(quoted).find(event)
    return found[0].value if found else None


def _event_time(value: Any) -> str:
    if isinstance(value, str) and not re.fullmatch(r"[\d.]+", value):
        return value
    return datetime.fromtimestamp(float(value), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _refusing_targets(original: Callable[..., None]) -> Callable[..., None]:
    def put_targets(
        backend: EventsBackend, name: str, event_bus_arn: str | None, targets: list[dict[str, Any]]
    ) -> None:
        for target in targets:
            service = target["Arn"].split(":")[2]
            if service not in TARGETS:
                raise ServiceError(
                    "ValidationException",
                    f"Rule {name}: the embedded cloud delivers events to "
                    f"{', '.join(TARGETS.values())}, not to {target['Arn']}.",
                )
            known = INPUT_SETTINGS | DELIVERY_SETTINGS | {"SqsParameters"}
            if unknown := set(target) - known:
                raise ServiceError(
                    "ValidationException",
                    f"Rule {name}: the embedded cloud knows nothing of a target's "
                    f"{', '.join(sorted(unknown))}.",
                )
        original(backend, name, event_bus_arn, targets)

    return put_targets


def _refusing_schedules(original: Callable[..., Any]) -> Callable[..., Any]:
    def put_rule(
        backend: EventsBackend,
        name: str,
        description: str | None = None,
        event_bus_arn: str | None = None,
        event_pattern: str | None = None,
        role_arn: str | None = None,
        scheduled_expression: str | None = None,
        **more: Any,
    ) -> Any:
        if scheduled_expression:
            raise ServiceError(
                "ValidationException",
                f"Rule {name}: the embedded cloud runs no schedules ({scheduled_expression}).",
            )
        return original(
            backend, name, description, event_bus_arn, event_pattern, role_arn, None, **more
        )

    return put_rule
