"""The live page: what it is made of, and the routes that serve it."""
