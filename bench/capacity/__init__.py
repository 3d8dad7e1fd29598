"""What one sidecar takes and what it costs: frames, memory, growth with size, and its senders.

    python -m bench.capacity [--quick] [--only ingest,sender,memory,growth] [--results FOLDER]

Real processes over a real socket, except `growth`, which times the shipped code within one thread.
CPU seconds are the process's own, so that a busy machine changes them less than it changes rates.
Scrapes have a bench of their own, `bench.scrape`.
"""
