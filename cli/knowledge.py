"""The deployed knowledge stack, as its users see it: documents, hydration jobs, the index."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bedrock import embeddings
from bedrock.models import find_model
from cli.errors import CommandError
from processing.hydration_report import HydrationReport
from vectors.index import Passage, VectorIndex
from vectors.open import open_index
from vectors.retrieval import retrieve

TOP_K = 5


@dataclass(frozen=True)
class Job:
    """A hydration job; `reason` says why it failed, if it did."""

    name: str
    status: str
    reason: str = ""

    @property
    def running(self) -> bool:
        return self.status in ("InProgress", "Stopping")


class Knowledge:
    """`outputs` are the stack's, `client` makes a boto3 client of a service."""

    def __init__(self, name: str, outputs: Mapping[str, str], client: Callable[..., Any]) -> None:
        self.outputs = outputs
        self.documents_bucket = outputs["DocumentsBucketName"]
        self._job_prefix = f"{name}-hydration"
        self._s3 = client("s3")
        self._sqs = client("sqs")
        self._lambda = client("lambda")
        self._sagemaker = client("sagemaker")
        self._bedrock = client("bedrock-runtime")

    def start_sync(self) -> Job:
        """Start a full reconciliation; the job that does it, or the one that must end before."""
        function = self.outputs["StartHydrationFunction"]
        answer = self._lambda.invoke(
            FunctionName=function,
            Payload=json.dumps({"source": "quench.documents", "action": "sync"}),
        )
        payload = json.loads(answer["Payload"].read())
        if "FunctionError" in answer:
            raise CommandError(
                f"{function} could not start the job: {payload.get('errorMessage', payload)}",
                f"Its log group is /aws/lambda/{function}",
            )
        if busy := payload.get("busy"):
            return Job(busy, "InProgress")
        return Job(payload["job"], "Starting")

    def job(self, name: str) -> Job:
        described = self._sagemaker.describe_processing_job(ProcessingJobName=name)
        return Job(name, described["ProcessingJobStatus"], described.get("FailureReason", ""))

    def jobs(self) -> list[Job]:
        """Every hydration job, oldest first."""
        pages = self._sagemaker.get_paginator("list_processing_jobs").paginate(
            NameContains=self._job_prefix, SortBy="CreationTime", SortOrder="Ascending"
        )
        return [
            Job(
                found["ProcessingJobName"],
                found["ProcessingJobStatus"],
                found.get("FailureReason", ""),
            )
            for page in pages
            for found in page["ProcessingJobSummaries"]
        ]

    def reports(self, job: str) -> list[HydrationReport]:
        """What the hosts of a job reported; none if it ended before it could."""
        bucket = self.outputs["HydrationBucketName"]
        listed = self._s3.list_objects_v2(Bucket=bucket, Prefix=f"reports/{job}/")
        return [
            HydrationReport.model_validate_json(
                self._s3.get_object(Bucket=bucket, Key=found["Key"])["Body"].read()
            )
            for found in listed.get("Contents", [])
        ]

    def upload(self, key: str, path: str) -> None:
        self._s3.upload_file(path, self.documents_bucket, key)

    def changes_waiting(self) -> int:
        """Changes of the bucket that no job has taken up yet."""
        names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
        counts = self._sqs.get_queue_attributes(
            QueueUrl=self.outputs["ChangesQueueUrl"], AttributeNames=names
        )["Attributes"]
        return sum(int(counts[name]) for name in names)

    def index(self) -> VectorIndex:
        outputs = self.outputs
        return open_index(
            outputs["IndexLocation"], outputs["IndexName"], int(outputs["EmbeddingDimensions"])
        )

    def ask(self, index: VectorIndex, question: str) -> list[Passage]:
        """The passages nearest to a question, best first."""
        return retrieve(index, self._embed, question, TOP_K)

    def _embed(self, question: str) -> Sequence[float]:
        model = find_model(self.outputs["EmbeddingModel"])
        body = embeddings.request_body(
            model, [question], int(self.outputs["EmbeddingDimensions"]), "search_query"
        )
        answer = self._bedrock.invoke_model(modelId=model.invoke_id, body=json.dumps(body))
        return embeddings.parse_embeddings(model, json.loads(answer["body"].read()))[0]


def wait_until_ended(knowledge: Knowledge, name: str, deadline: float, look_seconds: float) -> Job:
    """Look at a job until it ended. Raises CommandError at the deadline (of `time.monotonic`)."""
    while (job := knowledge.job(name)).running:
        if time.monotonic() > deadline:
            raise CommandError(
                f"{name} still runs; it goes on without this command.",
                "See how it ends: "
                f"aws sagemaker describe-processing-job --processing-job-name {name}",
            )
        time.sleep(look_seconds)
    return job
