"""Side by side: what the handler costs and what it loses, and what its peers cost and lose. `make bench`."""
