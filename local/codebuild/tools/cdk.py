"""`cdk -a ASSEMBLY deploy STACK…`, as a pipeline that updates itself runs it; nothing else of it.

https://docs.aws.amazon.com/cdk/v2/guide/ref-cli-cmd-deploy.html
"""

import argparse
from pathlib import Path

from local import assets
from local.codebuild.tools.target import run


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="cdk",
        allow_abbrev=False,
        description="The embedded cloud's cdk, which deploys stacks of an assembly.",
    )
    parser.add_argument("-a", "--app", type=Path, required=True, metavar="ASSEMBLY")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    deploy = commands.add_parser("deploy", allow_abbrev=False)
    deploy.add_argument("stacks", nargs="+", metavar="STACK")
    deploy.add_argument("--require-approval", choices=["never"], required=True)
    deploy.add_argument("--verbose", action="store_true", help="as it always is")
    given = parser.parse_args()
    run(lambda target: assets.deploy_stacks(target, given.app, given.stacks))


if __name__ == "__main__":
    main()
