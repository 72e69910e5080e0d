from __future__ import annotations

import pytest

from deltatap.delta.final import final_sql
from deltatap.model import ERRORS


@pytest.mark.parametrize("type_", ERRORS)
def test_a_failed_row_is_final_if_a_new_call_would_fail_again(type_: str) -> None:
    final = f"'{type_}'" in final_sql("c", keep_interrupted=False)
    assert final == (type_ in {"invalid_request", "content_policy"})


def test_keep_interrupted_makes_interrupted_rows_final() -> None:
    assert "interrupted'" not in final_sql("c", keep_interrupted=False)
    assert final_sql("c", keep_interrupted=True).endswith("OR c.status = 'interrupted')")
