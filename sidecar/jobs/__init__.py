"""Long work over recordings: make, fit, calibrate, replay them; here, or on a Ray cluster."""
