"""Errors as callers meet them."""

from __future__ import annotations

import json
import re

import pytest

from relay import conf, errors
from relay.serving.problems import prefers_page, problem_response

ID = b"id-of-the-request"


@pytest.mark.parametrize(
    ("accept", "is_page"),
    [
        (b"", False),
        (b"*/*", False),
        (b"text/html", True),
        (b" Text/HTML ;q=0.1", True),
        (b"application/xhtml+xml, application/json", True),
        (b"application/json, text/html", False),
        (b"application/vnd.api+json,text/html", False),
        (b"text/htmlx, text/plain", False),
        (b"image/*, text/html", True),
        (b",,;,", False),
    ],
)
def test_a_page_is_for_who_names_html_before_json(accept: bytes, is_page: bool) -> None:
    assert prefers_page(accept) is is_page


@pytest.mark.parametrize("error", errors.every_error(), ids=lambda error: error.type)
def test_every_error_says_what_to_do_in_its_own_words(error: type[errors.RelayError]) -> None:
    response = problem_response(error("10.0.0.1 <secret>"), request_id=ID, accept=b"")
    document = json.loads(response.whole)
    assert document == {
        "type": f"urn:relay:error:{error.type}",
        "title": error.title,
        "status": error.status,
        "detail": error.advice,
        "request_id": ID.decode(),
    }
    assert error.advice.endswith(".")
    assert not error.title.endswith(".")
    pairs = dict(response.pairs)
    assert len(pairs) == len(response.pairs)
    assert pairs[b"content-length"] == b"%d" % len(response.whole)
    assert re.fullmatch(rb"[a-z0-9-]+; error=[a-z_]+", pairs[b"proxy-status"])
    assert (b"retry-after" in pairs) == (error.status in (429, 503))
    assert response.status_code == error.status


@pytest.mark.parametrize("error", errors.every_error(), ids=lambda error: error.type)
def test_every_error_has_a_page_that_tells_the_same(error: type[errors.RelayError]) -> None:
    response = problem_response(error("10.0.0.1 <secret>"), request_id=ID, accept=b"text/html")
    page = response.whole.decode()
    assert dict(response.pairs)[b"content-type"] == b"text/html; charset=utf-8"
    assert f"urn:relay:error:{error.type}" in page
    assert ID.decode() in page
    assert str(error.status) in page
    assert "secret" not in page
    assert "10.0.0.1" not in page


def test_types_are_names_of_their_own() -> None:
    types = [error.type for error in errors.every_error()]
    assert len(set(types)) == len(types)
    assert all(re.fullmatch(r"[a-z]+(-[a-z]+)*", name) for name in types)


# RFC 9209 section 2.3
PROXY_ERRORS = frozenset(
    {
        "connection_limit_reached",
        "connection_refused",
        "connection_terminated",
        "connection_timeout",
        "connection_read_timeout",
        "connection_write_timeout",
        "destination_ip_prohibited",
        "destination_ip_unroutable",
        "destination_not_found",
        "destination_unavailable",
        "dns_error",
        "dns_timeout",
        "http_protocol_error",
        "http_request_denied",
        "http_request_error",
        "http_response_body_size",
        "http_response_content_coding",
        "http_response_header_section_size",
        "http_response_header_size",
        "http_response_incomplete",
        "http_response_timeout",
        "http_response_trailer_section_size",
        "http_response_trailer_size",
        "http_response_transfer_coding",
        "http_upgrade_failed",
        "proxy_configuration_error",
        "proxy_internal_error",
        "proxy_internal_response",
        "proxy_loop_detected",
        "tls_alert_received",
        "tls_certificate_error",
        "tls_protocol_error",
    }
)


@pytest.mark.parametrize("error", errors.every_error(), ids=lambda error: error.type)
def test_proxy_status_speaks_rfc_9209(error: type[errors.RelayError]) -> None:
    assert error.proxy_status in PROXY_ERRORS
    (value,) = [
        value for name, value in problem_response(error(), request_id=ID, accept=b"").pairs if name == b"proxy-status"
    ]
    assert value == f"{conf.current().via}; error={error.proxy_status}".encode()


def test_an_errors_own_headers_are_sent() -> None:
    response = problem_response(errors.MethodRefused(headers=((b"allow", b"GET"),)), request_id=ID, accept=b"")
    assert (b"allow", b"GET") in response.pairs
