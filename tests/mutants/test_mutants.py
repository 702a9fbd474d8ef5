from __future__ import annotations

import importlib.util
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def test_every_mutant_applies_to_the_sources_as_they_are() -> None:
    """A deliberate bug whose place has changed would be tried in vain."""
    spec = importlib.util.spec_from_file_location("mutants", HERE / "mutants.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for mutant in module.MUTANTS:
        source = (ROOT / mutant.file).read_text(encoding="utf-8")
        assert mutant.applied_to(source) != source
        for test in mutant.tests:
            assert (ROOT / test).exists(), f"{mutant.name}: no {test}"
    names = [mutant.name for mutant in module.MUTANTS]
    assert len(set(names)) == len(names) >= 30
