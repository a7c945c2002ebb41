"""Every way an exchange can end badly, as a tree of errors that carry what the caller is told.

The classes hold data only; `relay.serving.problems` renders them. `type` is the stable name that programs match on
(docs/errors.md), `proxy_status` the error type of RFC 9209 section 2.3, `advice` one sentence on what to do. None of
them ever holds an address, a secret or bytes a caller shaped: what operators need goes into `detail`, which only the
access log sees.
"""

from __future__ import annotations

import math
from typing import ClassVar

TYPE_PREFIX = "urn:relay:error:"


class RelayError(Exception):
    """One refusal or failure. Subclasses are the vocabulary; an instance adds the detail for the log."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "internal"
    title: ClassVar[str] = "The relay failed"
    advice: ClassVar[str] = "Report this with the request id to whoever runs the relay."
    proxy_status: ClassVar[str] = "proxy_internal_error"
    retry_after_seconds: int | None = None

    def __init__(self, detail: str = "", *, headers: tuple[tuple[bytes, bytes], ...] = ()) -> None:
        """`detail` is for the log alone; `headers` are further response header pairs (`Allow`, `WWW-Authenticate`)."""
        super().__init__(detail)
        self.detail = detail
        self.headers = headers

    @property
    def type_uri(self) -> str:
        return TYPE_PREFIX + self.type


# The caller's side: refused before anything went out.


class RequestRefused(RelayError):
    status = 400
    type = "bad-request"
    title = "The request cannot be relayed as it is"
    advice = "Send plain HTTP header fields: no control bytes, one framing, valid names."
    proxy_status = "http_request_error"


class NotHTTP(RequestRefused):
    type = "not-http"
    title = "What arrived is no HTTP request"
    advice = "Send requests of HTTP/1.1, one after the other, each as it says of itself."


class PathRefused(RequestRefused):
    type = "path-ambiguous"
    title = "The path could be read in more than one way"
    advice = "Send a path without dot segments, backslashes or control bytes, in any spelling."


class ParameterRefused(RequestRefused):
    type = "parameter-reserved"
    title = "The query names a parameter that only the relay may set"
    advice = "Leave that parameter out, in every spelling: the relay adds it to each request for this upstream."


class SignatureMisplaced(RequestRefused):
    type = "signature-misplaced"
    title = "The URL's signature is not where it belongs"
    advice = "Leave a signed URL as it was made: relay-signature stands in it once, spelled so, as the last parameter."


class KeyRequired(RelayError):
    status = 401
    type = "key-required"
    title = "This upstream wants a key"
    advice = "Show a relay key, in Relay-Key or as a bearer token, or ask an admin to open the upstream to anyone."
    proxy_status = "http_request_denied"


class KeyRefused(RelayError):
    status = 401
    type = "key-refused"
    title = "This key opens nothing"
    advice = "Check that the whole key was sent, or ask an admin for another: it is unknown, expired or revoked."
    proxy_status = "http_request_denied"


class KeyRevoked(RelayError):
    """What ends an exchange under way, where `KeyRefused` would keep it from beginning."""

    status = 401
    type = "key-revoked"
    title = "The key's rights ended while the exchange was under way"
    advice = "Ask an admin for a new key, or for the grant."
    proxy_status = "http_request_denied"


class NotGranted(RelayError):
    status = 403
    type = "not-granted"
    title = "This caller may not do that here"
    advice = "Ask an admin for a grant of this upstream, with this method and path in it."
    proxy_status = "http_request_denied"


class SignatureRefused(RelayError):
    status = 403
    type = "signature-refused"
    title = "This URL's signature is not valid here"
    advice = (
        "Use the URL byte for byte as it was signed, with the method it was signed for; if it is, its signing key was "
        "revoked: ask for a new URL."
    )
    proxy_status = "http_request_denied"


class SignatureExpired(SignatureRefused):
    type = "signature-expired"
    title = "This signed URL has expired"
    advice = "Ask whoever gave you the URL for a new one."


class WorkerRefused(RelayError):
    status = 403
    type = "service-worker-refused"
    title = "Service workers are not relayed here"
    advice = "Do without the worker, or ask an admin for a host name of this upstream's own (RELAY_HOSTS)."
    proxy_status = "http_request_denied"


class UpstreamUnknown(RelayError):
    status = 404
    type = "upstream-unknown"
    title = "No upstream is live under this name"
    advice = "Check the name in the URL, or ask an admin to register or enable it."
    proxy_status = "destination_not_found"


class MethodRefused(RelayError):
    status = 405
    type = "method-not-allowed"
    title = "This method is not allowed here"
    advice = "Use one of the methods the Allow header names, or ask an admin to allow this one."
    proxy_status = "http_request_denied"


class CallerTimedOut(RelayError):
    status = 408
    type = "caller-timeout"
    title = "The request body stopped arriving"
    advice = "Send the body without long pauses, or ask an admin to raise the upstream's idle time-out."
    proxy_status = "http_request_error"


class UploadTooSlow(RelayError):
    status = 408
    type = "upload-too-slow"
    title = "The request body arrives too slowly"
    advice = "Send the body faster, or ask an admin to lower the upstream's min upload bytes per second."
    proxy_status = "http_request_error"


class RequestHeadTimedOut(RelayError):
    status = 408
    type = "request-head-timeout"
    title = "The request's head did not arrive in time"
    advice = "Send the request line and all header fields at once."
    proxy_status = "http_request_error"


class FormTimedOut(RelayError):
    status = 408
    type = "form-timeout"
    title = "The request body did not arrive in time"
    advice = "Send the body without pauses."
    proxy_status = "http_request_error"


class CallerStalled(RelayError):
    """Only ever logged: its answer has begun."""

    status = 408
    type = "caller-stalled"
    title = "The caller stopped taking the answer"
    advice = "Read answers as they come."
    proxy_status = "http_request_error"


class RequestTooLarge(RelayError):
    status = 413
    type = "request-too-large"
    title = "The request body is larger than this upstream takes"
    advice = "Send a smaller body, or ask an admin to raise the upstream's max request bytes."
    proxy_status = "http_request_denied"


class FormTooLarge(RelayError):
    status = 413
    type = "form-too-large"
    title = "The request body is larger than the relay's own pages take"
    advice = "Send a smaller body. If this was meant for an upstream, its path begins with /relay/."
    proxy_status = "http_request_denied"


class TargetTooLong(RelayError):
    status = 414
    type = "target-too-long"
    title = "The request's URL is too long"
    advice = "Send a shorter path and query, or send the data as a body."
    proxy_status = "http_request_error"


class HostRefused(RelayError):
    status = 421
    type = "wrong-host"
    title = "The relay does not answer for this host name"
    advice = "Call the relay by a name its operator lists in RELAY_HOSTS or ALLOWED_HOSTS."
    proxy_status = "http_request_denied"


class TooManyUnknownKeys(RelayError):
    status = 429
    type = "too-many-unknown-keys"
    title = "Too many unknown keys came from this address"
    advice = "Wait as long as Retry-After says and show a key that is in force: such a key passes at once."
    proxy_status = "http_request_denied"
    retry_after_seconds = 1


class HeadersTooLarge(RelayError):
    status = 431
    type = "headers-too-large"
    title = "The request's header fields are too large"
    advice = "Send fewer or shorter header fields; cookies are the usual cause."
    proxy_status = "http_request_error"


class HeaderFieldsTooMany(HeadersTooLarge):
    type = "too-many-headers"
    title = "The request has too many header fields"
    advice = "Send fewer header fields."


class TooManyConnections(RelayError):
    status = 429
    type = "too-many-connections"
    title = "Too many connections come from this address"
    advice = "Close connections that are not used, or use them again."
    proxy_status = "http_request_denied"
    retry_after_seconds = 1


class LoopDetected(RelayError):
    status = 508
    type = "loop"
    title = "The upstream leads back to this relay"
    advice = "Ask an admin to look for an upstream whose base URL leads back to the relay."
    proxy_status = "proxy_loop_detected"


# The relay's own state.


class UpstreamFull(RelayError):
    status = 503
    type = "upstream-full"
    title = "This upstream carries as many exchanges as it may"
    advice = "Wait as long as Retry-After says and try again."
    proxy_status = "connection_limit_reached"
    retry_after_seconds = 1


class TargetsUnavailable(RelayError):
    """Raised with the number of seconds after which one may be tried again."""

    status = 503
    type = "targets-unavailable"
    title = "All of this upstream's targets are out of use"
    advice = "Wait as long as Retry-After says and try again."
    proxy_status = "destination_unavailable"
    retry_after_seconds = 1

    def __init__(self, detail: str = "", *, seconds: float = 1.0) -> None:
        super().__init__(detail)
        self.retry_after_seconds = max(1, math.ceil(seconds))


class QueueTimedOut(RelayError):
    status = 503
    type = "queue-timeout"
    title = "This upstream was full, and no turn came in time"
    advice = "Wait as long as Retry-After says and try again."
    proxy_status = "connection_limit_reached"
    retry_after_seconds = 1


class CredentialUnconfirmed(RelayError):
    status = 502
    type = "credential-unconfirmed"
    title = "This upstream's credential waits to be confirmed"
    advice = "Ask an admin to confirm the credential: where the upstream leads has changed since it was set."
    proxy_status = "proxy_configuration_error"


class CredentialUnusable(RelayError):
    status = 502
    type = "credential-unusable"
    title = "This upstream's credential cannot be used"
    advice = "Ask an admin to read the relay's log, which says why, and to set the credential again."
    proxy_status = "proxy_configuration_error"


class BuffersFull(RelayError):
    status = 503
    type = "buffers-full"
    title = "The relay holds as much of buffered answers as it may"
    advice = "Wait as long as Retry-After says and try again; with HTTP/1.1, most answers need no buffer."
    proxy_status = "proxy_internal_response"
    retry_after_seconds = 1


class ServerFull(RelayError):
    status = 503
    type = "server-full"
    title = "The relay has as many connections as it may"
    advice = "Wait as long as Retry-After says and try again."
    proxy_status = "connection_limit_reached"
    retry_after_seconds = 1


class Draining(RelayError):
    status = 503
    type = "draining"
    title = "This relay is shutting down"
    advice = "Try again: another worker or machine will answer."
    proxy_status = "proxy_internal_response"
    retry_after_seconds = 1


# The upstream's side, before a response head arrived.


class UpstreamFailed(RelayError):
    """The upstream, or the way to it, is at fault."""

    status = 502
    type = "upstream-failed"
    title = "The upstream could not be reached"
    advice = "Try again later; if it stays, tell an admin the request id."
    proxy_status = "destination_unavailable"


class EgressRefused(UpstreamFailed):
    type = "egress-refused"
    title = "The upstream's address is not one the relay may connect to"
    advice = "Ask an admin to run `manage.py upstreams check` and, if the address is right, to allow its network."
    proxy_status = "destination_ip_prohibited"


class NameUnresolved(UpstreamFailed):
    type = "dns"
    title = "The upstream's host name could not be resolved"
    advice = "Try again later; if it stays, ask an admin to check the upstream's host name."
    proxy_status = "dns_error"


class ConnectionRefused(UpstreamFailed):
    type = "connection-refused"
    title = "The upstream refused the connection"
    advice = "Try again later: nothing listens at the upstream's port."
    proxy_status = "connection_refused"


class ConnectionFailed(UpstreamFailed):
    type = "connect"
    title = "No connection to the upstream could be made"
    proxy_status = "destination_ip_unroutable"


class TLSFailed(UpstreamFailed):
    type = "tls"
    title = "The TLS handshake with the upstream failed"
    advice = "Ask an admin to run `manage.py upstreams check`."
    proxy_status = "tls_protocol_error"


class CertificateRefused(TLSFailed):
    type = "tls-certificate"
    title = "The upstream's certificate is not to be trusted"
    proxy_status = "tls_certificate_error"


class OutboundProxyFailed(UpstreamFailed):
    type = "outbound-proxy"
    title = "The outbound proxy did not let the connection through"
    advice = "Ask an admin to check the upstream's outbound proxy."
    proxy_status = "connection_refused"


class TokenUnavailable(UpstreamFailed):
    type = "token-unavailable"
    title = "No access token for the upstream could be had"
    advice = "Try again later; if it stays, ask an admin to check the upstream's OAuth credential."
    proxy_status = "proxy_internal_error"


class UpstreamHungUp(UpstreamFailed):
    type = "upstream-hung-up"
    title = "The upstream closed the connection without a whole answer"
    proxy_status = "http_response_incomplete"


class UpstreamProtocolFailed(UpstreamFailed):
    type = "upstream-protocol"
    title = "The upstream's answer is not valid HTTP"
    advice = "Tell an admin the request id: the upstream is at fault."
    proxy_status = "http_protocol_error"


class ResponseTooLarge(UpstreamFailed):
    type = "response-too-large"
    title = "The upstream's answer is larger than this upstream may send"
    advice = "Ask for less at a time, or ask an admin to raise the upstream's max response bytes."
    proxy_status = "http_response_body_size"


class BufferExceeded(UpstreamFailed):
    type = "buffer-exceeded"
    title = "The upstream's answer is too large to be delivered buffered"
    advice = "Ask for less at a time, or ask an admin to raise max buffered bytes or to set delivery to stream."
    proxy_status = "http_response_body_size"


# Time-outs, by phase.


class UpstreamTimedOut(UpstreamFailed):
    status = 504
    type = "timeout"
    title = "The upstream took too long"
    advice = "Try again later, or ask an admin to raise the upstream's time-outs."
    proxy_status = "http_response_timeout"


class ConnectTimedOut(UpstreamTimedOut):
    type = "connect-timeout"
    title = "No connection to the upstream was made in time"
    proxy_status = "connection_timeout"


class HeadTimedOut(UpstreamTimedOut):
    type = "head-timeout"
    title = "The upstream did not begin its answer in time"


class IdleTimedOut(UpstreamTimedOut):
    type = "idle-timeout"
    title = "The upstream fell silent in the middle of its answer"


class UploadTimedOut(UpstreamTimedOut):
    type = "upload-timeout"
    title = "The upstream stopped taking the request body"
    proxy_status = "connection_write_timeout"


class TotalTimedOut(UpstreamTimedOut):
    type = "total-timeout"
    title = "The exchange took longer than this upstream allows"


def every_error() -> list[type[RelayError]]:
    """All the errors a caller can meet, by status and type; docs/errors.md is checked against it."""
    found: list[type[RelayError]] = []
    waiting: list[type[RelayError]] = [RelayError]
    while waiting:
        error = waiting.pop()
        found.append(error)
        waiting.extend(error.__subclasses__())
    return sorted(found, key=lambda error: (error.status, error.type))
