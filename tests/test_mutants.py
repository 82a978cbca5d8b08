"""The list of errors in ``mutants`` fits the code. Whether tests notice them: ``python tests/mutants.py``."""

from __future__ import annotations

import ast

from mutants import MUTANTS, ROOT, faulty


def test_every_error_can_be_put_into_the_code() -> None:
    wrong = []
    for name, mutant in MUTANTS.items():
        try:
            ast.parse(faulty(mutant))
        except (ValueError, SyntaxError) as error:
            wrong.append(f"{name}: {error}")
        wrong += [f"{name}: no {test}" for test in mutant.tests.split() if not (ROOT / "tests" / test).exists()]
    assert not wrong, "\n".join(wrong)
