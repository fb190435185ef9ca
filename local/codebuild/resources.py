"""CodeBuild's resource type, made by calls of its API."""

from __future__ import annotations

from typing import Any

from local.codebuild.projects import DEFAULTS
from local.resources import Resource, request_of


class Project(Resource):
    type = "AWS::CodeBuild::Project"
    name_property = "Name"

    @classmethod
    def put(cls, name: str, properties: dict[str, Any]) -> Resource:
        codebuild = cls.client("codebuild")
        shape = codebuild.meta.service_model.operation_model("CreateProject").input_shape
        given = request_of(shape, properties, f"Project {name}")
        arguments = {**given, "name": name}
        if codebuild.batch_get_projects(names=[name])["projects"]:
            # What the template no longer says is as if it never had.
            project = codebuild.update_project(**{**DEFAULTS, **arguments})["project"]
        else:
            project = codebuild.create_project(**arguments)["project"]
        return cls(name, {"Arn": project["arn"]})

    def remove(self) -> None:
        self.client("codebuild").delete_project(name=self.physical_resource_id)


RESOURCES: tuple[type[Resource], ...] = (Project,)
