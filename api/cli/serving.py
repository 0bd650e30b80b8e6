"""Commands that run until they are stopped: all in one, or API, projector and broker each alone.

Invariant: Ctrl-C and SIGTERM stop each of them cleanly.
"""

import os
import socket
from contextlib import closing, suppress
from typing import Annotated, Literal

import typer

from adapters.command_handler import CommandHandler
from adapters.erasures import is_behind
from adapters.identity import digest, new_secret
from adapters.postgres import connect
from adapters.projector import Projector, stale
from api import demo
from api.cli import feeding
from api.cli.shell import app, complete, database, err, load_settings, out
from api.cli.tending import rebuild_each
from api.keys import DEFAULT_FILE, check_master_keys, contact_keys_of
from api.settings import PREFIX, Settings
from api.supervisor import stop_on_signals, supervise, watch_supervisor
from domain.errors import AlreadyExistsError
from projections.directory import HOLDER_QUERY
from projections.listing import Listing


@app.command()
def run() -> None:
    """Run all in one: API, projector and (where Kafka is set) publisher, on demo data, until Ctrl-C."""
    chosen = load_settings()
    _check_port(chosen)
    check_master_keys(chosen)
    stop = stop_on_signals()
    with database(chosen, new=True) as url:
        keys = contact_keys_of(chosen, url)
        handler = CommandHandler(url, keys)
        new = demo.load(handler)
        token = _bootstrap_token(chosen, handler)
        handler.close()
        rebuild_each(url, stale(url), keys)
        projector = Projector(url, keys=keys)
        projector.catch_up()
        projector.close()
        _check_token(url, token)
        _welcome(chosen, token, new)
        publishers = range(1, chosen.kafka_publishers + 1) if chosen.kafka_bootstrap_servers else ()
        names = ["serve", "project", *(f"publish --publisher {number}" for number in publishers)]
        supervise(names, {**os.environ, **_told_to_children(chosen, url)}, stop)
    out.print("Stopped.")


def _told_to_children(chosen: Settings, url: str) -> dict[str, str]:
    """The settings that the parts need where the embedded database's are made up."""
    told = {f"{PREFIX}DATABASE_URL": url}
    made_up = (chosen.data_directory / DEFAULT_FILE).absolute()
    is_set = chosen.master_keys is not None or chosen.master_key_file is not None
    if chosen.database_url is None and not is_set and made_up.exists():
        told[f"{PREFIX}MASTER_KEY_FILE"] = str(made_up)
    return told


