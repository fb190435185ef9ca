"""SQS → Lambda: event source mappings, as Lambda's own pollers run them.

A mapping polls its queue in a thread, gathers a batch and invokes the function with it. What the
function handled is deleted. What it did not (all of it on an error; the named items where the
mapping has `ReportBatchItemFailures`) becomes visible again after the queue's visibility time-out,
scaled by the cloud's `wait_scale`, so that retrying for hours takes seconds. moto's queues move a
message to the dead-letter queue after `maxReceiveCount` receives.

https://docs.aws.amazon.com/lambda/latest/dg/services-sqs-errorhandling.html
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from moto.awslambda.models import EventSourceMapping, LambdaBackend, lambda_backends
from moto.core.utils import unix_time_millis
from moto.sqs.models import Message, Queue, SQSBackend, sqs_backends

from local.patches import Patches
from local.protocol import ServiceError

if TYPE_CHECKING:
    from local.cloud import Cloud

log = logging.getLogger(__name__)

POLL_SECONDS = 0.05
RECEIVE_MAXIMUM = 10  # messages that one ReceiveMessage answers
REFUSED = ("FilterCriteria", "DestinationConfig", "KMSKeyArn")


class Queues:
    """The pollers of all event source mappings."""

    def __init__(self, cloud: Cloud) -> None:
        self._cloud = cloud
        self._patches = Patches()
        self._stopped = threading.Event()

    def start(self) -> None:
        self._patches.wrap(LambdaBackend, "create_event_source_mapping", self._polling)
        # moto invokes functions inside SendMessage, from this list: it has to stay empty.
        self._patches.replace(Queue, "lambda_event_source_mappings", _NO_MAPPINGS)
        self._patches.wrap(Queue, "delete_message", _deleting_alone)
        self._patches.wrap(SQSBackend, "receive_message", _receiving_alone)

    def stop(self) -> None:
        self._stopped.set()
        self._patches.restore()

    def _polling(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def create_event_source_mapping(backend: LambdaBackend, spec: dict[str, Any]) -> Any:
            source = str(spec.get("EventSourceArn"))
            if ":sqs:" not in source:
                raise ServiceError(
                    "InvalidParameterValueException",
                    f"The embedded cloud polls SQS queues only, not {source}.",
                )
            if refused := [name for name in REFUSED if spec.get(name)]:
                raise ServiceError(
                    "InvalidParameterValueException",
                    "The embedded cloud does not support an event source mapping's "
                    f"{', '.join(refused)} ({source}).",
                )
            mapping = original(backend, spec)
            threading.Thread(
                target=self._poll, args=(mapping,), name=f"poll-{mapping.uuid}", daemon=True
            ).start()
            return mapping

        return create_event_source_mapping

    def _poll(self, mapping: EventSourceMapping) -> None:
        mappings = lambda_backends[mapping.account_id][mapping.region]._event_source_mappings
        while not self._stopped.is_set() and mapping.uuid in mappings:
            try:
                messages = self._batch(mapping) if mapping.enabled else []
                if messages:
                    self._process(mapping, messages)
                    continue
            except Exception:
                if not self._stopped.is_set():
                    log.exception("Polling %s failed", mapping.event_source_arn)
            self._stopped.wait(POLL_SECONDS)

    def _batch(self, mapping: EventSourceMapping) -> list[Message]:
        """Up to a batch of messages: what there is, or what comes within the batching window."""
        window = self._cloud.config.scaled(float(mapping.max_batch_window or 0))
        messages = self._receive(mapping, mapping.batch_size)
        deadline = time.monotonic() + window
        while messages and len(messages) < mapping.batch_size:
            more = self._receive(mapping, mapping.batch_size - len(messages))
            messages += more
            if not more and (time.monotonic() >= deadline or self._stopped.wait(POLL_SECONDS)):
                break
        return messages

    def _receive(self, mapping: EventSourceMapping, count: int) -> list[Message]:
        backend = sqs_backends[mapping.account_id][mapping.region]
        queue = _queue(mapping)
        messages: list[Message] = backend.receive_message(
            queue.name, min(count, RECEIVE_MAXIMUM), 0, queue.visibility_timeout, ["All"]
        )
        return messages

    def _process(self, mapping: EventSourceMapping, messages: list[Message]) -> None:
        records = [_record(mapping, message) for message in messages]
        function = self._cloud.functions.find(mapping.function_arn)
        outcome = self._cloud.functions.invoke(function, json.dumps({"Records": records}).encode())
        failed = {message.id for message in messages}
        if not outcome.failed:
            failed = failed_items(mapping.function_response_types or [], outcome.payload, failed)
        else:
            log.error(
                "%s failed on %d messages: %s",
                function.function_name,
                len(messages),
                outcome.payload.decode(errors="replace"),
            )
        queue = _queue(mapping)
        for message in messages:
            if message.id in failed:
                self._return(queue, message)
            else:
                queue.delete_message(message.receipt_handle)

    def _return(self, queue: Queue, message: Message) -> None:
        """Make a message visible again after the scaled visibility time-out."""
        seconds = self._cloud.config.scaled(float(queue.visibility_timeout))
        for kept in list(queue._messages):
            if kept.id == message.id:
                kept.visible_at = unix_time_millis() + seconds * 1000


def failed_items(response_types: list[str], payload: bytes, batch: set[str]) -> set[str]:
    """The message ids of a batch that a function's answer reports as failed.

    An answer that is not of the expected shape fails the whole batch, as does an unknown id.
    """
    if "ReportBatchItemFailures" not in response_types:
        return set()
    try:
        answer = json.loads(payload)
        if not answer or not answer.get("batchItemFailures"):
            return set()
        failed = {item["itemIdentifier"] for item in answer["batchItemFailures"]}
    except (ValueError, TypeError, KeyError, AttributeError):
        return batch
    return failed if failed <= batch else batch


def _queue(mapping: EventSourceMapping) -> Any:
    name = mapping.event_source_arn.rpartition(":")[2]
    return sqs_backends[mapping.account_id][mapping.region].get_queue(name)


def _record(mapping: EventSourceMapping, message: Message) -> dict[str, Any]:
    """https://docs.aws.amazon.com/lambda/latest/dg/with-sqs.html"""
    attributes = {
        "ApproximateReceiveCount": str(message.approximate_receive_count),
        "SentTimestamp": str(message.sent_timestamp),
        "SenderId": message.sender_id,
        "ApproximateFirstReceiveTimestamp": str(message.approximate_first_receive_timestamp),
    }
    for name, value in (
        ("MessageGroupId", message.group_id),
        ("MessageDeduplicationId", message.deduplication_id),
        ("SequenceNumber", message.sequence_number),
    ):
        if value is not None:
            attributes[name] = value
    return {
        "messageId": message.id,
        "receiptHandle": message.receipt_handle,
        "body": message.body,
        "attributes": attributes,
        "messageAttributes": {
            name: {
                "stringValue": value.get("StringValue"),
                "stringListValues": [],
                "binaryListValues": [],
                "dataType": value["DataType"],
            }
            for name, value in message.message_attributes.items()
        },
        "md5OfBody": message.body_md5,
        "eventSource": "aws:sqs",
        "eventSourceARN": mapping.event_source_arn,
        "awsRegion": mapping.region,
    }


# moto rebuilds a queue's list to delete from it: what is sent meanwhile would be lost.


def _deleting_alone(original: Callable[..., None]) -> Callable[..., None]:
    def delete_message(queue: Queue, receipt_handle: str) -> None:
        with queue._messages_lock:
            original(queue, receipt_handle)

    return delete_message


def _receiving_alone(original: Callable[..., Any]) -> Callable[..., Any]:
    def receive_message(backend: SQSBackend, queue_name: str, *args: Any, **kw: Any) -> Any:
        with backend.get_queue(queue_name)._messages_lock:  # let go while it waits for messages
            return original(backend, queue_name, *args, **kw)

    return receive_message


class _NoMappings:
    """A queue's list of mappings that stays empty, whatever is put into it."""

    def __get__(self, _queue: object, _kind: type | None = None) -> dict[str, Any]:
        return {}

    def __set__(self, _queue: object, _value: object) -> None:
        pass


_NO_MAPPINGS = _NoMappings()
