"""The bundled demo model: its corpus, its training script and the stored weights."""