def _check_port(chosen: Settings) -> None:
    with socket.socket(socket.AF_INET6 if ":" in chosen.host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((chosen.host, chosen.port))
        except OSError as error:
            where, other = f"{chosen.host}:{chosen.port}", chosen.port + 1
            raise SystemExit(
                f"Cannot serve on {where} ({error.strerror}); stop what serves there, or set {PREFIX}PORT={other}"
            ) from None


def _bootstrap_token(chosen: Settings, handler: CommandHandler) -> str:
    """The token that is set, or one that is made up and kept where only this user can read it; given to the admin."""
    if chosen.bootstrap_token is not None:
        token = chosen.bootstrap_token.get_secret_value()
        try:
            demo.give_token(handler, token)
        except AlreadyExistsError:
            raise SystemExit(f"The token in {PREFIX}BOOTSTRAP_TOKEN was revoked; set another one") from None
        return token
    path = chosen.data_directory / "bootstrap-token"
    token = path.read_text().strip() if path.exists() else ""
    if token:
        with suppress(AlreadyExistsError):  # it was revoked: make up another
            demo.give_token(handler, token)
            return token
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.touch(mode=0o600)
    path.write_text(token := new_secret())
    demo.give_token(handler, token)
    return token


def _check_token(url: str, token: str) -> None:
    with connect(url) as connection:
        if connection.execute(HOLDER_QUERY, (digest(token.encode()),)).fetchone() is None:
            err.print("The token below does not work, because its agent was deactivated: conversas token create --help")


def _welcome(chosen: Settings, token: str, new: int) -> None:
    base = f"http://{chosen.host}:{chosen.port}"
    lines = [
        f"Conversas is starting on {base}; Ctrl-C stops it.",
        f"  In a browser   {base}/ (sign in with the access token)",
        f"  API to try     {base}/docs",
        f"  Is it ready?   {base}/readyz",
        f"  Access token   {token}",
        f"  Demo data      {f'{new} events loaded' if new else 'there already'}",
        f"  First look     curl -H 'Authorization: Bearer {token}' {base}/v1/conversations",
    ]
    if chosen.kafka_bootstrap_servers is None:
        lines.append(
            "  Kafka          off; start a broker with 'make kafka' and set"
            f" {PREFIX}KAFKA_BOOTSTRAP_SERVERS=127.0.0.1:9092 to publish"
        )
    else:
        lines.append(f"  Kafka          publishing to {chosen.kafka_bootstrap_servers}")
    for line in lines:
        out.print(line, soft_wrap=True, markup=False, highlight=False)


@app.command()
def serve() -> None:
    """Serve the API alone."""
    from api.app import create_app, settle  # noqa: PLC0415  # only this command needs the web server
    from api.server import Server  # noqa: PLC0415  # the same

    chosen = load_settings()
    check_master_keys(chosen)
    watch_supervisor()
    with database(chosen, new=True) as url:
        _finish_erasures(chosen, url)
        server = Server(create_app(chosen, url), chosen)
        settle()
        with suppress(KeyboardInterrupt):
            server.run()
        if not server.started:
            raise SystemExit(3)


def _finish_erasures(chosen: Settings, url: str) -> None:
    """Let no read model show anybody whom the log has erased, before it is asked."""
    if is_behind(url):
        with closing(Projector(url, keys=contact_keys_of(chosen, url))) as projector:
            complete(projector, Listing, "forgetting whom the log has erased")


@app.command()
def project(
    source: Annotated[
        Literal["log", "kafka"],
        typer.Option("--from", help="kafka: of conversations what was published, shared with other such processes"),
    ] = "log",
) -> None:
    """Project the log into the read models, until stopped. Any number of these may run, from the log or from Kafka."""
    chosen = load_settings()
    wanted = feeding.publisher_settings(chosen) if source == "kafka" else None
    check_master_keys(chosen)
    stop = stop_on_signals()
    with database(chosen, new=True) as url:
        if wanted is not None:
            feeding.project_from_kafka(url, wanted, lambda: contact_keys_of(chosen, url), stop)
            return
        with closing(Projector(url, keys=contact_keys_of(chosen, url))) as projector:
            projector.run(stop)


@app.command()
def kafka(port: Annotated[int, typer.Option(help="port on 127.0.0.1")] = 9092) -> None:
    """Run a local Apache Kafka to try things with (needs Java 17 and Maven), until Ctrl-C."""
    from adapters.kafka_broker import KafkaBroker, KafkaUnavailableError  # noqa: PLC0415  # only this needs Kafka

    chosen = load_settings()
    stop = stop_on_signals()
    directory = chosen.data_directory / "kafka"
    try:
        with KafkaBroker(directory / "data", port=port, cache=directory / "libs") as broker:
            where = f"{PREFIX}KAFKA_BOOTSTRAP_SERVERS={broker.bootstrap_servers}"
            out.print(f"Apache Kafka is running; publish to it with {where}. Ctrl-C stops it.", soft_wrap=True)
            while broker.pid is not None and not stop.wait(1.0):
                pass
            if not stop.is_set():
                raise SystemExit(f"Apache Kafka ended by itself; its log: {broker.log_path}")
    except KafkaUnavailableError as error:
        raise SystemExit(str(error)) from None
    out.print("Stopped.")
