-- Who may touch what: a role for each kind of process, none of which owns a table, and workspaces kept apart by
-- row-level security. Roles belong to the whole server: they may be there already, made for another database.
-- Those that fill tables by COPY, which PostgreSQL refuses under row-level security, stand above it.

do $$
declare
    names text[] := array['conversas_reader', 'conversas_access', 'conversas_writer', 'conversas_projector',
                          'conversas_publisher'];
    name text;
begin
    foreach name in array names loop
        continue when exists (select from pg_roles where rolname = name);
        begin
            execute format('create role %I nologin %s', name,
                           case when name in ('conversas_writer', 'conversas_projector') then 'bypassrls' end);
        exception when duplicate_object or unique_violation then null; -- another migration was faster
        end;
    end loop;
    foreach name in array names loop
        if not pg_has_role(current_user, name, 'set') then
            execute format('grant %I to current_user', name);
        end if;
    end loop;
end $$;

-- The workspace that the present session or transaction reads for; null: none, and then nothing is seen.
create function present_workspace() returns uuid language sql stable parallel safe
return nullif(current_setting('conversas.workspace', true), '')::uuid;

-- Keep the workspaces in a table apart: readers see the present one, the roles that serve all of them see all.
create function isolate(isolated regclass) returns void language plpgsql as $$
declare
    -- a workspace is its own
    named text := case when exists (select from pg_attribute where attrelid = isolated and attname = 'workspace_id')
                       then 'workspace_id' else 'id' end;
begin
    execute format('alter table %s enable row level security, force row level security', isolated);
    execute format('drop policy if exists present_workspace on %s', isolated);
    execute format('create policy present_workspace on %s to conversas_reader
                    using (%I = (select present_workspace())) with check (%I = (select present_workspace()))',
                   isolated, named, named);
    execute format('drop policy if exists every_workspace on %s', isolated);
    execute format('create policy every_workspace on %s to conversas_access, conversas_publisher, current_user using (true) with check (true)', isolated);
    execute format('grant select on %s to conversas_reader', isolated);
end $$;

select isolate('events'), isolate('outcomes'), isolate('snapshots');
revoke select on outcomes, snapshots from conversas_reader;

grant select on events to conversas_access, conversas_projector, conversas_publisher;
grant select, insert on events, outcomes to conversas_writer;
grant select, insert, update on snapshots to conversas_writer;
grant select on projection_positions to conversas_reader, conversas_access, conversas_writer, conversas_publisher;
grant select, update on projection_positions to conversas_projector;
