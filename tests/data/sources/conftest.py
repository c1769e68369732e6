"""Copies of remote files go into a folder of the test's own, and silent servers are given up soon."""

from __future__ import annotations

from pathlib import Path

import pytest

from data.sources import remote


@pytest.fixture(autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    monkeypatch.setattr(remote, "SILENCE_SECONDS", 0.2)
    monkeypatch.setattr(remote, "RETRY_SECONDS", 0.0)
    return folder
