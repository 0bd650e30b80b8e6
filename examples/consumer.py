"""Keeps a table of its own from the events topic, each event counted exactly once: how often every agent finalized.

The offsets stand in the same database as the table and move in the same transaction, so that whatever dies, and
wherever, both are right. The version in the conversation tells a record that came again (docs/FEED.md).
Usage: python examples/consumer.py BOOTSTRAP_SERVERS FILE [TOPIC]
"""

import sqlite3
import sys

from kafka import KafkaConsumer, TopicPartition

servers, file, topic = (*sys.argv[1:], "conversations.events.v1")[:3]
table = sqlite3.connect(file, isolation_level=None)
table.executescript("""
    create table if not exists offsets (partition integer primary key, next integer not null);
    create table if not exists versions (conversation text primary key, version integer not null);
    create table if not exists finalized (actor text primary key, times integer not null);""")
consumer = KafkaConsumer(bootstrap_servers=servers, isolation_level="read_committed", enable_auto_commit=False)
partitions = [TopicPartition(topic, number) for number in sorted(consumer.partitions_for_topic(topic))]
consumer.assign(partitions)
offsets = dict(table.execute("select * from offsets"))
for partition in partitions:
    consumer.seek(partition, offsets.get(partition.partition, 0))
while True:
    for partition, records in consumer.poll(timeout_ms=1_000).items():
        table.execute("begin immediate")
        for record in records:
            headers = {name: value.decode() for name, value in record.headers}
            key, version = headers["ce_source"] + "/" + headers["ce_subject"], int(headers["ce_sequence"])
            known = table.execute("select version from versions where conversation = ?", (key,)).fetchone()
            if known is None or version > known[0]:
                table.execute("replace into versions values (?, ?)", (key, version))
                if headers["ce_type"].startswith("conversation-finalized-"):
                    more = "on conflict (actor) do update set times = times + 1"
                    table.execute(f"insert into finalized values (?, 1) {more}", (headers["ce_actor"],))
            following = record.offset + 1
        table.execute("replace into offsets values (?, ?)", (partition.partition, following))
        table.execute("commit")
