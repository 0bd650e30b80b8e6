"""A real Apache Kafka on this machine, one node in KRaft mode, for tests and for `make kafka`.

Invariant: it listens on 127.0.0.1 only, keeps its port over restarts, never outlives the process that started it, and
a directory has one at most.
"""

import base64
import contextlib
import fcntl
import hashlib
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from kafka import KafkaAdminClient
from kafka.errors import KafkaError

log = logging.getLogger(__name__)

POM = Path(__file__).parent / "kafka" / "pom.xml"
DEFAULT_CACHE = Path(".data/kafka/libs")
MAVEN_TIMEOUT_SECONDS = 600
TAIL_CHARACTERS = 2_000
REASONS = tuple(re.compile(pattern, re.MULTILINE) for pattern in (r"^.*\b(?:ERROR|FATAL)\b.*$", r"^Caused by: .*$"))

QUICK_START = ("-XX:TieredStopAtLevel=1",)
"""Half the CPU time until it answers; a broker whose speed is measured goes without."""

# Runs between the parent and the broker: asks the kernel (Linux) for SIGKILL when the parent dies, then becomes the
# broker. A preexec_fn would do the same but is not safe in a process with threads.
DIES_WITH_PARENT = """
import ctypes, os, signal, sys
with __import__("contextlib").suppress(AttributeError, OSError):
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
if os.getppid() != int(sys.argv[1]):
    sys.exit("the parent is gone")
os.execv(sys.argv[2], sys.argv[2:])
"""

PROPERTIES = """\
process.roles=broker,controller
node.id=1
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}
advertised.listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}
controller.listener.names=CONTROLLER
controller.quorum.voters=1@127.0.0.1:{controller_port}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
inter.broker.listener.name=PLAINTEXT
log.dirs={data}
auto.create.topics.enable=false
num.partitions=1
default.replication.factor=1
offsets.topic.num.partitions=4
offsets.topic.replication.factor=1
share.coordinator.state.topic.num.partitions=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
transaction.state.log.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
broker.heartbeat.interval.ms=500
broker.session.timeout.ms=3000
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=500
"""


class KafkaUnavailableError(Exception):
    """The local Kafka cannot be had; the message says what to install or where to look."""


def _executable(name: str, package: str) -> str:
    path = shutil.which(name)
    if path is None:
        message = f"{name} is missing: a local Apache Kafka needs {package} (Debian: apt-get install {package})"
        raise KafkaUnavailableError(message)
    return path


def require_tools() -> None:
    """Raises `KafkaUnavailableError` if Java or Maven is missing."""
    _executable("java", "openjdk-17-jre-headless")
    _executable("mvn", "maven")


