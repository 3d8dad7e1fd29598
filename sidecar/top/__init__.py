"""`sidecar top`: the live page for people on a shell; one more client of the API."""
