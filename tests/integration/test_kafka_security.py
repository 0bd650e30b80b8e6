"""TLS and SASL as they are set, against a real broker that asks for both, with the rights that the document lists."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from contact_keyring import keys_of
from kafka import KafkaAdminClient, KafkaConsumer
from kafka.admin import ACL, ACLOperation, ACLPermissionType, ACLResourcePatternType, ResourcePattern, ResourceType

from adapters.command_handler import CommandHandler
from adapters.kafka_broker import PROPERTIES, KafkaBroker, KafkaUnavailableError
from api import demo
from api.settings import Settings, kafka_security

pytestmark = pytest.mark.kafka

ROOT = Path(__file__).parents[2]
CACHE = ROOT / ".data" / "kafka" / "libs"
ADMIN, PUBLISHER, CONSUMER, PROJECTOR = "admin", "publisher", "consumer", "projector"
PASSWORD = "s3cret-of-"


class SecureBroker(KafkaBroker):
    """Speaks TLS with a certificate of its own and knows four users; one of them may do everything."""

    @property
    def certificate(self) -> Path:
        return self._directory / "certificate.pem"

    @property
    def security(self) -> dict[str, Any]:
        return {
            "security_protocol": "SASL_SSL",
            "sasl_mechanism": "PLAIN",
            "sasl_plain_username": ADMIN,
            "sasl_plain_password": PASSWORD + ADMIN,
            "ssl_cafile": str(self.certificate),
        }

    def _properties(self, **values: object) -> str:
        key, both = self._directory / "key.pem", self._directory / "both.pem"
        if not both.exists():
            options = "-x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=127.0.0.1 -addext subjectAltName=IP:127.0.0.1"
            subprocess.run(
                ["openssl", "req", *options.split(), "-keyout", key, "-out", self.certificate],
                check=True,
                capture_output=True,
            )
            both.write_text(key.read_text() + self.certificate.read_text())
        users = " ".join(f'user_{name}="{PASSWORD}{name}"' for name in (ADMIN, PUBLISHER, CONSUMER, PROJECTOR))
        plain = "org.apache.kafka.common.security.plain.PlainLoginModule"
        given = PROPERTIES.format(**values).replace("CONTROLLER:PLAINTEXT", "CONTROLLER:-")
        return f"""{given.replace("PLAINTEXT", "SASL_SSL").replace("CONTROLLER:-", "CONTROLLER:PLAINTEXT")}
