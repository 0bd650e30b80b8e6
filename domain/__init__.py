"""What is true of conversations. Knows no database, no clock, no HTTP; imports the standard library and pydantic."""
