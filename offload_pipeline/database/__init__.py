"""Connections, named SQL statements and DDL that does not make the application wait."""
