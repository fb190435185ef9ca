"""CodePipeline's resource type, made by calls of its API."""

from __future__ import annotations

from typing import Any

from local.resources import Resource, request_of


class Pipeline(Resource):
    """A pipeline. It does not start when it is created: see the service.

    https://docs.aws.amazon.com/AWSCloudFormation/latest/UserGuide/aws-resource-codepipeline-pipeline.html
    """

    type = "AWS::CodePipeline::Pipeline"
    name_property = "Name"

    @classmethod
    def put(cls, name: str, properties: dict[str, Any]) -> Resource:
        codepipeline = cls.client("codepipeline")
        given = dict(properties)
        tags = [{"key": tag["Key"], "value": tag["Value"]} for tag in given.pop("Tags", [])]
        restart = str(given.pop("RestartExecutionOnUpdate", False)).lower() == "true"
        if "ArtifactStores" in given:  # a list of what the API takes by its region
            stores = given["ArtifactStores"]
            given["ArtifactStores"] = {store["Region"]: store["ArtifactStore"] for store in stores}
        operation = codepipeline.meta.service_model.operation_model("CreatePipeline")
        shape = operation.input_shape.members["pipeline"]
        declaration = {**request_of(shape, given, f"Pipeline {name}"), "name": name}
        pages = codepipeline.get_paginator("list_pipelines").paginate()
        versions = {
            known["name"]: known["version"] for page in pages for known in page["pipelines"]
        }
        if name not in versions:
            made = codepipeline.create_pipeline(pipeline=declaration, tags=tags)["pipeline"]
        else:
            made = codepipeline.update_pipeline(pipeline=declaration)["pipeline"]
            if restart and made["version"] != versions[name]:
                codepipeline.start_pipeline_execution(name=name)
        return cls(name, {"Version": str(made["version"])})

    def remove(self) -> None:
        self.client("codepipeline").delete_pipeline(name=self.physical_resource_id)


RESOURCES: tuple[type[Resource], ...] = (Pipeline,)
