"""Faults by the thousand, at random moments, in the store, the database and the worker: nothing is lost."""
