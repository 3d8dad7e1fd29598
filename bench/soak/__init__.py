"""Many frames and many hours: every frame is accounted for, and nothing grows.

A real `sidecar serve` with everything on, fed by the tap's own senders, one process for each rank.
Time is data: all processes go by one clock that a conductor moves on as soon as every rank has said
what it has to say of a second, so that hours pass in minutes and a slow machine only takes longer.
"""
