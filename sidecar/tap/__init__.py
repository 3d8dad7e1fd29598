"""The tap: inside the engine, from a tensor in the graph to a frame on the wire.

probes > attach > slab > rows > ledger > pump; `engine` puts them together, `vllm` seats them.
The only home of torch; never loads a web or metrics stack.
"""
