"""What is wrong with a body, and where, without anything of it."""

import asyncio
from typing import Annotated
from unittest.mock import Mock

import msgspec
import pytest
from aiohttp import StreamReader, hdrs
from aiohttp.base_protocol import BaseProtocol
from aiohttp.test_utils import make_mocked_request
from aiohttp.web_protocol import RequestPayloadError
from multidict import CIMultiDict

from api import bodies
from api.bodies import body_of
from api.problems import BadRequest, Fault, InvalidBody, InvalidJson, PayloadTooLarge, UnsupportedMediaType

MAX_BYTES = 256


class Order(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    reason: Annotated[str, msgspec.Meta(max_length=5)] | None = None
    delay: Annotated[int, msgspec.Meta(ge=0, le=10)] = 0
    ids: list[int] = []


DECODER = msgspec.json.Decoder(Order)


class Sent:
    """A request whose body comes in pieces, and perhaps never ends."""

    def __init__(self, *pieces: bytes, ends: bool = True, **headers: str) -> None:
        protocol = BaseProtocol(asyncio.get_running_loop())
        protocol.connection_made(Mock())
        self.stream = StreamReader(protocol, limit=2**16)
        for piece in pieces:
            self.stream.feed_data(piece)
        if ends:
            self.stream.feed_eof()
        given = CIMultiDict({hdrs.CONTENT_TYPE: "application/json"})
        given.update({name.replace("_", "-"): value for name, value in headers.items()})
        self.request = make_mocked_request("POST", "/", headers=given, payload=self.stream)

    async def read(self) -> Order | None:
        return await body_of(self.request, DECODER, max_bytes=MAX_BYTES)


async def test_a_body_is_read_in_its_shape() -> None:
    assert await Sent(b'{"reason":', b'"why","delay":3}').read() == Order("why", 3)


@pytest.mark.parametrize(
    "content_type",
    ["application/json; charset=utf-8", "Application/JSON", "application/json;x=y", 'application/json;x="'],
)
async def test_the_content_type_may_have_parameters(content_type: str) -> None:
    assert await Sent(b"{}", Content_Type=content_type).read() == Order()


@pytest.mark.parametrize("content_type", ["application/json", "text/plain"])
async def test_no_body_is_none_whatever_its_type(content_type: str) -> None:
    assert await Sent(Content_Type=content_type).read() is None


@pytest.mark.parametrize(
    "content_type",
    [
        "text/plain",
        "text/json",
        "application/jsonp",
        "application/merge-patch+json",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/json, text/plain",
        "json",
        "/",
        ";",
        "\x7f",
    ],
)
async def test_another_content_type_is_not_read(content_type: str) -> None:
    with pytest.raises(UnsupportedMediaType):
        await Sent(b"{}", Content_Type=content_type).read()


async def test_a_body_without_a_content_type_is_not_read() -> None:
    sent = Sent(b"{}")
    request = make_mocked_request("POST", "/", payload=sent.stream)

    with pytest.raises(UnsupportedMediaType):
        await body_of(request, DECODER, max_bytes=MAX_BYTES)


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "identity", "", "canary"])
async def test_a_content_coding_is_refused_before_a_byte_is_read(coding: str) -> None:
    sent = Sent(b"\x1f\x8b", ends=False, Content_Encoding=coding)

    with pytest.raises(UnsupportedMediaType):
        await sent.read()


async def test_a_body_may_be_as_large_as_allowed_and_no_larger() -> None:
    assert await Sent(b"{}" + b" " * (MAX_BYTES - 2)).read() == Order()
    with pytest.raises(PayloadTooLarge):
        await Sent(b"{}" + b" " * (MAX_BYTES - 1)).read()


async def test_a_body_that_says_it_is_too_large_is_not_waited_for() -> None:
    with pytest.raises(PayloadTooLarge):
        await Sent(ends=False, Content_Length=str(MAX_BYTES + 1)).read()


async def test_a_body_that_does_not_end_is_not_kept() -> None:
    with pytest.raises(PayloadTooLarge):
        await Sent(*[b"x" * 100] * 3, ends=False).read()


async def test_a_body_that_does_not_come_in_time_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "READ_TIMEOUT_S", 0.05)

    with pytest.raises(BadRequest):
        await Sent(b"{", ends=False).read()


@pytest.mark.parametrize("broken", [ConnectionResetError(), RequestPayloadError("canary"), TimeoutError()])
async def test_a_body_that_breaks_off_is_a_bad_request(broken: Exception) -> None:
    sent = Sent(b"{", ends=False)
    sent.stream.set_exception(broken)

    with pytest.raises(BadRequest) as refusal:
        await sent.read()

    assert not refusal.value.args


@pytest.mark.parametrize(
    "body",
    [b"canary", b"{", b'{"reason":"a"', b"{}{}", b"\xff", b'{"reason":"\xff"}', b"\xef\xbb\xbf{}",
     "{}".encode("utf-16"), b'{"reason":"\\ud800"}', b'{"reason":NaN}', b"'", b" "],
)  # fmt: skip
async def test_what_is_not_json_is_said_to_be_so(body: bytes) -> None:
    with pytest.raises(InvalidJson):
        await Sent(body).read()


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        (b"null", Fault("", "Expected `object`, got `null`.")),
        (b"[]", Fault("", "Expected `object`, got `array`.")),
        (b'"canary"', Fault("", "Expected `object`, got `str`.")),
        (b'{"reason":1}', Fault("/reason", "Expected `str | null`, got `int`.")),
        (b'{"reason":"canary"}', Fault("/reason", "Expected `str` of length <= 5.")),
        (b'{"delay":-1}', Fault("/delay", "Expected `int` >= 0.")),
        (b'{"delay":1.5}', Fault("/delay", "Expected `int`, got `float`.")),
        (b'{"delay":"1"}', Fault("/delay", "Expected `int`, got `str`.")),
        (b'{"delay":99999999999999999999999999}', Fault("/delay", "Expected `int` <= 10.")),
        (b'{"delay":true}', Fault("/delay", "Expected `int`, got `bool`.")),
        (b'{"ids":[1,"canary"]}', Fault("/ids/1", "Expected `int`, got `str`.")),
        (b'{"canary":1}', Fault("", "Object contains unknown field.")),
        (b'{"x` - at `$.canary":1}', Fault("", "Object contains unknown field.")),
        (b'{"x` - at `$.canary`":1}', Fault("", "Object contains unknown field.")),
        (b'{"reason":"a","canary\\n":{"deep":1}}', Fault("", "Object contains unknown field.")),
    ],
    ids=lambda value: value.decode() if isinstance(value, bytes) else "",
)
async def test_a_fault_has_a_place_and_a_reason_and_nothing_of_the_body(body: bytes, fault: Fault) -> None:
    with pytest.raises(InvalidBody) as refusal:
        await Sent(body).read()

    assert refusal.value.faults == (fault,)
