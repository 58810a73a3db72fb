"""The command: which parts, in full or in short, and where the figures go."""

import argparse
import asyncio
import os
import resource
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec
import uvloop

from bench import (
    adapters,
    before,
    console,
    growth,
    ledger,
    memory,
    reading,
    report,
    retrying,
    scaling,
    tracing,
    waiting,
)
from bench.client import Disconnected, NothingMeasured
from bench.load import Loader, WrkFailed
from bench.machine import NONE, load_average, machine_of
from bench.part import Stage
from bench.plan import FULL, SMOKE, Plan
from bench.programs import ROOT
from bench.results import Results, Run, decoded, encoded
from bench.servers import postgres_server, rabbitmq_server
from tests.checkout import commit
from tests.servers.processes import ServerFailed, make_folder, remove_folder

BEFORE: Final = "before"
PARTS: Final = {
    "reading": reading.measure,
    "waiting": waiting.measure,
    "growth": growth.measure,
    "memory": memory.measure,
    "retrying": retrying.measure,
    "scaling": scaling.measure,
    "ledger": ledger.measure,
    "adapters": adapters.measure,
    "console": console.measure,
    "tracing": tracing.measure,
    BEFORE: before.measure,
}
NEEDS_BROKER: Final = frozenset({"retrying", "scaling", BEFORE})
CAN_BE_LEFT_OUT: Final = ("bare", "plain", "fastapi", "inline", "ack_only", "celery", "wrk", console.CHROMIUM)
REPORT: Final = "report"


def main() -> None:
    arguments = _arguments(sys.argv[1:])
    smoke = bool(arguments.smoke)
    out = arguments.out or (Path(tempfile.mkdtemp(prefix="redrive-bench-")) if smoke else None)
    file = (ROOT / "bench" if out is None else out) / "results.json"
    docs = ROOT / "docs" if out is None else out
    parts = arguments.parts or [part for part in PARTS if part != BEFORE or before.VARIABLE in os.environ]
    try:
        if parts != [REPORT]:
            without = frozenset(arguments.without.split(",")) - {""}
            uvloop.run(_measure([part for part in PARTS if part in parts], SMOKE if smoke else FULL, without, file))
        report.write(decoded(file.read_bytes()), docs)
    except (ServerFailed, WrkFailed, NothingMeasured, Disconnected, OSError, TimeoutError) as error:
        sys.exit(f"bench: {type(error).__name__}: {error}")
    print(f"{file}\n{docs / report.PAGE}")


def _arguments(given: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure Redrive beside others.")
    parser.add_argument("parts", nargs="*", choices=[*PARTS, REPORT, []], help="what to measure; nothing: everything")
    parser.add_argument("--smoke", action="store_true", help="all of it in seconds; the figures mean nothing")
    parser.add_argument("--without", default="", metavar="NAME,…", help=f"leave out: {', '.join(CAN_BE_LEFT_OUT)}")
    parser.add_argument(
        "--out", type=Path, help="a folder for results and page; by default bench/ and docs/, for --smoke a new one"
    )
    arguments = parser.parse_args(given)
    if unknown := set(arguments.without.split(",")) - {*CAN_BE_LEFT_OUT, ""}:
        parser.error(f"cannot be left out: {', '.join(sorted(unknown))}")
    if REPORT in arguments.parts and len(arguments.parts) > 1:
        parser.error("report stands alone")
    return arguments


async def _measure(parts: Sequence[str], plan: Plan, without: frozenset[str], file: Path) -> None:
    """Measure, and write after each part; a part that fails leaves the figures of the others."""
    _raise_open_files()
    folder = make_folder("bench")
    async with AsyncExitStack() as stack:
        stack.callback(remove_folder, folder)
        postgres = await stack.enter_async_context(postgres_server())
        broker = await stack.enter_async_context(rabbitmq_server()) if NEEDS_BROKER & set(parts) else None
        stage = Stage(
            plan=plan,
            without=without,
            postgres=postgres.postgres,
            rabbitmq=None if broker is None else broker.rabbitmq,
            postgres_pid=postgres.pid,
            rabbitmq_pid=None if broker is None else broker.pid,
            folder=folder,
            loader=Loader(folder, with_wrk="wrk" not in without),
            say=lambda text: print(text, file=sys.stderr, flush=True),
        )
        machine = await machine_of(stage.postgres, stage.rabbitmq)
        results = _known(file, Results(machine=machine, runs={}))
        for part in parts:
            load_before, began_at = load_average(), time.perf_counter()
            async with asyncio.timeout(plan.part_limit_s):
                measured = await PARTS[part](stage)
            setattr(results, part, measured)
            results.runs[part] = Run(
                at=datetime.now(UTC).isoformat(timespec="seconds"),
                command=shlex.join(["python", "-m", "bench", *sys.argv[1:]]),
                commit=commit(),
                smoke=plan.smoke,
                without=sorted(without),
                load_before=load_before,
                took_s=round(time.perf_counter() - began_at, 1),
            )
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(encoded(results))  # noqa: ASYNC240 - nothing else goes on


def _known(file: Path, new: Results) -> Results:
    """The figures that are there, where they are of this machine and these versions; else none."""
    try:
        known = decoded(file.read_bytes())
    except (OSError, msgspec.ValidationError, msgspec.DecodeError):
        return new
    if NONE in (known.machine.rabbitmq, new.machine.rabbitmq):  # it was not needed then, or is not now
        found = max(known.machine.rabbitmq, new.machine.rabbitmq, key=lambda version: version != NONE)
        known.machine = msgspec.structs.replace(known.machine, rabbitmq=found)
        new.machine = msgspec.structs.replace(new.machine, rabbitmq=found)
    return known if known.machine == new.machine else new


def _raise_open_files() -> None:
    """Allow this process and its children as many descriptors as there may be: a waiter takes one at each end."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


if __name__ == "__main__":
    main()
