"""Definitions as pure functions of settings: what runs, in which order, with which parameters.

The SDKs behind them announce their own age on import; that is decided in ADR 1 and is no news.
"""

import logging
import os
import warnings

os.environ.setdefault("SAGEMAKER_SUPPRESS_V2_WARNING", "1")
warnings.filterwarnings("ignore", message="pkg_resources is deprecated")
warnings.filterwarnings("ignore", message="Running within a PipelineSession")
for name in ("sagemaker.config", "sagemaker.workflow.utilities", "sagemaker.deprecations"):
    logging.getLogger(name).setLevel(logging.ERROR)
