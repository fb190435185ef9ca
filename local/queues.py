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
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from moto.awslambda.models import EventSourceMapping, LambdaBackend, lambda_backends
from moto.sqs import models as sqs_models
from moto.sqs.models import Message, Queue, SQSBackend, sqs_backends

from local.patches import Patches
from local.protocol import ServiceError

if TYPE_CHECKING:
    from local.cloud import Cloud

log = logging.getLogger(__name__)

POLL_SECONDS = 0.05
PAYLOAD_LIMIT = 6 * 1024 * 1024  # bytes of one invocation
REFUSED = ("FilterCriteria", "DestinationConfig", "KMSKeyArn")


class Queues:
    """The pollers of all event source mappings."""

    def __init__(self, cloud: Cloud) -> None:
        self._cloud = cloud
        self._patches = Patches()
        self._stopped = threading.Event()

    def start(self) -> None:
        self._patches.wrap(LambdaBackend, "create_event_source_mapping", self._polling)
        self._patches.wrap(LambdaBackend, "update_event_source_mapping", _checking)
        # moto invokes functions inside SendMessage, from this list: it has to stay empty.
        self._patches.replace(Queue, "lambda_event_source_mappings", _NO_MAPPINGS)
        self._patches.wrap(Queue, "delete_message", _deleting_alone)
        self._patches.wrap(SQSBackend, "receive_message", _receiving_alone)
        self._patches.replace(
            SQSBackend, "is_message_valid_based_on_retention_period", _is_retained
        )
        self._patches.replace(sqs_models, "unix_time_millis", _milliseconds)

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
            batch_size = int(spec.get("BatchSize") or 10)
            check_batching(source, batch_size, int(spec.get("MaximumBatchingWindowInSeconds") or 0))
            self._check_times(source, spec["FunctionName"])
            mapping = original(backend, spec)
            threading.Thread(
                target=self._poll, args=(mapping,), name=f"poll-{mapping.uuid}", daemon=True
            ).start()
            return mapping

        return create_event_source_mapping

    def _check_times(self, queue_arn: str, function_name: str) -> None:
        *_, region, account, name = queue_arn.split(":")
        queue = sqs_backends[account][region].queues.get(name)
        timeout = int(self._cloud.functions.find(function_name).timeout)
        if queue is not None and int(queue.visibility_timeout) < timeout:
            raise ServiceError(
                "InvalidParameterValueException",
                f"Queue visibility timeout: {queue.visibility_timeout} seconds is less than "
                f"Function timeout: {timeout} seconds",
            )

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
        while messages and len(messages) < mapping.batch_size and time.monotonic() < deadline:
            self._stopped.wait(POLL_SECONDS)
            messages += self._receive(mapping, mapping.batch_size - len(messages))
        return messages

    def _receive(self, mapping: EventSourceMapping, count: int) -> list[Message]:
        backend = sqs_backends[mapping.account_id][mapping.region]
        queue = _queue(mapping)
        messages: list[Message] = backend.receive_message(
            queue.name, count, 0, queue.visibility_timeout, ["All"]
        )
        return messages

    def _process(self, mapping: EventSourceMapping, messages: list[Message]) -> None:
        records = [json.dumps(_record(mapping, message)) for message in messages]
        end = 0
        for part in within_payload(records):
            begin, end = end, end + len(part)
            self._invoke(mapping, messages[begin:end], f'{{"Records": [{",".join(part)}]}}')

    def _invoke(self, mapping: EventSourceMapping, messages: list[Message], payload: str) -> None:
        function = self._cloud.functions.find(mapping.function_arn)
        outcome = self._cloud.functions.invoke(function, payload.encode())
        batch = {message.id for message in messages}
        failed = batch
        if not outcome.failed:
            failed = failed_items(mapping.function_response_types or [], outcome.payload, batch)
        else:
            log.error(
                "%s failed on %d messages: %s",
                function.function_name,
                len(messages),
                outcome.payload.decode(errors="replace"),
            )
        self._settle(_queue(mapping), batch - failed, failed)

    def _settle(self, queue: Queue, handled: set[str], failed: set[str]) -> None:
        """Delete what was handled; what failed is visible again after the scaled time-out."""
        seconds = max(self._cloud.config.scaled(float(queue.visibility_timeout)), POLL_SECONDS)
        with queue._messages_lock:
            kept = []
            for message in queue._messages:
                if message.id in handled:
                    queue.pending_messages.discard(message)
                    queue.deleted_messages.update(message.all_receipt_handles)
                    continue
                if message.id in failed:
                    message.visible_at = _milliseconds() + seconds * 1000
                kept.append(message)
            queue._messages = kept


def check_batching(queue_arn: str, batch_size: int, window: int) -> None:
    """Raise `ServiceError` for a batch size, or a window in seconds, that Lambda does not take.

    https://docs.aws.amazon.com/lambda/latest/dg/services-sqs-parameters.html
    """
    if queue_arn.endswith(".fifo"):
        maximum, longest = 10, 0
    else:
        maximum, longest = 10_000, 300
    problem = None
    if not 1 <= batch_size <= maximum:
        problem = f"BatchSize must be between 1 and {maximum}, not {batch_size}."
    elif not 0 <= window <= longest:
        problem = f"MaximumBatchingWindowInSeconds must be between 0 and {longest}, not {window}."
    elif batch_size > 10 and window == 0:
        problem = (
            "Maximum batch window in seconds must be greater than 0 if maximum batch size is "
            "greater than 10"
        )
    if problem:
        raise ServiceError("InvalidParameterValueException", f"{problem} ({queue_arn})")


def within_payload(records: list[str], limit: int = PAYLOAD_LIMIT) -> Iterator[list[str]]:
    """Records in their order, in parts of at most so many bytes; a larger one goes alone."""
    part: list[str] = []
    size = 0
    for record in records:
        length = len(record.encode()) + 1
        if part and size + length > limit:
            yield part
            part, size = [], 0
        part.append(record)
        size += length
    if part:
        yield part


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


def _checking(original: Callable[..., Any]) -> Callable[..., Any]:
    def update_event_source_mapping(backend: LambdaBackend, uuid: str, spec: dict[str, Any]) -> Any:
        if mapping := backend.get_event_source_mapping(uuid):
            check_batching(
                mapping.event_source_arn,
                int(spec.get("BatchSize", mapping.batch_size)),
                int(spec.get("MaximumBatchingWindowInSeconds", mapping.max_batch_window or 0)),
            )
        return original(backend, uuid, spec)

    return update_event_source_mapping


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


# moto counts a queue's messages for each message received, by a clock that takes microseconds.


def _is_retained(backend: SQSBackend, queue_name: str, message: Message) -> bool:
    queue = backend.get_queue(queue_name)
    return bool(message.sent_timestamp + queue.message_retention_period * 1000 > _milliseconds())


def _milliseconds() -> float:
    return time.time() * 1000


class _NoMappings:
    """A queue's list of mappings that stays empty, whatever is put into it."""

    def __get__(self, _queue: object, _kind: type | None = None) -> dict[str, Any]:
        return {}

    def __set__(self, _queue: object, _value: object) -> None:
        pass


_NO_MAPPINGS = _NoMappings()
