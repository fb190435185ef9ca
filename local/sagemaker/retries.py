"""When a step is tried again: the retry policies of SageMaker Pipelines."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from botocore.exceptions import ClientError

SERVICE_FAULT = "Step.SERVICE_FAULT"
THROTTLING = "Step.THROTTLING"
JOB_INTERNAL_ERROR = "SageMaker.JOB_INTERNAL_ERROR"
CAPACITY_ERROR = "SageMaker.CAPACITY_ERROR"
RESOURCE_LIMIT = "SageMaker.RESOURCE_LIMIT"
EXCEPTION_TYPES = frozenset(
    {SERVICE_FAULT, THROTTLING, JOB_INTERNAL_ERROR, CAPACITY_ERROR, RESOURCE_LIMIT}
)
_SERVICE_FAULT_CODES = frozenset(
    {"InternalFailure", "InternalServerError", "InternalServerException", "ServiceUnavailable"}
)


@dataclass(frozen=True)
class RetryPolicy:
    """One of a step's `RetryPolicies`; intervals in seconds, the expiry in minutes."""

    exception_types: frozenset[str]
    interval: float
    backoff_rate: float
    max_attempts: int | None
    expire_after_minutes: float | None

    @classmethod
    def parse(cls, policy: Mapping[str, Any]) -> "RetryPolicy":
        """Read a policy of a definition.

        Raises:
            ValueError: for an exception type SageMaker does not know, or a policy without an end.
        """
        types = frozenset(policy.get("ExceptionType", []))
        unknown = sorted(types - EXCEPTION_TYPES)
        if unknown or not types:
            raise ValueError(f"a retry policy names the exception types {unknown or 'none'}")
        maximum, expiry = policy.get("MaxAttempts"), policy.get("ExpireAfterMin")
        if (maximum is None) == (expiry is None):
            raise ValueError("a retry policy needs either MaxAttempts or ExpireAfterMin")
        return cls(
            types,
            float(policy.get("IntervalSeconds", 1)),
            float(policy.get("BackoffRate", 2.0)),
            maximum,
            expiry,
        )

    def delay(self, retries: int, elapsed: float) -> float | None:
        """Seconds until the next try, or None when it has been tried often or long enough.

        `retries` counts the tries made because of this policy; `elapsed` are the seconds since
        the step began.
        """
        if self.max_attempts is not None and retries >= self.max_attempts:
            return None
        delay = self.interval * self.backoff_rate**retries
        if (
            self.expire_after_minutes is not None
            and elapsed + delay > self.expire_after_minutes * 60
        ):
            return None
        return delay


def exception_type_of_error(error: ClientError) -> str | None:
    """The retry policies' name for a failed API call, or None when it is the caller's fault."""
    code = str(error.response.get("Error", {}).get("Code", ""))
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    if "Throttl" in code or code == "TooManyRequestsException":
        return THROTTLING
    if code == "ResourceLimitExceeded":
        return RESOURCE_LIMIT
    return SERVICE_FAULT if status >= 500 or code in _SERVICE_FAULT_CODES else None


def exception_type_of_job(failure_reason: str) -> str | None:
    """The retry policies' name for a job's `FailureReason`, or None when it is the job's fault."""
    if failure_reason.startswith("InternalServerError"):
        return JOB_INTERNAL_ERROR
    if failure_reason.startswith("CapacityError"):
        return CAPACITY_ERROR
    return None
