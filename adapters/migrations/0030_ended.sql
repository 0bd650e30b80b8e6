-- Ids that count no more although their signature is ours: sessions that were signed out, sign-ins that came back. Each
-- is kept until it would have been over anyway; whose they were is not.
create table ended (
    id    text        not null primary key,
    until timestamptz not null
);
create index on ended (until);
grant select, insert, delete on ended to conversas_access;
