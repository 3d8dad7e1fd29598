"""A client whose requests are part of a trace: the sidecar's spans hang below this one's.

    python examples/traced_client.py http://127.0.0.1:8000 http://127.0.0.1:4317 "Tell me more."

Sends a chat to vLLM with the header `traceparent`, and the client's own span to an OpenTelemetry
receiver over gRPC, the one that `SIDECAR_OTLP_ENDPOINT` names.
"""

import sys

import httpx
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator


def main(vllm_url: str, receiver: str, prompt: str) -> None:
    """Ask once, and print the answer and the id of the trace."""
    provider = TracerProvider(resource=Resource.create({"service.name": "my-app"}))
    provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(endpoint=receiver)))
    with provider.get_tracer("example").start_as_current_span("answer a question") as span:
        headers: dict[str, str] = {}
        TraceContextTextMapPropagator().inject(headers)
        with httpx.Client(base_url=vllm_url, headers=headers, timeout=120) as client:
            model = client.get("/v1/models").json()["data"][0]["id"]
            question = [{"role": "user", "content": prompt}]
            body = {"model": model, "messages": question, "max_tokens": 48}
            answer = client.post("/v1/chat/completions", json=body).raise_for_status().json()
        print(answer["choices"][0]["message"]["content"])
        print(f"trace {span.get_span_context().trace_id:032x}")
    provider.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
