"""Who may ask what: tokens, hosts, rates, sizes, TLS, and the log of what operators did."""
