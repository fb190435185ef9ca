"""Starts hydration jobs as processes of their own, without the seconds that imports take.

For each line of JSON it forks a process, prints its id, and when it has ended its wait status.
"""

import json
import os
import sys

import vectors.lance  # noqa: F401 - so that the jobs need not
from processing import hydrate, pipeline

if __name__ == "__main__":
    pipeline.CHUNKS_PER_WRITE = 4  # so that a small job has many moments to be killed at
    for line in sys.stdin:
        job = json.loads(line)
        process = os.fork()
        if not process:
            os.environ |= job["environment"]
            os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
            os._exit(hydrate.main(job["arguments"]))
        print(process, flush=True)
        print(os.waitpid(process, 0)[1], flush=True)
