"""Which answers are compressed, and for whom."""

import asyncio
import gzip
import threading
import time
from typing import Final

import pytest
from aiohttp import hdrs
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict, CIMultiDictProxy

from api import compression
from api.answers import Answer
from api.compression import Compressor, allows_gzip

LARGE: Final = b'{"data":[' + b'{"id":1},' * 1000 + b"{}]}"


def accepting(*lines: str) -> CIMultiDictProxy[str]:
    return CIMultiDictProxy(CIMultiDict([("Accept-Encoding", line) for line in lines]))


@pytest.mark.parametrize(
    ("header", "allowed"),
    [
        (None, False), ("", False), ("gzip", True), ("GZip", True), ("x-gzip", True), ("gzip, deflate, br", True),
        ("br;q=1.0, gzip;q=0.8, *;q=0.1", True), ("*", True), ("*;q=0.5", True), ("gzip;q=0.001", True),
        ("gzip;Q=1", True), ("gzip ; q=1.000", True), ("identity;q=0, gzip", True), ("deflate, *", True),
        ("gzip;q=0", False), ("gzip;q=0.000, *", False), ("*;q=0", False), ("gzip;q=0, br", False),
        ("identity", False), ("identity;q=0", False), ("identity, *;q=0", False), ("br", False), ("gzipped", False),
        ("gzip;q=2", False), ("gzip;q=", False), ("gzip;q=x", False), ("gzip;level=1", False), ("gzip;q=-1", False),
        ("gzip br", False), (",,gzip", True), ("\udcff, gzip", True),
    ],
)  # fmt: skip
def test_gzip_is_for_those_who_name_it_or_anything(header: str | None, allowed: bool) -> None:  # noqa: FBT001
    assert allows_gzip(header) is allowed


@given(st.text(alphabet="gzip*q=;,01. ", max_size=4096))
def test_reading_what_is_accepted_takes_no_time(header: str) -> None:
    started_at = time.thread_time()  # a busy machine takes none of it
    allows_gzip(header)

    assert time.thread_time() - started_at < 0.1


@pytest.mark.parametrize("size", [2048, 20_000, 100_000])
async def test_a_large_answer_is_compressed_and_says_so(size: int) -> None:
    body = b"x" * size
    answer = Answer(body)

    await Compressor().compress(answer, accepting("deflate", "gzip;q=0.5"))

    assert answer.body is not None
    assert gzip.decompress(answer.body) == body
    assert answer.headers["Content-Length"] == str(len(answer.body))
    assert (answer.headers["Content-Encoding"], answer.headers["Vary"]) == ("gzip", "Accept-Encoding")


async def test_a_client_that_takes_no_gzip_is_told_that_others_may_get_it() -> None:
    answer = Answer(LARGE, headers={"Vary": "Origin"})

    await Compressor().compress(answer, accepting("identity"))

    assert answer.body == LARGE
    assert "Content-Encoding" not in answer.headers
    assert answer.headers["Vary"] == "Origin, Accept-Encoding"


@pytest.mark.parametrize(
    "answer",
    [Answer(b"x" * 2047), Answer(LARGE, headers={"ETag": '"1"'}),
     Answer(LARGE, headers={hdrs.ETAG: '"1"'}), Answer(None, status=304, headers={"ETag": '"1"'}),
     Answer(None, status=204)],
    ids=["small", "tagged", "tagged, as aiohttp spells it", "304", "204"],
)  # fmt: skip
async def test_all_else_is_sent_as_it_is(answer: Answer) -> None:
    body = answer.body

    await Compressor().compress(answer, accepting("gzip"))

    assert answer.body is body
    assert {"Vary", "Content-Encoding"}.isdisjoint(answer.headers)


async def test_what_waits_for_threads_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compression, "APART_AT_ONCE_BYTES", 250_000)
    compressor, answers = Compressor(), [Answer(b"x" * 100_000) for _ in range(5)]

    all_asked, gzipped = threading.Event(), compression._gzipped

    def gzipped_once_all_have_asked(body: bytes) -> bytes:
        assert all_asked.wait(10)
        return gzipped(body)

    monkeypatch.setattr(compression, "_gzipped", gzipped_once_all_have_asked)
    asked = [asyncio.create_task(compressor.compress(answer, accepting("gzip"))) for answer in answers]
    asyncio.get_running_loop().call_soon(all_asked.set)  # after the first steps of the tasks
    await asyncio.gather(*asked)
    late = Answer(b"x" * 100_000)
    await compressor.compress(late, accepting("gzip"))

    assert [answer.headers.get("Content-Encoding") for answer in answers] == ["gzip", "gzip", None, None, None]
    assert {answer.headers["Vary"] for answer in answers} == {"Accept-Encoding"}
    assert late.headers["Content-Encoding"] == "gzip"
