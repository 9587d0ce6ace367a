"""Tests of what `offload demo` fills its tables with."""
