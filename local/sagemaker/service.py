"""SageMaker, as far as the embedded cloud has it: each room of the API in a file of its own."""

from typing import TYPE_CHECKING, ClassVar

from local.sagemaker.pipelines import Pipelines
from local.sagemaker.registry import ModelRegistry

if TYPE_CHECKING:
    from local.cloud import Cloud


class SageMakerService(Pipelines, ModelRegistry):
    """Pipelines with their executions, processing jobs, and the Model Registry."""

    name: ClassVar[str] = "sagemaker"

    def __init__(self, cloud: "Cloud") -> None:
        Pipelines.__init__(self, cloud)
        ModelRegistry.__init__(self, cloud)
