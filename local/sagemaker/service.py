"""SageMaker, as far as the embedded cloud has it: each room of the API in a file of its own."""

from typing import ClassVar

from local.sagemaker.pipelines import Pipelines
from local.sagemaker.registry import ModelRegistry


class SageMakerService(Pipelines, ModelRegistry):
    """Pipelines with their executions, processing jobs, and the Model Registry.

    Nothing of SageMaker is left to moto: its jobs and endpoints would succeed without running.
    """

    name: ClassVar[str] = "sagemaker"
    refuses: ClassVar[bool] = True
