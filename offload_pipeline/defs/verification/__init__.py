"""Verification as the blocking check between stored and released payloads."""
