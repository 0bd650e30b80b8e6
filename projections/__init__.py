"""The read models: what is derived from the log so that it can be queried. One file each: table, fold, queries."""
