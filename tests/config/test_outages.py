"""Which failures of the admin are told as the database being away. Outages: `tests.behaviour.test_outages`."""

from __future__ import annotations

import pytest
from django.db import IntegrityError, InterfaceError, OperationalError
from django.test import RequestFactory

from config import outages


@pytest.mark.parametrize(
    ("problem", "status"),
    [(OperationalError(), 503), (InterfaceError(), 503), (IntegrityError(), 500), (ValueError(), 500)],
)
def test_only_a_database_that_is_away_is_told_to_be(rf: RequestFactory, problem: Exception, status: int) -> None:
    try:
        raise problem
    except Exception:
        assert outages.server_error(rf.get("/admin/")).status_code == status
