"""SageMaker, as far as the embedded cloud has it: each room of the API in a file of its own."""

from typing import Any, ClassVar

from botocore import xform_name
from moto.core.model import OperationModel
from moto.core.request import Request
from werkzeug.wrappers import Response

from local.protocol import ServiceError, error_response
from local.sagemaker.pipelines import Pipelines
from local.sagemaker.registry import ModelRegistry


class SageMakerService(Pipelines, ModelRegistry):
    """Pipelines with their executions, processing jobs, and the Model Registry.

    Nothing of SageMaker is left to moto: its jobs and endpoints would succeed without running.
    """

    name: ClassVar[str] = "sagemaker"

    def implements(self, operation: str) -> bool:
        """Always: what there is no method for is refused here."""
        return True

    def answer(
        self, operation: OperationModel, request: Request, labels: dict[str, Any]
    ) -> Response:
        if not hasattr(self, xform_name(operation.name)):
            message = f"The embedded cloud does not implement sagemaker:{operation.name}."
            return error_response(self.name, ServiceError("NotImplemented", message, 501))
        return super().answer(operation, request, labels)
