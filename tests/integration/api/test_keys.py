"""The api with an issuer's keys: before there are any, once they were fetched, and while the issuer is away."""

from uuid import uuid4

import pytest
import pytest_asyncio
from aiohttp.test_utils import RawTestServer
from cryptography.hazmat.primitives.asymmetric import ec
from pytest_aiohttp import AiohttpClient

import api.keys
from api.serving import readiness
from shared.ops import Status
from tests.api_server import NO_TOKEN, Api, Serve
from tests.eventually import eventually
from tests.tokens import token
from tests.unit.test_keys import Issuer, jwk

pytestmark = pytest.mark.asyncio(loop_scope="module")

KEY = ec.generate_private_key(ec.SECP384R1())
GOOD = token(key=KEY, alg="ES384", header={"kid": "a"}, exp=4_000_000_000.75, sub=4711)
PATH = f"/api/jobs/{uuid4()}"


@pytest_asyncio.fixture(loop_scope="module")
async def issuer(monkeypatch: pytest.MonkeyPatch, module_client: AiohttpClient) -> Issuer:
    """An issuer that is asked again soon; it has no key yet."""
    monkeypatch.setattr(api.keys, "JWKS_RETRY_S", 0.02)
    monkeypatch.setattr(api.keys, "JWKS_FIRST_RETRY_S", 0.02)
    ours = Issuer()
    ours.url = str((await module_client(RawTestServer(ours.answer_to))).make_url("/keys"))
    return ours


@pytest_asyncio.fixture(loop_scope="module")
async def served(issuer: Issuer, database_url: str, serve: Serve) -> Api:
    return await serve(database_url, jwt_secret=None, jwks_url=issuer.url)


def keys_of(served: Api) -> api.keys.KeySet:
    assert served.parts.keys is not None
    return served.parts.keys


async def test_without_keys_the_api_is_not_ready_and_refuses_no_token(issuer: Issuer, served: Api) -> None:
    await eventually(lambda: issuer.asked > 1)

    answer = await served.get(PATH, token=GOOD)
    assert (answer.status, answer.code, answer.json["retryable"]) == (503, "unavailable", True)
    assert (answer.headers["Retry-After"], answer.headers["Cache-Control"]) == ("1", "no-store")
    assert "WWW-Authenticate" not in answer.headers
    assert (await served.get(PATH, token=NO_TOKEN)).code == "authentication-required"
    assert (await served.get(PATH, token="canary")).code == "invalid-token"
    assert (await served.get("/nowhere", token=GOOD)).status == 404
    without = await readiness(served.parts)
    assert (without.status, without.checks["keys"]) == (Status.UNAVAILABLE, Status.UNAVAILABLE)

    issuer.document = {"keys": [jwk(KEY, kid="a")]}
    await eventually(lambda: keys_of(served).ready)

    assert (await served.get(PATH, token=GOOD)).code == "job-not-found"
    assert (await readiness(served.parts)).checks == {"database": Status.OK, "keys": Status.OK}


@pytest.mark.parametrize("status", [200, 503], ids=["no key", "away"])
async def test_once_there_were_keys_the_api_stays_ready(issuer: Issuer, served: Api, status: int) -> None:
    issuer.document = {"keys": [jwk(KEY, kid="a")]}
    await eventually(lambda: keys_of(served).ready)
    assert 0 < served.counted("redrive_jwks_age_seconds") < 60

    issuer.status, issuer.document, asked = status, {"keys": []}, issuer.asked
    keys_of(served)._fetched_at -= api.keys.JWKS_REFETCH_S
    assert (await served.get(PATH, token=token(key=KEY, alg="ES384", header={"kid": "b"}))).code == "invalid-token"
    await eventually(lambda: issuer.asked > asked + 1)

    assert (await served.get(PATH, token=GOOD)).code == "job-not-found"
    assert (await readiness(served.parts)).status is Status.OK


async def test_without_an_issuer_nothing_is_said_of_its_keys(database_url: str, serve: Serve) -> None:
    running = await serve(database_url)
    assert (await readiness(running.parts)).checks == {"database": Status.OK}
    assert running.counted("redrive_jwks_age_seconds") == 0.0


@pytest.mark.parametrize(("size", "status", "code"), [(8_000, 404, "job-not-found"), (8_001, 401, "invalid-token")])
async def test_a_token_may_have_8000_bytes(database_url: str, size: int, status: int, code: str, serve: Serve) -> None:
    made = next(made for pad in range(5_600, 6_100) if len(made := _of_size(pad, size)) == size)

    running = await serve(database_url)
    answer = await running.get(PATH, token=made)

    assert (answer.status, answer.code) == (status, code)


def _of_size(pad: int, size: int) -> str:
    """A token of about so many bytes: some lengths cannot be had by its claims alone."""
    made = token(pad="x" * pad)
    return token(pad="x" * pad, header={"x": "y" * (size - len(made))}) if 0 < size - len(made) < 40 else made
