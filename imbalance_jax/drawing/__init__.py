"""How numbers become pictures and pages."""
