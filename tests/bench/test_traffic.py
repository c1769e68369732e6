"""What the compiled steps of pods send is what the sharding of their meshes asks for."""

import os

import pytest

from tests.bench import scale

LIMIT = 1.1  # of the ideal bytes, each kind


@pytest.mark.slow
@pytest.mark.parametrize(
    "mesh",
    [
        pytest.param(mesh, marks=[pytest.mark.long] if variable == "SLUICE_TPU_PYTHON" else [])
        for mesh, (variable, *_) in scale.MESHES.items()
    ],
)
def test_each_kind_of_traffic_is_within_a_tenth_of_the_ideal(mesh: str, monkeypatch: pytest.MonkeyPatch):
    variable = scale.MESHES[mesh][0]
    if not os.environ.get(variable):
        pytest.skip(f"{variable} is not set: no compiler for these machines")
    monkeypatch.setattr(scale, "MESHES", {mesh: scale.MESHES[mesh]})
    found = scale.communication()[mesh]
    assert found and {kind: ratio for kind, ratio in found.items() if not 0.9 < ratio < LIMIT} == {}
