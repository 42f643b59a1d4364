"""Each end-to-end module runs behind a gateway, or says why it does not."""

from __future__ import annotations

from tests.architecture.sources import ROOT
from tests.e2e.conftest import AT_GATEWAYS, NOT_AT_GATEWAYS, NOT_LAMBDA


def test_each_module_runs_there_or_is_about_something_else() -> None:
    modules = {path.stem for path in (ROOT / "tests" / "e2e").glob("test_*.py")}
    assert modules == AT_GATEWAYS.keys() | NOT_AT_GATEWAYS.keys()
    assert not AT_GATEWAYS.keys() & NOT_AT_GATEWAYS.keys()


def test_the_tests_that_stay_out_are_there() -> None:
    for module, names in [*AT_GATEWAYS.items(), *NOT_LAMBDA.items()]:
        text = (ROOT / "tests" / "e2e" / f"{module}.py").read_text(encoding="utf-8")
        for name in names:
            assert f"def {name}(" in text, f"{module}: {name}"
