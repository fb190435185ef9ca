"""One build: its source is copied, its phases are run, its artifacts are collected.

https://docs.aws.amazon.com/codebuild/latest/userguide/view-build-details-phases.html
https://docs.aws.amazon.com/codebuild/latest/userguide/build-env-ref-env-vars.html
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import shutil
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal

from local.codebuild import buildspec, tools
from local.codebuild.buildspec import Artifacts, Buildspec, BuildspecError
from local.codebuild.logs import BuildLog
from local.codebuild.projects import caches_folders, log_group
from local.codebuild.shell import Shell

if TYPE_CHECKING:
    from local.cloud import Cloud

log = logging.getLogger(__name__)

Status = Literal["SUCCEEDED", "FAILED", "STOPPED", "TIMED_OUT"]
SECONDS_IN_A_MINUTE = 60.0  # of a time-out: what it limits is real work
PAUSE_SECONDS = 0.02  # between two looks at a command that runs
INHERITED = ("HOME", "LANG", "TMPDIR")


@dataclass(frozen=True)
class Build:
    """What a build came to. `reason` says, for people, why it did not succeed."""

    id: str
    arn: str
    status: Status
    reason: str
    log_file: Path
    exported_variables: dict[str, str]


class BuildEnded(Exception):
    """A build ends before its last phase does: its status, and why."""

    def __init__(self, status: Status, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


class RunningBuild:
    """A build, from its start on; it can be described at any time, also when it has ended."""

    def __init__(
        self,
        cloud: Cloud,
        project: Mapping[str, Any],
        revision: str,
        environment: Mapping[str, str],
        stopped: threading.Event,
        initiator: str,
    ) -> None:
        config = cloud.config
        unique = str(uuid.uuid4())
        self.project = project
        self.id = f"{project['name']}:{unique}"
        self.arn = f"arn:aws:codebuild:{config.region}:{config.account_id}:build/{self.id}"
        self.stop_requested = threading.Event()
        self.ended = threading.Event()
        self._cloud = cloud
        self._revision = revision
        self._given = dict(environment)
        self._stopped = stopped
        self._initiator = initiator
        state_dir = config.state_dir.resolve()
        self._folder = state_dir / "codebuild" / project["name"] / unique
        self._source = self._folder / "src"
        self._log = BuildLog(
            cloud,
            state_dir / "logs" / "codebuild" / f"{project['name']}-{unique[:8]}.log",
            log_group(project),
            unique,
        )
        self._start_time = datetime.now(UTC)
        self._end_time: datetime | None = None
        self._status = "IN_PROGRESS"
        self._phase = "SUBMITTED"
        self._phases: list[dict[str, Any]] = []
        self._exported: dict[str, str] = {}
        self._deadline = time.monotonic() + project["timeoutInMinutes"] * SECONDS_IN_A_MINUTE
        self._environment: dict[str, str] = {}
        self._shell: Shell | None = None

    def run(self, source: Path, artifacts: Path | None) -> Build:
        """Run the build to its end. Raises `OSError` if this machine cannot."""
        try:
            return self._run_and_clear_away(source, artifacts)
        finally:
            self.ended.set()  # whatever happened: a cloud that stops waits for it

    def _run_and_clear_away(self, source: Path, artifacts: Path | None) -> Build:
        status: Status = "SUCCEEDED"
        reason = ""
        outcome = "FAULT"
        try:
            try:
                self._run_phases(source, artifacts)
            except BuildEnded as ended:
                status, reason = ended.status, ended.reason
            outcome = status
        finally:
            if self._shell is not None:
                self._shell.end()
            self._remove_folder()
            self._status, self._phase = outcome, "COMPLETED"
            self._end_time = datetime.now(UTC)
            why = reason.partition("\n")[0]  # what follows is in the log already
            self._log.write(f"Build {outcome}{f': {why}' if why else ''}")
            self._log.close()
        return Build(self.id, self.arn, status, reason, self._log.file, self._exported)

    def _run_phases(self, source: Path, artifacts: Path | None) -> None:
        with self._in_phase("DOWNLOAD_SOURCE"):
            spec = self._download(source)
        for command in spec.commands.get("install", []):
            self._log.write(
                f"Skipped in phase INSTALL, as it is installed beside Quench: {command}"
            )
        failure: BuildEnded | None = None
        for phase in ("pre_build", "build", "post_build"):
            try:
                with self._in_phase(phase.upper()):
                    self._run_commands(spec.commands.get(phase, []), failure is None)
            except BuildEnded as ended:
                if ended.status != "FAILED":
                    raise
                failure = failure or ended
                if phase == "pre_build":  # a build that failed is followed by post_build
                    break
        if failure is not None:
            raise failure
        with self._in_phase("UPLOAD_ARTIFACTS"):
            self._exported = self._export(spec.exported_variables)
            if artifacts is not None:
                self._collect(spec.artifacts, artifacts)

    @contextmanager
    def _in_phase(self, name: str) -> Iterator[None]:
        self._phase = name
        record: dict[str, Any] = {"phaseType": name, "startTime": datetime.now(UTC)}
        self._phases.append(record)
        self._log.write(f"Entering phase {name}")
        status = "FAULT"
        try:
            yield
            status = "SUCCEEDED"
        except BuildEnded as ended:
            status = ended.status
            record["contexts"] = [{"message": ended.reason}]
            raise
        finally:
            end = datetime.now(UTC)
            duration = int((end - record["startTime"]).total_seconds())
            record |= {"phaseStatus": status, "endTime": end, "durationInSeconds": duration}
            self._log.write(f"Phase complete: {name} State: {status}")

    def _failed(self, why: str) -> BuildEnded:
        return BuildEnded("FAILED", f"{self._phase} failed: {why}")

    # Before the commands

    def _download(self, source: Path) -> Buildspec:
        """Copy the source and read the buildspec."""
        # Commands may change files in place, which links would change in the source too.
        shutil.copytree(source, self._source, symlinks=True)
        tools.install(self._folder / "bin")
        (self._folder / "commands").mkdir()
        try:
            spec = buildspec.load(self.project["source"].get("buildspec"), self._source)
            self._link_caches(spec)
        except BuildspecError as error:
            raise self._failed(str(error)) from error
        self._environment = self._environment_of(spec)
        return spec

    def _link_caches(self, spec: Buildspec) -> None:
        """Give the build the working tree's folders that the buildspec caches."""
        if spec.cache_folders and not caches_folders(self.project):
            self._log.write("cache.paths is not used: the project caches no folders.")
            return
        for folder in spec.cache_folders:
            if PurePosixPath(folder).is_absolute():
                self._log.write(f"{folder} is this machine's own, not a cache.")
                continue
            ours, here = self._cloud.config.source.resolve() / folder, self._source / folder
            if not ours.is_dir():
                self._log.write(f"Nothing is cached: there is no folder {ours}.")
            elif os.path.lexists(here):
                self._log.write(f"{folder} is not taken from a cache: the source has it.")
            else:
                here.parent.mkdir(parents=True, exist_ok=True)
                here.symlink_to(ours, target_is_directory=True)
                self._log.write(f"Linked {folder} to {ours}")

    def _environment_of(self, spec: Buildspec) -> dict[str, str]:
        """The variables of the build: none of this process's but those it needs."""
        inherited = {name: os.environ[name] for name in INHERITED if name in os.environ}
        # What this cloud's stacks were synthesized with goes for those that builds synthesize.
        settings = {name: text for name, text in os.environ.items() if name.startswith("QUENCH_")}
        variables = self.project["environment"].get("environmentVariables", [])
        path = (
            str(self._folder / "bin"),
            str(Path(sys.executable).parent),
            os.environ.get("PATH", os.defpath),
        )
        return {
            **inherited,
            **settings,
            **spec.variables,
            **{variable["name"]: variable["value"] for variable in variables},
            **self._given,
            **self._cloud.environment(),
            "PATH": os.pathsep.join(path),
            "CI": "true",
            "CODEBUILD_BUILD_ID": self.id,
            "CODEBUILD_BUILD_ARN": self.arn,
            "CODEBUILD_SRC_DIR": str(self._source),
            "CODEBUILD_INITIATOR": self._initiator,
            "CODEBUILD_RESOLVED_SOURCE_VERSION": self._revision,
        }

    # The commands

    def _run_commands(self, commands: list[str], succeeding: bool) -> None:
        """Run a phase's commands up to the first that fails."""
        for command in commands:
            self._wait(0)
            self._log.write(f"Running command {command}")
            start = self._log.size()
            code = self._execute(f"export CODEBUILD_BUILD_SUCCEEDING={succeeding:d}\n{command}\n")
            if code:
                output = self._log.last_lines(start)
                why = f"`{command}` exited with code {code}"
                raise self._failed(f"{why}:\n{output}" if output else f"{why}.")

    def _execute(self, text: str) -> int:
        script = self._folder / "commands" / str(uuid.uuid4())
        script.write_text(text, "utf-8")
        if self._shell is not None and self._shell.ended:
            self._log.write("A command ended the shell: a new one runs what follows.")
            self._shell.end()
            self._shell = None
        if self._shell is None:
            self._shell = Shell(self._source, self._environment, self._log.stream)
        return self._shell.run(script, self._wait)

    def _wait(self, seconds: float = PAUSE_SECONDS) -> None:
        """Wait a little. Raises `BuildEnded` if the build is to stop."""
        self._log.publish()
        if self._stopped.is_set() or self.stop_requested.is_set():
            raise BuildEnded("STOPPED", f"{self._phase} was stopped.")
        if time.monotonic() > self._deadline:
            minutes = self.project["timeoutInMinutes"]
            raise BuildEnded(
                "TIMED_OUT",
                f"{self._phase} was stopped: the build took longer than the {minutes} minutes "
                "that its project allows.",
            )
        self.stop_requested.wait(seconds)

    # After the commands

    def _export(self, names: list[str]) -> dict[str, str]:
        """The values that the shell has, in the end, of the variables to be exported."""
        if not names:
            return {}
        file = self._folder / "environment.json"
        program = "import json, os; print(json.dumps(dict(os.environ)))"
        words = [sys.executable, "-I", "-c", program]
        self._execute(f"{shlex.join(words)} > {shlex.quote(str(file))}")
        values = json.loads(file.read_text("utf-8"))
        for name in names:
            if name not in values:
                self._log.write(f"{name} is to be exported, but is not set.")
        return {name: values[name] for name in names if name in values}

    def _collect(self, artifacts: Artifacts | None, target: Path) -> None:
        """Copy what the build hands on."""
        if artifacts is None:
            raise self._failed("the buildspec names no artifacts, and the pipeline expects some.")
        base = self._source / artifacts.base_directory
        if not base.is_dir():
            raise self._failed(
                f"there is no folder {artifacts.base_directory} (artifacts.base-directory)."
            )
        try:
            found = {file for pattern in artifacts.files for file in base.glob(pattern)}
        except ValueError as error:
            raise self._failed(f"artifacts.files has a wrong pattern: {error}") from error
        files = sorted(file for file in found if file.is_file())
        if not files:
            patterns = ", ".join(artifacts.files)
            raise self._failed(f"no file of {artifacts.base_directory} matches {patterns}.")
        for file in files:
            place = target / file.relative_to(base)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(file, place)
        self._log.write(f"Handed on {len(files)} files of {artifacts.base_directory}")

    def _remove_folder(self) -> None:
        """As the container would be gone; releases are many, and their sources large."""
        try:
            shutil.rmtree(self._folder)
        except OSError as error:
            # Perhaps a killed process was not quite dead. The next cloud removes it.
            log.warning("The folder of build %s was not removed: %s", self.id, error)

    def describe(self) -> dict[str, Any]:
        """The build as BatchGetBuilds tells it."""
        project = self.project
        described = {
            "id": self.id,
            "arn": self.arn,
            "projectName": project["name"],
            "startTime": self._start_time,
            "currentPhase": self._phase,
            "buildStatus": self._status,
            "buildComplete": self.ended.is_set(),
            "resolvedSourceVersion": self._revision,
            "initiator": self._initiator,
            "phases": [dict(phase) for phase in self._phases],
            "logs": {
                "groupName": self._log.group,
                "streamName": self._log.stream_name,
                "cloudWatchLogs": {"status": "ENABLED"},
            },
            "exportedEnvironmentVariables": [
                {"name": name, "value": value} for name, value in self._exported.items()
            ],
            **{
                key: project[key]
                for key in (
                    "source",
                    "cache",
                    "environment",
                    "serviceRole",
                    "timeoutInMinutes",
                    "queuedTimeoutInMinutes",
                    "encryptionKey",
                )
            },
        }
        return described if self._end_time is None else {**described, "endTime": self._end_time}
