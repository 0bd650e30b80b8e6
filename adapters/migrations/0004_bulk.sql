-- Bulk actions: which conversations a job is about, fixed when it starts, and what became of each.
-- Work in progress, not history: what a job changed stands in the log, and jobs are deleted some time after their end.

create table bulk_jobs (
    workspace_id uuid        not null,
    id           uuid        not null,
    number       bigint      not null generated always as identity, -- in the order of their start
    action       text        not null,
    command      jsonb       not null, -- what is done to each conversation; free text goes when the job ends
    dry_run      boolean     not null,
    actor_kind   text        not null,
    actor_id     text        not null,
    token_id     uuid,                 -- whose rights count, as they are when a conversation's turn comes
    request_id   uuid        not null,
    fingerprint  bytea       not null, -- SHA-256 of the request
    state        text        not null default 'waiting', -- then running; at the end done, cancelled or stopped
    reason       text,                 -- why it stopped: a stable code
    total        integer     not null,
    changed      integer     not null default 0,
    already      integer     not null default 0,
    refused      integer     not null default 0,
    failed       integer     not null default 0,
    position     bigint      not null default 0, -- a read model that has it shows all that it did
    created_at   timestamptz not null default clock_timestamp(),
    started_at   timestamptz,
    next_at      timestamptz not null default clock_timestamp(), -- not before: whoever waits longest comes next
    finished_at  timestamptz,
    primary key (workspace_id, id)
);
create index on bulk_jobs (next_at, id) where state in ('waiting', 'running');
create index on bulk_jobs (finished_at) where finished_at is not null;

create table bulk_items (
    workspace_id    uuid    not null,
    job_id          uuid    not null,
    number          integer not null, -- from 1; a job goes through them in this order
    conversation_id uuid    not null,
    outcome         text,             -- changed, already, refused, failed; null: its turn has not come
    code            text,             -- why it was refused or failed
    version         bigint,
    position        bigint,
    primary key (workspace_id, job_id, number),
    foreign key (workspace_id, job_id) references bulk_jobs on delete cascade
) with (fillfactor = 70); -- room for the result beside the item

select isolate('bulk_jobs'), isolate('bulk_items');
grant insert, update (state, command, finished_at) on bulk_jobs to conversas_reader; -- to start and to cancel
grant insert on bulk_items to conversas_reader;
grant select, update, delete on bulk_jobs to conversas_writer;
grant select, update on bulk_items to conversas_writer;
