"""Where Nova looks for a driver: `compute_driver = godwit.GodwitDriver`. The code is the package godwit_nova."""

from godwit_nova.driver import GodwitDriver

__all__ = ["GodwitDriver"]
