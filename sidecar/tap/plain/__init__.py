"""What `sidecar.tap.module` is made of: whose rows they are, and the seats of the instruments."""
