"""`cdk-assets --path MANIFEST publish ASSET:DESTINATION`, as pipelines run it; nothing else of it.

https://github.com/aws/aws-cdk-cli/tree/main/packages/cdk-assets
"""

import argparse
from pathlib import Path

from local import assets
from local.codebuild.tools.target import run


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="cdk-assets",
        allow_abbrev=False,
        description="The embedded cloud's cdk-assets, which publishes one asset.",
    )
    parser.add_argument("--path", type=Path, required=True, metavar="MANIFEST")
    parser.add_argument("--verbose", action="store_true", help="as it always is")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    publish = commands.add_parser("publish", allow_abbrev=False)
    publish.add_argument("asset", metavar="ASSET:DESTINATION")
    given = parser.parse_args()
    asset, _, destination = given.asset.partition(":")
    run(lambda target: assets.publish(target, given.path, asset, destination))


if __name__ == "__main__":
    main()
