-- Who can be reached: heartbeats that expire. No history, so nothing is lost that matters if a crash empties it.
create unlogged table presence (
    workspace_id uuid        not null,
    agent_id     uuid        not null,
    status       text        not null, -- what the agent last said: online, away, offline
    expires_at   timestamptz not null, -- offline from then on, whatever was said
    primary key (workspace_id, agent_id)
);
select isolate('presence');
grant select, insert, update, delete on presence to conversas_access;

-- Who read what that was not theirs: kept like the log, but no part of it, since reading changes nothing.
create table accesses (
    workspace_id    uuid        not null,
    id              bigint      not null generated always as identity,
    at              timestamptz not null default clock_timestamp(),
    actor_kind      text        not null,
    actor_id        text        not null,
    what            text        not null, -- messages, stream, history, contact …
    conversation_id uuid,
    contact_id      uuid,
    request_id      uuid        not null,
    primary key (workspace_id, id)
);
create index on accesses (workspace_id, actor_id, id);
create index on accesses (workspace_id, conversation_id, id);
create index on accesses (workspace_id, contact_id, id);
create trigger accesses_are_immutable before update or delete on accesses
    for each row execute function refuse_change();
create trigger accesses_are_kept before truncate on accesses
    for each statement execute function refuse_change();
select isolate('accesses');
grant insert on accesses to conversas_reader;
