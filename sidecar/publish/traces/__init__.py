"""Traces: one span for each sampled or anomalous request, sent to an OpenTelemetry receiver.

    frames > hearing (bounded) > gathering > judging, sampling > spans > outbox (bounded) > OTLP

Two threads: `tracer` makes spans out of frames, `outbox` sends them. Neither makes ingest wait, and
each thing that is lost is counted with its cause.
"""
