"""What comes to its end: payloads past their retention, objects that no row names, tenants that are erased."""
