"""The tap: inside the engine, from a tensor in the graph to a frame on the wire.

probes > stream > slab > rows > ledger > pump for the residual stream; instruments beside them for
the other groups of signals. `engine` puts them together, `vllm` seats them. The only home of torch;
never loads a web or metrics stack.
"""
