"""Eight fake CPU devices and no network: what every test may rely on."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real inputs, or a skip that says what is missing."""
    folder = os.environ.get("SLUICE_REAL_DATA")
    if not folder:
        pytest.skip("SLUICE_REAL_DATA is not set: tests on real inputs are skipped")
    return Path(folder).resolve()
