"""CodeBuild, as far as the embedded cloud has it: projects, and the builds that pipelines start.

A build runs on this machine, in a shell of its own and a copy of its source: the image, the
compute type and the role of its project are kept and mean nothing. The `install` phase is not
run, as functions here run without their layer: what it would install is installed beside Quench.
Builds do not start by themselves or by StartBuild, but through `CodeBuildService.run`.

https://docs.aws.amazon.com/codebuild/latest/userguide/how-to-create-pipeline.html
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from local.codebuild.builds import Build, RunningBuild
from local.codebuild.projects import DEFAULTS, check, invalid
from local.protocol import Service, ServiceError

if TYPE_CHECKING:
    from local.cloud import Cloud


class CodeBuildService(Service):
    """The operations on projects and builds, and how a pipeline runs a build."""

    name: ClassVar[str] = "codebuild"
    refuses: ClassVar[bool] = True  # what moto would only record

    def __init__(self, cloud: Cloud) -> None:
        self._cloud = cloud
        self._projects: dict[str, dict[str, Any]] = {}
        self._builds: dict[str, RunningBuild] = {}  # by id, the oldest first
        self._stopping = False
        self._lock = threading.Lock()

    def start(self) -> None:
        # Of builds that were killed in an earlier cloud's life.
        shutil.rmtree(self._cloud.config.state_dir / "codebuild", ignore_errors=True)

    def stop(self) -> None:
        """Stop every build and wait until it has ended."""
        with self._lock:
            self._stopping = True
            builds = list(self._builds.values())
        for build in builds:
            build.stop_requested.set()
        for build in builds:
            build.ended.wait()

    def run(
        self,
        project: str,
        source: Path,
        *,
        revision: str,
        environment: Mapping[str, str],
        artifacts: Path | None,
        stopped: threading.Event,
        initiator: str = "codepipeline",
    ) -> Build:
        """Run a build of a project and wait for its end, however it ends.

        `source` is a folder with the input artifact, which stays as it is; `artifacts` an empty
        one, filled with what the buildspec hands on. `environment` goes before the project's own
        variables. The build is stopped when `stopped` is set. `initiator` is who started it, as
        `codepipeline/<pipeline>`.

        Raises `ServiceError` if there is no such project, and `OSError` if this machine cannot
        run the build.
        """
        build = RunningBuild(
            self._cloud, self._project(project), revision, environment, stopped, initiator
        )
        with self._lock:
            self._builds[build.id] = build
            if self._stopping:
                build.stop_requested.set()
        return build.run(source, artifacts)

    # Projects

    def create_project(self, request: dict[str, Any]) -> dict[str, Any]:
        name = request["name"]
        if name in self._projects:
            raise ServiceError("ResourceAlreadyExistsException", f"Project already exists: {name}")
        now = datetime.now(UTC)
        project = {**DEFAULTS, **request}
        check(project)
        config = self._cloud.config
        arn = f"arn:aws:codebuild:{config.region}:{config.account_id}:project/{name}"
        self._projects[name] = {**project, "arn": arn, "created": now, "lastModified": now}
        return {"project": self._projects[name]}

    def update_project(self, request: dict[str, Any]) -> dict[str, Any]:
        project = self._project(request["name"])
        shown = ("arn", "created", "lastModified")
        check({**{key: value for key, value in project.items() if key not in shown}, **request})
        # A build that runs meanwhile goes on with the project it began with.
        project = {**project, **request, "lastModified": datetime.now(UTC)}
        self._projects[request["name"]] = project
        return {"project": project}

    def delete_project(self, request: dict[str, Any]) -> dict[str, Any]:
        self._projects.pop(request["name"], None)  # none is no error, on AWS neither
        return {}

    def batch_get_projects(self, request: dict[str, Any]) -> dict[str, Any]:
        found, missing = _partition(request["names"], self._projects)
        return {"projects": found, "projectsNotFound": missing}

    def list_projects(self, request: dict[str, Any]) -> dict[str, Any]:
        members = {"CREATED_TIME": "created", "LAST_MODIFIED_TIME": "lastModified"}
        key = members.get(request.get("sortBy", "NAME"), "name")
        projects = sorted(self._projects.values(), key=lambda project: project[key])
        names = [project["name"] for project in projects]
        return {"projects": _ordered(names, request, "ASCENDING")}

    def _project(self, name: str) -> dict[str, Any]:
        if name not in self._projects:
            raise ServiceError("ResourceNotFoundException", f"Project cannot be found: {name}")
        return self._projects[name]

    # Builds

    def batch_get_builds(self, request: dict[str, Any]) -> dict[str, Any]:
        found, missing = _partition(request["ids"], self._builds)
        return {"builds": [build.describe() for build in found], "buildsNotFound": missing}

    def list_builds_for_project(self, request: dict[str, Any]) -> dict[str, Any]:
        name = self._project(request["projectName"])["name"]
        ids = [build.id for build in list(self._builds.values()) if build.project["name"] == name]
        return {"ids": _ordered(ids, request, "DESCENDING")}

    def stop_build(self, request: dict[str, Any]) -> dict[str, Any]:
        build = self._builds.get(request["id"])
        if build is None:
            raise ServiceError(
                "ResourceNotFoundException", f"Build cannot be found: {request['id']}"
            )
        build.stop_requested.set()
        build.ended.wait()
        return {"build": build.describe()}


def _ordered(names: list[str], request: Mapping[str, Any], default: str) -> list[str]:
    if "nextToken" in request:
        raise invalid("The embedded cloud lists everything at once and gives no nextToken.")
    return names[::-1] if request.get("sortOrder", default) == "DESCENDING" else names


def _partition(names: list[str], known: Mapping[str, Any]) -> tuple[list[Any], list[str]]:
    """What there is of these names, and the names of what there is not."""
    return (
        [known[name] for name in names if name in known],
        [name for name in names if name not in known],
    )
