"""RabbitMQ for tests: virtual hosts on a shared broker, and private brokers that a test may stop, freeze and block."""

import asyncio
import fcntl
import hashlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

import aio_pika
import aiohttp
from aio_pika.exceptions import AMQPError, ChannelClosed

from tests.servers.docker import RABBITMQ, Container, uses_docker
from tests.servers.nodes_network import NodesNetwork
from tests.servers.processes import Process, ServerFailed, free_port, make_folder, remove_folder

MISSING = (
    "the tests need a RabbitMQ: run `make test` as a user who may install packages, install rabbitmq-server, "
    "start Docker, or set REDRIVE_TEST_AMQP_URL"
)
KILLABLE_AFTER_S = 2.5
"""How old a quorum queue must be to outlive its broker's being killed; see `PrivateRabbitmq.kill`."""

# What Redrive declares (contract, section 3): removed before a test where tests cannot have a virtual host each.
_QUEUES = ("redrive.retries", "redrive.retries.bulk", "redrive.retries.dead")
_EXCHANGES = ("redrive",)


@dataclass(frozen=True, slots=True)
class Rabbitmq:
    """A broker on which tests have virtual hosts of their own.

    `url` names its default virtual host and a user who may manage others through the management API. Where
    `management_url` is None, tests take turns on the virtual host of `url` instead, each finding it clean of what
    Redrive declares.

    `keeps_vhosts`: they are left behind, for the broker to take with it. Where a virtual host is removed soon after a
    restart, in the moment in which its queues begin to look after their dead letters, RabbitMQ 3.10 refuses to declare
    such queues from then on, with 541 INTERNAL_ERROR (`rabbit_fifo_dlx_sup` has reached its restart intensity).
    """

    url: str
    management_url: str | None
    keeps_vhosts: bool = False

    @classmethod
    async def at(cls, url: str) -> "Rabbitmq":
        """Return a broker that these tests do not run, with its management API where the usual port has one."""
        guess = cls(url, f"http://{urlsplit(url).hostname}:15672")
        with suppress(aiohttp.ClientError, AMQPError, OSError):
            async with guess.vhost() as proof:  # what answers there may manage another broker of that host
                await (await aio_pika.connect(proof, timeout=60)).close()
                return guess
        return cls(url, None)

    @property
    def port(self) -> int:
        return urlsplit(self.url).port or 5672

    async def manage(self, method: str, path: str, body: object = None) -> object:
        """Call the management API, with a path such as `/api/queues`, and return its answer's JSON, if any."""
        parts = urlsplit(self.url)
        login = aiohttp.encode_basic_auth(unquote(parts.username or "guest"), unquote(parts.password or "guest"))
        timeout = aiohttp.ClientTimeout(total=10)
        async with (
            aiohttp.ClientSession(self.management_url, timeout=timeout, headers={"Authorization": login}) as session,
            session.request(method, path, json=body, raise_for_status=True) as answer,
        ):
            return await answer.json() if answer.content_type == "application/json" else None

    @asynccontextmanager
    async def vhost(self) -> AsyncIterator[str]:
        """Give the AMQP URL of a virtual host with nothing in it; as a rule, remove it afterwards, with connections."""
        if self.management_url is None:
            async with self._turn():
                await self._clear()
                yield self.url
            return
        parts = urlsplit(self.url)
        name = f"redrive-test-{uuid.uuid4().hex[:12]}"
        await self.manage("PUT", f"/api/vhosts/{name}", {})
        try:
            user = quote(unquote(parts.username or "guest"), safe="")
            everything = {"configure": ".*", "write": ".*", "read": ".*"}
            await self.manage("PUT", f"/api/permissions/{name}/{user}", everything)
            yield parts._replace(path=f"/{name}").geturl()
        finally:
            if not self.keeps_vhosts:
                await self.manage("DELETE", f"/api/vhosts/{name}")

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """Hold this broker alone, among the processes of this machine."""
        name = hashlib.sha256(self.url.encode()).hexdigest()[:16]
        with (Path(tempfile.gettempdir()) / f"redrive-broker-{name}.lock").open("a") as lock:
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    await asyncio.sleep(0.05)
                else:
                    break
            yield

    async def _clear(self) -> None:
        connection = await aio_pika.connect(self.url, timeout=60)
        async with connection:
            for queue in _QUEUES:
                with suppress(ChannelClosed):  # some releases answer 404 for what is not there
                    await (await connection.channel()).queue_delete(queue)
            for exchange in _EXCHANGES:
                with suppress(ChannelClosed):
                    await (await connection.channel()).exchange_delete(exchange)


