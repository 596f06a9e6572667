"""The parts of scripts/gpu_check.py, a file each; `parts` lists them, `runner` runs one in a process of its own."""
