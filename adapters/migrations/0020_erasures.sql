-- Erased contacts, found at once: who was erased is decided by the log alone, whenever something is sealed for somebody.
create index events_erased on events (workspace_id, stream_id) where topic = 'contact-erased.v1';
create index events_erased_after on events (position) where topic = 'contact-erased.v1';

-- Snapshots are sealed with the key of the contact whom they say something of, and deleted in the transaction that
-- erases them. Those made before say it in clear; they are a cache.
delete from snapshots;
alter table snapshots add contact_id uuid; -- whose key; null: it says nothing personal
create index snapshots_of_contacts on snapshots (workspace_id, contact_id) where contact_id is not null;
grant delete on snapshots to conversas_writer;
