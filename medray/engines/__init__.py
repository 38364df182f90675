"""Where a flow runs: `local` in this process, `ray` on a machine or a cluster."""
