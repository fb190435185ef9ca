"""Settings and the cloud assembly made from them."""

from pathlib import Path
from typing import TYPE_CHECKING

from cli.errors import CommandError, needs

if TYPE_CHECKING:
    from workflows.settings import Settings


def load_settings(path: Path | None) -> "Settings":
    """Settings of a file (`quench.toml` here, if there is one, for None).

    Raises
    ------
    CommandError
        Says which setting is wrong and what is allowed.
    """
    with needs("definitions"):
        from workflows.settings import Settings, SettingsError

    try:
        return Settings.load(path)
    except SettingsError as error:
        raise CommandError(str(error)) from error


def write_assembly(settings: Path | None, outdir: Path) -> Path:
    """Synthesize every stack into a folder; starts Node, which takes several seconds."""
    loaded = load_settings(settings)
    with needs("definitions"):
        from infrastructure.app import synthesize
        from infrastructure.assets import AssetError

    try:
        return synthesize(loaded, outdir)
    except AssetError as error:
        raise CommandError(str(error)) from error
