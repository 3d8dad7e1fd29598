"""The Helm chart, and the two programs that make it."""
