"""The outside as the service sees it: PostgreSQL, Kafka, files. Imports domain and projections, never the API."""
