"""Pure arithmetic over frames: no clock, thread, socket, randomness or log; time is data."""
