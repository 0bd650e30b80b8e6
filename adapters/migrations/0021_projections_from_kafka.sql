-- Read models that are projected from Kafka: each partition of the events topic moves on by itself, in the transaction
-- that changes its conversations' rows. The model's own position follows: up to there nothing is missing.
alter table projection_positions add column topic_id text; -- of the events topic; null: never projected from Kafka

create table projection_shares (
    name        text    not null, -- of the read model
    partition   integer not null,
    next_offset bigint  not null, -- of the first record that is not projected; who moves it must know where it was
    position    bigint  not null, -- in the log, of the last event that came through the partition
    primary key (name, partition)
);
grant select, insert, update, delete on projection_shares to conversas_projector;
grant select on publishers to conversas_projector; -- to say why nothing comes
