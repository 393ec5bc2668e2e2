"""Which depth of draft is fastest on this machine: pilots, and the clocks of the engines."""
