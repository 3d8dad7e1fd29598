"""Talks like `bench.arm`, without an engine: what is tested is who starts, stops and ends it."""

import json
import sys
import time


def main() -> None:
    """Load at once, and take as long for a turn as it has tokens, in hundredths of a second."""
    print(json.dumps({"load_seconds": 0.5}), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        if "memory" in asked:
            print(json.dumps({"device_bytes": 7.0}), flush=True)
            continue
        time.sleep(0.01 * asked["tokens"])
        told = {"first": [0.5] * asked["batch"], "prefill": 0.5, "steps": [0.1], "decode": 2.0}
        print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
