"""The master key at a key management service (OpenBao on this machine, over TLS) against one in this process's memory.

So many keys of contacts at a time are wrapped and unwrapped; contacts are registered, one and many in a batch, and
found by the projector's own call. What a network adds comes on top, once per call.
"""

from collections.abc import Callable
from contextlib import closing
from statistics import median
from time import perf_counter
from uuid import uuid4

from adapters.command_handler import CommandHandler
from adapters.contact_keys import ContactKeys, beside, prepare
from adapters.master_keys import LocalMasterKeys, MasterKeys, new_master_key
from adapters.vault_keys import VaultMasterKeys
from benchmarks.measuring import Bench, table
from benchmarks.workload import BATCH, WORKSPACE, request
from domain.commands import RegisterContact
from domain.events import ContactDetails
from tests.key_service import key_service

SIZES = (1, 50, BATCH)


def run(bench: Bench) -> None:
    """Measure both in turns and print a table."""
    (directory := bench.directory / "key-service").mkdir()
    conninfo = bench.database(read_models=True)
    with key_service(directory) as service:
        prepare(beside(conninfo), server=conninfo)
        vault = VaultMasterKeys(service.url, "transit/conversas", service.token_file, ca_file=service.ca_file)
        masters = (LocalMasterKeys.parse(new_master_key()), vault)
        rows = []
        for count in SIZES:
            for name, timed in (("wrap", _wrap), ("unwrap", _unwrap), ("register", _register), ("find", _find)):
                seconds: list[list[float]] = [[], []]
                for _ in bench.rounds(30):
                    for each, master in zip(seconds, masters, strict=True):
                        each.append(timed(conninfo, master, count))
                local, remote = median(seconds[0]), median(seconds[1])
                more = (remote - local) / count * 1e6
                rows.append((f"{name} {count}", local * 1e3, remote * 1e3, remote / local, more))
    table("A key service", ("keys at once", "memory ms", "service ms", "ratio", "more per key µs"), rows)


def _timed(work: Callable[[], object]) -> float:
    started = perf_counter()
    work()
    return perf_counter() - started


def _wrap(_: str, master: MasterKeys, count: int) -> float:
    keys = [(b"o" * 32, bytes(32))] * count
    return _timed(lambda: master.wrap(keys))


def _unwrap(_: str, master: MasterKeys, count: int) -> float:
    wrapped = master.wrap([(number.to_bytes(32), bytes(32)) for number in range(count)])
    return _timed(lambda: master.unwrap(wrapped))


def _register(conninfo: str, master: MasterKeys, count: int) -> float:
    requests = [
        request(RegisterContact(contact_id=id_, details=ContactDetails(name="Ana")), id_)
        for id_ in (uuid4() for _ in range(count))
    ]
    with closing(CommandHandler(conninfo, ContactKeys(beside(conninfo), master))) as handler:
        handler.handle([])  # which connects
        return _timed(lambda: handler.handle(requests))


def _find(conninfo: str, master: MasterKeys, count: int) -> float:
    people = [(WORKSPACE, uuid4()) for _ in range(count)]
    with closing(ContactKeys(beside(conninfo), master)) as keys:
        keys.add(people)
        return _timed(lambda: keys.find(people))
