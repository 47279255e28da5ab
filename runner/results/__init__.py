"""What a person gets: the report, tables, figures, and what the terminal shows. It reads records and writes files;
whatever decides what is trained lies below."""
