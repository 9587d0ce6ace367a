"""The gate between stored and released payloads."""
