"""Trailer fields behind a body in chunks: those that would matter if they became headers of another request."""

from typing import Final

from tests.tokens import token

LEAKED: Final = "leaked-from-a-trailer"

FIELDS: Final[dict[str, str]] = {
    "Accept-Encoding": "gzip",
    "Authorization": f"Bearer {token(sub=LEAKED, exp=4_000_000_000)}",
    "Connection": "close",
    "Content-Encoding": "gzip",
    "Content-Length": "3",
    "Content-Type": "text/plain",
    "Cookie": LEAKED,
    "Expect": LEAKED,
    "Forwarded": f"for={LEAKED}",
    "Host": LEAKED,
    "Idempotency-Key": LEAKED,
    "If-Match": '"0"',
    "If-None-Match": "*",
    "Last-Event-ID": LEAKED,
    "Origin": f"https://{LEAKED}.example",
    "Prefer": "wait=0",
    "Sec-Fetch-Site": "cross-site",
    "Transfer-Encoding": "chunked",
    "Upgrade": "websocket",
    "X-Forwarded-For": "203.0.113.99",
    "X-Forwarded-Proto": LEAKED,
    "X-Request-Id": LEAKED,
    "traceparent": "00-1eaced1eaced1eaced1eaced1eaced1e-1eaced1eaced1eac-01",
}


def with_trailer(path: str, name: str, *, bearer: str, method: str = "POST", body: bytes = b"{}") -> bytes:
    """A request with a body in chunks, and the field behind it."""
    head = (
        f"{method} {path} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {bearer}\r\nContent-Type: application/json\r\n"
        "Transfer-Encoding: chunked\r\n\r\n"
    )
    return head.encode() + b"%x\r\n%b\r\n0\r\n" % (len(body), body) + f"{name}: {FIELDS[name]}\r\n\r\n".encode()
