"""What a bench was run on, which its report tells with the figures."""

import os
import platform
from pathlib import Path


def machine() -> dict[str, object]:
    """The processor, the memory, the kernel, and how busy they are."""
    about = {"kernel": platform.release(), "processors": os.cpu_count(), "load_at_start": os.getloadavg()[0]}
    for file, key, name in [("cpuinfo", "model name", "processor"), ("meminfo", "MemTotal", "memory")]:
        lines = Path(f"/proc/{file}").read_text().splitlines()
        about[name] = next((line.split(":", 1)[1].strip() for line in lines if line.startswith(key)), "unknown")
    return about
