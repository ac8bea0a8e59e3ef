"""The offline bundle: everything that a machine without an index needs, in one signed file (SPEC UI-5)."""
