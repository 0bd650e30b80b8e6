-- When an access was recorded, and as which, is the database's word: whoever may record one may not date it back.
revoke insert on accesses from conversas_reader;
grant insert (workspace_id, actor_kind, actor_id, what, conversation_id, contact_id, request_id)
    on accesses to conversas_reader;