class PrivateRabbitmq(ABC):
    """A broker of one's own, durable over stops and crashes, on a port that stays the same."""

    rabbitmq: Rabbitmq

    @property
    def pid(self) -> int | None:
        """Its first process, from which all others descend; None where it is no process of this machine."""
        return None

    @abstractmethod
    async def start(self) -> None:
        """Start it, or start it again; return when it takes connections (about 10 s). Nothing happens if it runs."""

    @abstractmethod
    async def stop(self) -> None:
        """Shut down in order (about 6 s)."""

    @abstractmethod
    async def kill(self) -> None:
        """Kill every process of it at once, as a power cut would.

        A quorum queue that was declared less than about 1.5 s before is lost by it, or comes back and hangs (measured
        with 3.10: the list of queues is written lazily, unlike their messages). Declare, wait for KILLABLE_AFTER_S, for
        want of anything that tells, then kill.
        """

    @abstractmethod
    async def freeze(self) -> None:
        """Leave its connections open and answer nothing."""

    @abstractmethod
    async def thaw(self) -> None:
        """Go on after a freeze. Nothing happens if it was not frozen."""

    @abstractmethod
    async def block(self) -> None:
        """Raise the memory alarm: publishing connections are told they are blocked, and are not read from any more."""

    @abstractmethod
    async def unblock(self) -> None:
        """Clear the alarm. Nothing happens if it was not raised."""

    async def recover(self) -> None:
        """Undo whatever a test did: it runs and takes messages."""
        await self.thaw()
        await self.start()
        await self.unblock()

    @abstractmethod
    async def close(self) -> None:
        """Kill it and remove its data."""


def _programs() -> Path:
    """Return the folder of the package's own scripts; the wrapper on PATH would switch users."""
    candidates = [Path("/usr/lib/rabbitmq/bin"), *Path("/usr/lib/rabbitmq/lib").glob("rabbitmq_server-*/sbin")]
    candidates += [Path("/opt/homebrew/opt/rabbitmq/sbin"), Path("/usr/local/opt/rabbitmq/sbin")]
    if found := shutil.which("rabbitmq-server"):
        candidates.append(Path(found).resolve().parent)
    for folder in candidates:
        if (folder / "rabbitmq-env").exists() and (folder / "rabbitmq-server").exists():
            return folder
    raise ServerFailed(MISSING)


_OF_A_CLUSTER = "cluster_partition_handling = pause_minority\n"


