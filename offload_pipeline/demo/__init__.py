"""Everything `offload demo` needs: its payloads and the tables it fills."""
