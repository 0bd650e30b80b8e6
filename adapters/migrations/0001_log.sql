-- The log: the only truth. All other tables are derived from it or help to write it.

create table events (
    position       bigint      not null primary key,
    workspace_id   uuid        not null,
    stream_type    text        not null,
    stream_id      uuid        not null,
    version        bigint      not null,
    topic          text        not null,
    data           bytea       not null, -- canonical JSON of the event, byte for byte as it was decided
    actor_kind     text        not null,
    actor_id       text        not null,
    surface        text        not null,
    occurred_at    timestamptz not null,
    recorded_at    timestamptz not null,
    request_id     uuid        not null,
    correlation_id uuid        not null,
    causation_id   text,
    schema_version smallint    not null,
    unique (workspace_id, stream_id, version)
);

create function refuse_change() returns trigger language plpgsql as $$
begin
    raise exception 'the log is append-only: % on % is refused', tg_op, tg_table_name using errcode = 'insufficient_privilege';
end $$;

create trigger events_are_immutable before update or delete on events
    for each row execute function refuse_change();
create trigger events_are_kept before truncate on events
    for each statement execute function refuse_change();

-- What was answered to a request, by its idempotency key, in the same transaction as its events.
create table outcomes (
    workspace_id uuid  not null,
    key          text  not null,
    fingerprint  bytea not null, -- SHA-256 of the request
    answer       jsonb not null,
    primary key (workspace_id, key)
);

-- Folded states, so that a long stream is not read from its beginning. May be deleted at any time.
create table snapshots (
    workspace_id uuid   not null,
    stream_id    uuid   not null,
    stream_type  text   not null,
    version      bigint not null,
    state        bytea  not null,
    shape        text   not null, -- digest of the code that folds: a snapshot made by other code is ignored
    primary key (workspace_id, stream_id)
);

-- How far each projection has read. One row per read model, moved in the transaction that changes its rows.
create table projection_positions (
    name     text   not null primary key,
    position bigint not null,
    shape    text,   -- digest of its tables' definition
    halted   text    -- why it does not go on; null: it does
);

-- What the recorders of the eventsourcing library leave in each transaction, to know it again if its commit is lost.
create table library_commits (
    id uuid        not null primary key,
    at timestamptz not null default now()
);
create index on library_commits (at);