class LocalRabbitmq(PrivateRabbitmq):
    """The machine's RabbitMQ as a node of its own, in a temporary folder, with an epmd of its own."""

    def __init__(
        self, first: "LocalRabbitmq | None" = None, *, network: NodesNetwork | None = None, settings: str = ""
    ) -> None:
        """A node of its own, or one more for the cluster of `first`, not joined yet.

        `network`: what is between the nodes of a cluster, and tells them where the others are, in place of an epmd.
        """
        self._programs = _programs()
        self._port, self._management_port, distribution_port = free_port(), free_port(), free_port()
        name = f"redrive-test-{self._port}"
        self._network = network
        self._epmd_port = free_port() if network is None else network.add(name, distribution_port)
        self._folder = make_folder("rabbitmq")
        self._first = first
        (self._folder / "rabbitmq.conf").write_text(
            f"management.tcp.ip = 127.0.0.1\nmanagement.tcp.port = {self._management_port}\n"
            f"management.disable_stats = true\nmanagement_agent.disable_metrics_collector = true\n{settings}"
        )
        (self._folder / "enabled_plugins").write_text("[rabbitmq_management].\n")
        cookie = self._folder / ".erlang.cookie"
        self._cookie: str = secrets.token_hex(20) if first is None else first._cookie
        cookie.write_text(self._cookie)
        cookie.chmod(0o400)
        self._env = {
            "PATH": os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"]),
            "LANG": "C.UTF-8",
            "HOME": str(self._folder),
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_CONF_ENV_FILE": os.devnull,
            "RABBITMQ_CONFIG_FILE": str(self._folder / "rabbitmq.conf"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(self._folder / "advanced.config"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self._folder / "enabled_plugins"),
            "RABBITMQ_NODENAME": f"{name}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self._port),
            "RABBITMQ_DIST_PORT": str(distribution_port),
            "RABBITMQ_MNESIA_BASE": str(self._folder / "data"),
            "RABBITMQ_LOG_BASE": str(self._folder / "log"),
            "RABBITMQ_PID_FILE": str(self._folder / "pid"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
            "RUNNING_UNDER_SYSTEMD": "true",  # the script becomes the node, instead of waiting beside it
        }
        self._epmd: Process | None = None
        self._node: Process | None = None
        self._frozen = False
        self._blocked = False
        self.rabbitmq = Rabbitmq(
            f"amqp://guest:guest@127.0.0.1:{self._port}/",
            f"http://127.0.0.1:{self._management_port}",
            keeps_vhosts=True,
        )

    @property
    def node(self) -> str:
        """Its name within a cluster."""
        return self._env["RABBITMQ_NODENAME"]

    @property
    def pid(self) -> int | None:
        return self._node.pid if self._node and self._node.alive else None

    async def join(self) -> None:
        """Join the cluster of the first node; this one has nothing in it yet. Both run."""
        assert self._first is not None
        for command in (["stop_app"], ["join_cluster", self._first.node], ["start_app"]):
            await asyncio.to_thread(self._control, *command)

    def _start_epmd(self) -> None:
        """Start the port mapper ourselves: the one that a node starts for want of one would stay for ever."""
        if self._epmd and self._epmd.alive:
            return
        command = shutil.which("epmd") or next(iter(Path("/usr/lib/erlang").glob("erts-*/bin/epmd")), None)
        if command is None:
            raise ServerFailed(MISSING)
        arguments = [command, "-port", str(self._epmd_port), "-address", "127.0.0.1"]
        self._epmd = Process(arguments, env=self._env, log=self._folder / "epmd.log")

    async def start(self) -> None:
        if self._node and self._node.alive:
            return
        if self._network is None:
            self._start_epmd()
        else:
            await self._network.start()
        self._blocked = False
        self._node = Process([self._programs / "rabbitmq-server"], env=self._env, log=self._folder / "console.log")
        async with asyncio.timeout(90):
            while not (_greets(self._port) and await self._manages()):
                self._node.check()
                await asyncio.sleep(0.1)

    async def _manages(self) -> bool:
        try:
            await self.rabbitmq.manage("GET", "/api/vhosts")
        except aiohttp.ClientError:
            return False
        return True

    async def stop(self) -> None:
        await self.thaw()
        if self._node:
            self._node.send(signal.SIGTERM)
            await self._node.ended(within_s=60)

    async def kill(self) -> None:
        self._frozen = False
        if self._node:
            await self._node.kill()

    async def freeze(self) -> None:
        if self._node and self._node.alive:
            self._node.freeze()
            self._frozen = True

    async def thaw(self) -> None:
        if self._frozen and self._node:
            self._node.thaw()
        self._frozen = False

    async def block(self) -> None:
        await self._set_memory_limit("0")
        self._blocked = True

    async def unblock(self) -> None:
        if self._blocked:
            await self._set_memory_limit("0.6")
        self._blocked = False

    async def _set_memory_limit(self, fraction: str) -> None:
        await asyncio.to_thread(self._control, "set_vm_memory_high_watermark", fraction)

    def _control(self, *arguments: str) -> None:
        done = subprocess.run(
            [self._programs / "rabbitmqctl", "--quiet", *arguments],
            env=self._env,
            cwd=self._folder,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise ServerFailed(f"rabbitmqctl failed: {done.stderr.strip() or done.stdout.strip()}")

    async def close(self) -> None:
        await self.kill()
        if self._epmd:
            await self._epmd.kill()
        remove_folder(self._folder)


class RabbitmqCluster(PrivateRabbitmq):
    """Three nodes of the machine's RabbitMQ that are one broker; each queue has a member on each.

    What is done to it is done to all of its nodes; a test that takes one of them away does that to the node. A node
    that sees only itself pauses, as docs/scaling.md advises: its clients then go to the others.
    """

    def __init__(self) -> None:
        self._network = NodesNetwork()
        first = LocalRabbitmq(network=self._network, settings=_OF_A_CLUSTER)
        others = (LocalRabbitmq(first, network=self._network, settings=_OF_A_CLUSTER) for _ in range(2))
        self.nodes = [first, *others]
        self.rabbitmq = first.rabbitmq
        self._joined = False

    def urls_of(self, url: str) -> str:
        """The same URL for each node, separated by commas."""
        parts = urlsplit(url)
        login, at, _ = parts.netloc.rpartition("@")
        ports = [node.rabbitmq.port for node in self.nodes]
        return ",".join(parts._replace(netloc=f"{login}{at}127.0.0.1:{port}").geturl() for port in ports)

    async def cut_off(self, node: LocalRabbitmq) -> None:
        """Let nothing pass between this node and the two others; programs reach all three."""
        await self._network.cut_off(node.node.partition("@")[0])

    async def join_again(self) -> None:
        """End a `cut_off`. Nothing happens without one."""
        await self._network.heal()

    async def recover(self) -> None:
        await self.join_again()
        await super().recover()

    async def members_online(self, vhost: str, queue: str) -> int:
        """How many members of a queue are online, as far as the nodes know that run."""
        for node in self.nodes:
            with suppress(aiohttp.ClientError, TimeoutError):
                found = await node.rabbitmq.manage("GET", f"/api/queues/{quote(vhost, safe='')}/{queue}")
                assert isinstance(found, dict)
                return len(found["online"])
        return 0

    async def start(self) -> None:
        await asyncio.gather(*(node.start() for node in self.nodes))
        if not self._joined:
            for node in self.nodes[1:]:
                await node.join()
        self._joined = True

    async def stop(self) -> None:
        await asyncio.gather(*(node.stop() for node in self.nodes))

    async def kill(self) -> None:
        await asyncio.gather(*(node.kill() for node in self.nodes))

    async def freeze(self) -> None:
        for node in self.nodes:
            await node.freeze()

    async def thaw(self) -> None:
        for node in self.nodes:
            await node.thaw()

    async def block(self) -> None:
        for node in self.nodes:
            await node.block()

    async def unblock(self) -> None:
        for node in self.nodes:
            await node.unblock()

    async def close(self) -> None:
        for node in reversed(self.nodes):
            await node.close()
        await self._network.close()


def _greets(port: int) -> bool:
    """Say whether an AMQP server answers: a port that merely accepts may be a node that is still starting."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            connection.sendall(b"AMQP\x00\x00\x09\x01")
            return bool(connection.recv(1))
    except OSError:
        return False


class ContainerRabbitmq(PrivateRabbitmq):
    """RabbitMQ in a container."""

    def __init__(self) -> None:
        port, management_port, password = free_port(), free_port(), uuid.uuid4().hex
        self._container = Container(
            RABBITMQ,
            ports={5672: port, 15672: management_port},
            env={"RABBITMQ_DEFAULT_USER": "redrive", "RABBITMQ_DEFAULT_PASS": password},
        )
        self._frozen = False
        self._blocked = False
        self.rabbitmq = Rabbitmq(
            f"amqp://redrive:{password}@127.0.0.1:{port}/", f"http://127.0.0.1:{management_port}", keeps_vhosts=True
        )

    async def start(self) -> None:
        if not self._container.running:
            self._blocked = False
            await self._container.start()
            await self._container.until(self._manages, within_s=120)

    async def _manages(self) -> bool:
        try:
            await self.rabbitmq.manage("GET", "/api/vhosts")
        except (aiohttp.ClientError, TimeoutError):
            return False
        return _greets(self.rabbitmq.port)

    async def stop(self) -> None:
        await self.thaw()
        if self._container.running:
            await self._container.stop()

    async def kill(self) -> None:
        await self.thaw()
        if self._container.running:
            await self._container.kill()

    async def freeze(self) -> None:
        if self._container.running and not self._frozen:
            await self._container.freeze()
            self._frozen = True

    async def thaw(self) -> None:
        if self._frozen:
            await self._container.thaw()
        self._frozen = False

    async def block(self) -> None:
        await self._container.run("rabbitmqctl", "set_vm_memory_high_watermark", "0")
        self._blocked = True

    async def unblock(self) -> None:
        if self._blocked:
            await self._container.run("rabbitmqctl", "set_vm_memory_high_watermark", "0.6")
        self._blocked = False

    async def close(self) -> None:
        await self._container.remove()


def private_rabbitmq() -> PrivateRabbitmq:
    """Return a broker of one's own, not started yet; `close` it in the end. Raises ServerFailed."""
    return ContainerRabbitmq() if uses_docker() else LocalRabbitmq()
