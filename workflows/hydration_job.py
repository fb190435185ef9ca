"""The processing job that hydrates the vector index, as a pure function of settings.

`start_hydration` gives it a name and, of a batch of changes, their list as its only input. The job
reads the documents from S3 itself (ADR 9).
"""

import math
from dataclasses import dataclass
from typing import Any

from workflows.settings import Settings

OUTPUT = "/opt/ml/processing/output"
VOLUME_GB = 30  # 16 documents (FETCHED_AHEAD), of 1 GiB at most, lie on the disk at once


@dataclass(frozen=True)
class HydrationResources:
    """Names of what the job uses; the defaults are placeholders that CloudFormation fills."""

    documents_bucket: str = "${DocumentsBucket}"
    hydration_bucket: str = "${HydrationBucket}"
    index_location: str = "${IndexLocation}"
    image_uri: str = "${ImageUri}"
    role_arn: str = "${RoleArn}"
    reader_roles: str = "${ReaderRoles}"
    region: str = "${AWS::Region}"


def hydration_job(
    settings: Settings, resources: HydrationResources | None = None
) -> dict[str, Any]:
    """A `CreateProcessingJob` request without `ProcessingJobName` and `ProcessingInputs`.

    The report's `S3Uri` is a folder of all reports: a job's own name is to be appended.
    """
    names = resources or HydrationResources()
    knowledge = settings.knowledge
    arguments = {
        "documents-bucket": names.documents_bucket,
        "failures-uri": f"s3://{names.hydration_bucket}/failed/",
        "index-location": names.index_location,
        "index-name": knowledge.index,
        "embedding-model": knowledge.embedding_model,
        "dimensions": knowledge.dimensions,
        "chunk-size": knowledge.chunk_size,
        "chunk-overlap": knowledge.chunk_overlap,
        "concurrency": knowledge.concurrency,
        "requests-per-second": f"{knowledge.requests_per_second:g}",
    }
    if not knowledge.opensearch.endpoint:  # who reads an existing index, its owner decides
        arguments["reader-roles"] = names.reader_roles
    return {
        "AppSpecification": {
            "ImageUri": names.image_uri,
            "ContainerEntrypoint": ["python3", "-m", "processing.hydrate"],
            "ContainerArguments": [
                word for name, value in arguments.items() for word in (f"--{name}", str(value))
            ],
        },
        "Environment": {"AWS_DEFAULT_REGION": names.region},
        "ProcessingOutputConfig": {
            "Outputs": [
                {
                    "OutputName": "report",
                    "S3Output": {
                        "S3Uri": f"s3://{names.hydration_bucket}/reports/",
                        "LocalPath": f"{OUTPUT}/report",
                        "S3UploadMode": "Continuous",  # a failed job uploads no other
                    },
                }
            ]
        },
        "ProcessingResources": {
            "ClusterConfig": {
                "InstanceType": knowledge.instance_type,
                "InstanceCount": knowledge.instance_count,
                "VolumeSizeInGB": VOLUME_GB,
            }
        },
        "StoppingCondition": {"MaxRuntimeInSeconds": math.ceil(knowledge.timeout_hours * 3600)},
        "RoleArn": names.role_arn,
    }
