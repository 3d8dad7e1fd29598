"""Long work over recordings: fit, calibrate, replay; here, or on a Ray cluster."""