sasl.enabled.mechanisms=PLAIN
sasl.mechanism.inter.broker.protocol=PLAIN
listener.name.sasl_ssl.plain.sasl.jaas.config={plain} required username="{ADMIN}" password="{PASSWORD}{ADMIN}" {users};
ssl.keystore.type=PEM
ssl.keystore.location={both}
ssl.truststore.type=PEM
ssl.truststore.location={self.certificate}
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
super.users=User:{ADMIN};User:ANONYMOUS
"""


@pytest.fixture(scope="module")
def broker() -> Iterator[SecureBroker]:
    try:
        with SecureBroker(cache=CACHE) as found:
            yield found
    except KafkaUnavailableError as error:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(str(error))


KINDS = {
    "topic": ResourceType.TOPIC,
    "transactional id": ResourceType.TRANSACTIONAL_ID,
    "group": ResourceType.GROUP,
    "cluster": ResourceType.CLUSTER,
}


def listed() -> list[tuple[str, str, str, str]]:
    """Who needs what, as the document lists it: user, kind of resource, its name, operation."""
    text = (ROOT / "docs" / "FEED.md").read_text()
    rows = re.findall(
        r"^\| (\w+) \| (topic|transactional id|group|cluster) \| `([^`]+)` \| ([\w, ]+) \|$", text, re.MULTILINE
    )
    return [(who, kind, name, operation) for who, kind, name, some in rows for operation in some.split(", ")]


def allow(broker: SecureBroker, acls: list[tuple[str, str, str, str]], prefix: str) -> None:
    with closing(KafkaAdminClient(bootstrap_servers=broker.bootstrap_servers, **broker.security)) as client:
        client.create_acls(
            [
                ACL(
                    principal=f"User:{who}",
                    host="*",
                    operation=ACLOperation[re.sub(r"(?<=[a-z])(?=[A-Z])", "_", operation).upper()],
                    permission_type=ACLPermissionType.ALLOW,
                    resource_pattern=ResourcePattern(
                        KINDS[kind],
                        name.rstrip("*").replace("conversations", prefix),
                        ACLResourcePatternType.PREFIXED if name.endswith("*") else ACLResourcePatternType.LITERAL,
                    ),
                )
                for who, kind, name, operation in acls
            ]
        )


def environment(broker: SecureBroker, database: str, prefix: str, **more: str) -> dict[str, str]:
    given = {
        "DATABASE_URL": database,
        "KAFKA_BOOTSTRAP_SERVERS": broker.bootstrap_servers,
        "KAFKA_TOPIC_PREFIX": prefix,
        "KAFKA_PARTITIONS": "2",
        "KAFKA_SECURITY_PROTOCOL": "SASL_SSL",
        "KAFKA_SASL_MECHANISM": "PLAIN",
        "KAFKA_SASL_USERNAME": PUBLISHER,
        "KAFKA_SASL_PASSWORD": PASSWORD + PUBLISHER,
        "KAFKA_SSL_CAFILE": str(broker.certificate),
        "LOG_LEVEL": "error",
    } | more
    return os.environ | {f"CONVERSAS_{name}": value for name, value in given.items()}


def conversas(command: str, variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "api", command], cwd=ROOT, env=variables, capture_output=True, text=True, timeout=240,
        check=False,
    )  # fmt: skip


def fill(database: str) -> None:
    with closing(CommandHandler(database, keys_of(database))) as handler:
        demo.load(handler)


def consume(broker: SecureBroker, topic: str, seconds: float = 120) -> Iterator[Any]:
    settings = broker.security | {"sasl_plain_username": CONSUMER, "sasl_plain_password": PASSWORD + CONSUMER}
    consumer = KafkaConsumer(
        topic,
        bootstrap_servers=broker.bootstrap_servers,
        isolation_level="read_committed",
        auto_offset_reset="earliest",
        enable_auto_commit=False,
        consumer_timeout_ms=int(seconds * 1_000),
        **settings,
    )
    with closing(consumer):
        yield from consumer


AS_PROJECTOR = {"KAFKA_SASL_USERNAME": PROJECTOR, "KAFKA_SASL_PASSWORD": PASSWORD + PROJECTOR}


def is_projected(database: str, variables: dict[str, str]) -> bool:
    """Whether a projector from Kafka brings every read model to the end of the log."""
    command = [sys.executable, "-m", "api", "project", "--from", "kafka"]
    behind = "select from projection_positions where position < (select max(position) from events)"
    came = "select from projection_shares where position > 0"
    with (
        subprocess.Popen(command, cwd=ROOT, env=variables) as process,
        psycopg.connect(database, autocommit=True) as connection,
    ):
        deadline, is_there = time.monotonic() + 240, False
        while not is_there and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
            is_there = connection.execute(behind).fetchone() is None and connection.execute(came).fetchone() is not None
        process.send_signal(signal.SIGTERM)
        return is_there and process.wait(120) == 0


def test_with_exactly_the_rights_that_are_listed_it_makes_topics_publishes_is_read_and_projected(
    database: str, broker: SecureBroker
) -> None:
    prefix = f"secure-{uuid4()}"
    assert len(listed()) > 10
    allow(broker, listed(), prefix)
    fill(database)
    variables = environment(broker, database, prefix)
    made = conversas("topics", variables)
    assert (made.returncode, made.stderr) == (0, "")
    with subprocess.Popen(
        [sys.executable, "-m", "api", "publish"], cwd=ROOT, env=variables, stderr=subprocess.PIPE, text=True
    ) as publisher:
        try:
            first = next(consume(broker, f"{prefix}.events.v1"))
            state = next(consume(broker, f"{prefix}.latest.v1"))
            assert is_projected(database, variables | environment(broker, database, prefix, **AS_PROJECTOR))
        finally:
            publisher.send_signal(signal.SIGTERM)
    assert dict(first.headers)["ce_type"] == b"conversation-opened.v1"
    told = dict(state.headers)
    assert b"/workspaces/" + state.key == told["ce_source"] + b"/" + told["ce_subject"]


@pytest.mark.parametrize("without", [("publisher", "transactional id"), ("publisher", "topic")])
def test_canary_without_one_kind_of_them_it_does_not_publish(
    without: tuple[str, str], database: str, broker: SecureBroker
) -> None:
    prefix = f"secure-{uuid4()}"
    allow(broker, [each for each in listed() if each[:2] != without], prefix)
    refused = conversas("publish", environment(broker, database, prefix))
    assert refused.returncode != 0


def test_what_is_wrong_is_refused_and_says_nothing_of_the_password(database: str, broker: SecureBroker) -> None:
    """All at once: each waits for Kafka as long as it may."""
    wrong = (
        {"KAFKA_SASL_PASSWORD": "guessed"},
        {"KAFKA_SSL_CAFILE": "/etc/ssl/certs/ca-certificates.crt"},
        {"KAFKA_SECURITY_PROTOCOL": "SASL_PLAINTEXT"},
    )
    started = time.monotonic()
    with ThreadPoolExecutor() as pool:
        variables = [environment(broker, database, f"secure-{uuid4()}", **each) for each in wrong]
        for refused in pool.map(partial(conversas, "topics"), variables):
            assert refused.returncode == 1
            assert refused.stderr.startswith(f"Kafka at {broker.bootstrap_servers}: ")
            assert "Traceback" not in refused.stderr
            assert PASSWORD not in refused.stderr
    assert time.monotonic() - started < 45


def test_settings_that_do_not_go_together_are_refused_by_name() -> None:
    variables = os.environ | {"CONVERSAS_KAFKA_SECURITY_PROTOCOL": "SASL_SSL", "CONVERSAS_KAFKA_SASL_USERNAME": "x"}
    refused = conversas("settings", variables)
    assert refused.returncode == 1
    assert "CONVERSAS_KAFKA_SASL_PASSWORD: " in refused.stderr


def test_a_client_is_told_what_is_set_and_nothing_else() -> None:
    assert kafka_security(Settings()) == {"security_protocol": "PLAINTEXT"}
    both = Settings(kafka_security_protocol="SSL", kafka_ssl_certfile=Path("c"), kafka_ssl_keyfile=Path("k"))
    assert kafka_security(both) == {"security_protocol": "SSL", "ssl_certfile": "c", "ssl_keyfile": "k"}
