"""What the tests of hostile clients share: the api they attack, many requests on few connections, and the count.

They break no server, so they do without the rig: one api process, on the servers that the whole run shares.
"""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from random import Random
from typing import Final, TypeVar

import pytest

from tests.acceptance.chaos.tally import SCALE, Tally, write_down
from tests.acceptance.programs import Program
from tests.servers.processes import free_port
from tests.tokens import SECRET

GROUP: Final = pytest.mark.xdist_group("hostile clients")
"""One worker for all of them: two at once would measure each other."""

_HOST: Final = "127.0.0.1"
_LENGTH: Final = re.compile(rb"\r\nContent-Length: (\d+)\r\n", re.IGNORECASE)
_VARYING: Final = re.compile(rb"\r\n(?:Date|RateLimit|RateLimit-Policy): [^\r]*", re.IGNORECASE)

Record = Callable[[str, object], None]
T = TypeVar("T")


@dataclass(slots=True)
class Attack:
    """How many hostile requests there were, and those that came to something."""

    promise: str
    what: str
    """What was tried, and what had to hold, for those who read the table."""
    seed: int
    tried: int = 0
    wrong: list[object] = field(default_factory=list)

    @property
    def rng(self) -> Random:
        """Random choices that depend on the seed and the promise alone."""
        return Random(f"{self.seed} {self.promise}")

    def mind(self, fine: object, otherwise: object) -> None:
        """Count one thing that had to hold; `otherwise` is what is to be told where it did not."""
        self.tried += 1
        if not fine:
            self.wrong.append(otherwise)


@contextmanager
def attack(promise: str, what: str, record: Record, *, random: bool = False) -> Iterator[Attack]:
    """Attack while the block runs; then nothing may have come of it.

    One JSON line goes to the file for results, also of an attack that has come to something. `random` says whether
    there is a seed to replay it from.
    """
    began_at = time.monotonic()
    attacked = Attack(promise, what, Tally.of(promise).seed)
    try:
        yield attacked
    finally:
        seconds = round(time.monotonic() - began_at, 1)
        seed = attacked.seed if random else None
        bound = 3 / attacked.tried if attacked.tried else 1.0
        facts = {
            "kind": "door", "promise": promise, "tried": attacked.tried, "wrong": len(attacked.wrong), "bound": bound,
            "seed": seed, "scale": SCALE, "seconds": seconds, "what": attacked.what,
            "such_as": [str(each)[:1000] for each in attacked.wrong[:3]],
        }  # fmt: skip
        write_down(facts)
        record(
            "tally",
            f"{promise}: tried {attacked.tried}, wrong {len(attacked.wrong)}, bound {bound:.1e}"
            + (f", seed {seed}" if seed else "")
            + f", {seconds} s: {attacked.what}",
        )
    assert not attacked.wrong, attacked.wrong[:10]
    assert attacked.tried


# -- the api


@dataclass(frozen=True, slots=True)
class Target:
    """An api process."""

    program: Program
    port: int

    @property
    def memory_kib(self) -> int:
        """What it occupies now."""
        return resident_kib(self.program.pid)


def resident_kib(pid: int | None = None) -> int:
    """How much memory a process occupies now; this one, unless told otherwise."""
    status = Path(f"/proc/{'self' if pid is None else pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1])


@asynccontextmanager
async def target(database_url: str, *, looks: bool = True, **settings: str) -> AsyncIterator[Target]:
    """Start an api without limits, unless `settings` has some. `looks`: it looks at its database beside requests."""
    port = free_port()
    given = {
        "DATABASE_URL": database_url, "JWT_SECRET": SECRET, "PORT": str(port), "LIMIT_IP": "off", "LIMIT_READ": "off",
        "LIMIT_RETRY": "off", "LIMIT_BULK": "off", **settings,
    }  # fmt: skip
    module = None if looks else "tests.acceptance.chaos.without_looks"
    async with Program.started("api", module=module, **given) as program:
        await program.until_ready()
        yield Target(program, port)


# -- many requests on few connections


def request(method: str, path: str, bearer: str, *lines: str, body: bytes = b"") -> bytes:
    """A whole request, always under the same request id, so that answers can be compared byte for byte."""
    head = [f"{method} {path} HTTP/1.1", "Host: a", f"Authorization: Bearer {bearer}", "X-Request-Id: the-same", *lines]
    if body:
        head += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join([*head, "", ""]).encode("latin-1") + body


def unvarying(answer: bytes) -> bytes:
    """All of an answer that neither the clock nor a limit has a part in."""
    return _VARYING.sub(b"", answer)


async def ask_all(
    port: int,
    requests: Iterable[tuple[T, bytes]],
    see: Callable[[T, bytes], None],
    *,
    connections: int = 16,
    in_line: int = 16,
) -> None:
    """Send each request, and let `see` have whatever it came with and the whole answer.

    The api must answer it with a length, and leave the connection open after it.
    """
    left = iter(requests)

    async def converse() -> None:
        reader, writer = await asyncio.open_connection(_HOST, port, limit=2**20)
        try:
            while some := list(islice(left, in_line)):
                writer.write(b"".join(one for _, one in some))
                await writer.drain()
                async with asyncio.timeout(30):
                    for about, _ in some:
                        see(about, await _answer(reader))
        finally:
            writer.transport.abort()

    async with asyncio.TaskGroup() as group:
        for _ in range(connections):
            group.create_task(converse())


async def _answer(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    length = _LENGTH.search(head)
    assert length is not None, head
    return head + await reader.readexactly(int(length[1]))
