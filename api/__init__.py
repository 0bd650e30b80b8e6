"""HTTP and the command line: the only place where domain, projections and adapters are put together."""
