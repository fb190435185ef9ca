from pathlib import Path

from templates import ROOT

from infrastructure.assets import make_assets


def test_the_image_is_given_all_that_its_dockerfile_copies(tmp_path: Path) -> None:
    assets = make_assets(ROOT / ".quench" / "cache", tmp_path, "test")
    lines = (assets.processing_image / "Dockerfile").read_text(encoding="utf-8").splitlines()
    copied = {line.split()[1] for line in lines if line.startswith("COPY ")}
    assert {"processing", "vectors"} <= copied
    assert {path for path in copied if not (assets.processing_image / path).exists()} == set()
