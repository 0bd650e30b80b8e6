-- Where a policy applies, PostgreSQL uses an index only for operators that it trusts to tell nothing of rows that the
-- policy hides. Those of text searches, labels and attributes compare and do nothing else, but are not marked so. Only a
-- superuser may mark them: without it, searches by them read every row, and find the same. Called at every start, since
-- a restored dump does not have the marks.
create function trust_operators() returns void language plpgsql as $$
declare
    name text;
begin
    foreach name in array array['ts_match_vq(tsvector, tsquery)', 'array_to_tsvector(text[])',
                                'arrayoverlap(anyarray, anyarray)', 'arraycontains(anyarray, anyarray)',
                                'array_ne(anyarray, anyarray)', 'jsonb_contains(jsonb, jsonb)'] loop
        if not (select proleakproof from pg_proc where oid = ('pg_catalog.' || name)::regprocedure) then
            execute format('alter function pg_catalog.%s leakproof', name);
        end if;
    end loop;
exception when insufficient_privilege then
    raise warning 'searches by text, label and attribute will read every row: only a superuser can mark their operators';
end $$;
