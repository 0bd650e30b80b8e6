"""Three real Kafka brokers, each a controller too, with three copies of everything of which two must have it."""

import base64
import time
import uuid
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Self

from rig import ROOT

with warnings.catch_warnings():
    # kafka-python reads its schemas with importlib.resources.read_text, which Python 3.11 calls deprecated.
    warnings.simplefilter("ignore", DeprecationWarning)
    from kafka import KafkaAdminClient
    from kafka.errors import KafkaError

    from adapters.kafka_broker import PROPERTIES, QUICK_START, KafkaBroker

NODES = 3
FIRST_FAR_PORT = 9_092  # nobody else is in that network
CACHE = ROOT / ".data" / "kafka" / "libs"

OF_THREE = """\
listeners=PLAINTEXT://127.0.0.1:{port}{far},CONTROLLER://127.0.0.1:{controller_port}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}{far}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,FAR:PLAINTEXT,CONTROLLER:PLAINTEXT
node.id={node}
controller.quorum.voters={voters}
controller.quorum.election.timeout.ms=1000
controller.quorum.fetch.timeout.ms=2000
default.replication.factor=3
min.insync.replicas=2
offsets.topic.replication.factor=3
transaction.state.log.replication.factor=3
transaction.state.log.min.isr=2
transaction.abort.timed.out.transaction.cleanup.interval.ms=200
replica.lag.time.max.ms=5000
"""


class Node(KafkaBroker):
    """One of the three."""

    def __init__(
        self, number: int, directory: Path, cluster_id: str, address: str | None, options: Sequence[str]
    ) -> None:
        super().__init__(directory, cache=CACHE, heap_megabytes=256, java_options=options)
        self.number = number
        self._cluster_id = cluster_id
        self._far_port = FIRST_FAR_PORT + number
        self._address = address
        self.voters = ""

    @property
    def voter(self) -> str:
        """How the others find this one."""
        return f"{self.number}@127.0.0.1:{self._controller_port}"

    @property
    def far(self) -> str:
        """host:port for who is in another network, or in this one where there is no other."""
        return f"{self._address}:{self._far_port}" if self._address else self.bootstrap_servers

    def _properties(self, **values: object) -> str:
        ours = OF_THREE.format(
            far=f",FAR://{self.far}" if self._address else "", node=self.number, voters=self.voters, **values
        )
        replaced = {line.split("=")[0] for line in ours.splitlines()}
        kept = [line for line in PROPERTIES.format(**values).splitlines() if line.split("=")[0] not in replaced]
        return "\n".join([*kept, ours])


def _shared_classes(directory: Path) -> list[str]:
    """Options by which Java finds the classes as it left them, which halves the CPU time of a start once more."""
    archive = directory / "classes.jsa"
    options = [*QUICK_START, f"-XX:ArchiveClassesAtExit={archive}"]
    with closing(KafkaBroker(directory / "first", cache=CACHE, java_options=options)) as broker:
        broker.start()
        broker.wait_until_ready()
        broker.stop(120)
    return [f"-XX:SharedArchiveFile={archive}"]


class Brokers:
    """The three; as a context manager they are running, ready, and stopped at the end."""

    def __init__(self, directory: Path, address: str | None = None, *, many_starts: bool = False) -> None:
        options = [*QUICK_START, *(_shared_classes(directory) if many_starts else ())]
        cluster_id = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=").replace("-", "_")
        self.nodes = [
            Node(number, directory / str(number), cluster_id, address, options) for number in range(1, NODES + 1)
        ]
        for node in self.nodes:
            node.voters = ",".join(each.voter for each in self.nodes)
        self._closing = ExitStack()

    @property
    def near(self) -> str:
        """Bootstrap servers for who is where the brokers are."""
        return ",".join(node.bootstrap_servers for node in self.nodes)

    @property
    def far(self) -> str:
        """Bootstrap servers for the publishers."""
        return ",".join(node.far for node in self.nodes)

    def __enter__(self) -> Self:
        with self._closing:
            for node in self.nodes:
                self._closing.callback(node.close)
                self._closing.callback(node.kill)  # first: their data is not needed
            with ThreadPoolExecutor(NODES) as threads:
                list(threads.map(Node.prepare, self.nodes))
            for node in self.nodes:
                node.start()
            for node in self.nodes:
                node.wait_until_ready()
            self._closing = self._closing.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()

    def wait_until_in_sync(self, seconds: float = 60) -> None:
        """Return when every partition has all its copies, so that each may lose one again."""
        deadline = time.monotonic() + seconds
        while not self._are_in_sync():
            assert time.monotonic() < deadline, f"not in sync in {seconds:.0f} s"
            time.sleep(0.1)

    def _are_in_sync(self) -> bool:
        try:
            with closing(KafkaAdminClient(bootstrap_servers=self.near, request_timeout_ms=5_000)) as admin:
                described = admin.describe_topics()
        except KafkaError:
            return False
        return all(len(each["isr_nodes"]) == NODES for topic in described for each in topic["partitions"])
