"""One job over many sidecars: replicas compared with each other."""
