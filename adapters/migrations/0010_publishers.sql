-- How the publishers to Kafka are doing, for the metrics. Where the log is published up to is decided by Kafka alone.
create table publishers (
    name               text        not null primary key, -- its transactional id
    topic              text        not null,
    publisher_position bigint      not null,
    commits            bigint      not null,
    aborts             bigint      not null,
    fencings           bigint      not null,
    is_live            boolean     not null,
    told_at            timestamptz not null
);
grant select on publishers to conversas_access, conversas_publisher;
grant insert, update, delete on publishers to conversas_publisher;