def fetch_jars(cache: Path) -> Path:
    """The directory with Kafka's jars, filled by Maven once per `kafka/pom.xml`; safe to call in parallel."""
    directory = cache.absolute() / hashlib.sha256(POM.read_bytes()).hexdigest()[:12]
    if directory.is_dir():
        return directory
    mvn = _executable("mvn", "maven")
    directory.parent.mkdir(parents=True, exist_ok=True)
    with (directory.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if directory.is_dir():
            return directory
        log.info("Fetching the jars of Apache Kafka into %s.", directory)
        with tempfile.TemporaryDirectory(dir=directory.parent) as partial:
            goal = ["dependency:copy-dependencies", "-DincludeScope=runtime", f"-DoutputDirectory={partial}/libs"]
            done = subprocess.run(  # noqa: S603  # our own arguments, no shell
                [mvn, "--batch-mode", "--quiet", "--file", str(POM), *goal],
                capture_output=True,
                text=True,
                timeout=MAVEN_TIMEOUT_SECONDS,
                check=False,
            )
            if done.returncode != 0:
                message = f"Maven could not fetch Apache Kafka: {(done.stdout + done.stderr)[-TAIL_CHARACTERS:]}"
                raise KafkaUnavailableError(message)
            (Path(partial) / "libs").rename(directory)
    return directory


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


class KafkaBroker:
    """One broker process; as a context manager it is started, ready, and stopped at the end.

    With ``directory`` its data is kept there for the next time; without, it is temporary. The thread that calls
    `start` must live as long as the broker: on Linux the kernel kills the broker with it.
    """

    def __init__(
        self,
        directory: Path | None = None,
        *,
        port: int | None = None,
        cache: Path = DEFAULT_CACHE,
        heap_megabytes: int = 512,
        java_options: Sequence[str] = QUICK_START,
    ) -> None:
        self._temporary = None if directory else tempfile.TemporaryDirectory(prefix="conversas-kafka-")
        self._directory = Path(self._temporary.name) if self._temporary else Path(directory or "").absolute()
        self._cache = cache
        self._heap_megabytes = heap_megabytes
        self._java_options = tuple(java_options)
        free, self._controller_port = _free_ports(2)
        self._port = port or free
        self._cluster_id = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=").replace("-", "_")
        self._process: subprocess.Popen[bytes] | None = None
        self._lock: IO[str] | None = None
        self._log_start = 0

    @property
    def bootstrap_servers(self) -> str:
        """Where clients connect: host and port."""
        return f"127.0.0.1:{self._port}"

    @property
    def security(self) -> dict[str, Any]:
        """What a client needs beside the address, in kafka-python's words."""
        return {}

    @property
    def log_path(self) -> Path:
        """What the broker wrote to its standard output and error."""
        return self._directory / "broker.log"

    @property
    def pid(self) -> int | None:
        """The broker's process id while it runs."""
        return self._process.pid if self._process and self._process.poll() is None else None

    def __enter__(self) -> Self:
        try:
            self.start()
            self.wait_until_ready()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> None:
        """Start the process, formatting its storage the first time; does not wait until it answers.

        Raises `KafkaUnavailableError`, and then has changed nothing, where a broker runs on the directory or something
        listens on the port.
        """
        if self.pid is not None:
            return
        lock = self._take_directory()
        self._require_port()
        java, configuration = self.prepare()
        with self.log_path.open("ab") as output:
            self._log_start = output.tell()
            self._process = subprocess.Popen(  # noqa: S603  # our own arguments, no shell
                [
                    *(sys.executable, "-I", "-S", "-c", DIES_WITH_PARENT, str(os.getpid())),
                    *(*java, f"-Xmx{self._heap_megabytes}m", "kafka.Kafka", str(configuration)),
                ],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for us; the broker is stopped in order
                pass_fds=[lock.fileno()],  # a broker that the kernel does not kill with us keeps the directory
            )

    def prepare(self) -> tuple[list[str], Path]:
        """Write its configuration and, the first time, format its storage; how to run Java, and the configuration."""
        self._directory.mkdir(parents=True, exist_ok=True)
        java, data = self._java_command(), self._directory / "data"
        configuration = self._directory / "server.properties"
        configuration.write_text(
            self._properties(port=self._port, controller_port=self._controller_port, data=data), encoding="utf-8"
        )
        if not (data / "meta.properties").exists():
            self._format(java, configuration)
        return java, configuration

    def wait_until_ready(self, timeout_seconds: float = 60) -> None:
        """Return when the broker answers; raises `KafkaUnavailableError` with what its log says if it does not."""
        deadline = time.monotonic() + timeout_seconds
        while time.monotonic() < deadline:
            if self.pid is None:
                break
            if self._listens() and self._answers():
                return
            time.sleep(0.1)
        message = f"Apache Kafka did not get ready on {self.bootstrap_servers}: {self._why()}"
        raise KafkaUnavailableError(message)

    def stop(self, timeout_seconds: float = 30) -> None:
        """Stop it in order (SIGTERM), or by force if that takes too long."""
        self._end(signal.SIGTERM, timeout_seconds)

    def kill(self) -> None:
        """Stop it as a power cut would (SIGKILL)."""
        self._end(signal.SIGKILL, timeout_seconds=30)

    def restart(self) -> None:
        """Start it again on the same data and port, after stopping it if it runs, and wait until it answers."""
        self.stop()
        self.start()
        self.wait_until_ready()

    def pause(self) -> None:
        """Freeze it (SIGSTOP): connections stay open, nothing is answered."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on after `pause`."""
        self._signal(signal.SIGCONT)

    def close(self) -> None:
        """Stop it and drop its data if that was temporary."""
        if self._temporary:
            self.kill()
            self._temporary.cleanup()
        else:
            self.stop()
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _take_directory(self) -> IO[str]:
        """Lock the directory until `close`, or until this process and its broker are dead."""
        if self._lock is not None:
            return self._lock
        self._directory.mkdir(parents=True, exist_ok=True)
        lock = (self._directory / "lock").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            message = (
                f"A broker already runs on {self._directory}; stop it, or use: conversas kafka --port N with another "
                "CONVERSAS_DATA_DIRECTORY"
            )
            raise KafkaUnavailableError(message) from None
        self._lock = lock
        return lock

    def _require_port(self) -> None:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as Kafka does
            try:
                probe.bind(("127.0.0.1", self._port))
            except OSError as error:
                message = (
                    f"Port {self._port} cannot be had ({error.strerror}); stop what uses it, or use: conversas kafka "
                    "--port N (beside another broker: with another CONVERSAS_DATA_DIRECTORY)"
                )
                raise KafkaUnavailableError(message) from None

    def _java_command(self) -> list[str]:
        require_tools()
        java = _executable("java", "openjdk-17-jre-headless")
        jars = fetch_jars(self._cache)
        # The serial collector and few JIT threads: it shares a small machine with what is tested.
        return [
            *(java, "-cp", f"{jars}/*", "-XX:+UseSerialGC", "-Xshare:auto", *self._java_options),
            *("-Dorg.apache.logging.log4j.level=WARN", "-Djava.net.preferIPv4Stack=true", "-Xms64m"),
        ]

    def _format(self, java: list[str], configuration: Path) -> None:
        command = [*java, "kafka.tools.StorageTool", "format", "-t", self._cluster_id, "-c", str(configuration)]
        with self.log_path.open("ab") as output:
            self._log_start = output.tell()
            done = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, timeout=60, check=False)  # noqa: S603  # ours
        if done.returncode != 0:
            message = f"Formatting the storage of Apache Kafka failed: {self._why()}"
            raise KafkaUnavailableError(message)

    def _properties(self, **values: object) -> str:
        """What the broker is configured with."""
        return PROPERTIES.format(**values)

    def _why(self) -> str:
        """What the log says since the last start, in a line or two, and where the log is."""
        content = self.log_path.read_bytes() if self.log_path.exists() else b""
        written = content[self._log_start :].decode("utf-8", "replace").strip()
        found = [match.group().strip() for match in (reason.search(written) for reason in REASONS) if match]
        said = "\n".join(found) or written.rpartition("\n")[2] or "it wrote nothing"
        return said if self._temporary else f"{said}\nIts log: {self.log_path}"

    def _listens(self) -> bool:
        with socket.socket() as probe:
            probe.settimeout(1)
            return probe.connect_ex(("127.0.0.1", self._port)) == 0

    def _answers(self) -> bool:
        try:
            admin = KafkaAdminClient(
                bootstrap_servers=self.bootstrap_servers,
                bootstrap_timeout_ms=5_000,
                request_timeout_ms=5_000,
                **self.security,
            )
        except KafkaError:
            return False
        try:
            return bool(admin.describe_cluster()["brokers"])
        except KafkaError:
            return False
        finally:
            admin.close()

    def _signal(self, number: signal.Signals) -> None:
        if self._process and self._process.poll() is None:
            self._process.send_signal(number)

    def _end(self, number: signal.Signals, timeout_seconds: float) -> None:
        if self._process is None:
            return
        self._signal(number)
        if number is not signal.SIGKILL:
            self._signal(signal.SIGCONT)  # a frozen process does not hear SIGTERM
        try:
            self._process.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None
