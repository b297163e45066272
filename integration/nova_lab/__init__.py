"""A real Nova around the lab: control plane at the wire, one nova-compute for each host."""
