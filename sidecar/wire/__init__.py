"""The contract between the tap and the exporter: signals, frames and the channel they travel.

Loads only the standard library, numpy, msgspec and zmq.
"""
