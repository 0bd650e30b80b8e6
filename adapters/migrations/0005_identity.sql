-- When each access token, or identity of an outside issuer, was last used. Written at most once a minute; no part of
-- the log, since using a token changes nothing.
create table token_uses (
    workspace_id uuid        not null,
    token_id     uuid        not null,
    last_used_at timestamptz not null,
    primary key (workspace_id, token_id)
);
select isolate('token_uses');
grant select, insert, update on token_uses to conversas_access;
