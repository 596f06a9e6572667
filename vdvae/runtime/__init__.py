"""The machine: processes, noise, precision, and what figures were measured on."""
