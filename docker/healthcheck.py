"""Exit code 0 while the service in this container is ready; the reason on standard output where it is not."""

import os
import sys
import urllib.error
import urllib.request

port = os.environ.get("EQNET_HEALTH_PORT") or os.environ.get("EQNET_WORKER_PORT") or "8000"
url = f"http://127.0.0.1:{port}/health/ready"
try:
    with urllib.request.urlopen(url, timeout=4) as answer:
        print(answer.read().decode())
except urllib.error.HTTPError as error:
    sys.exit(f"not ready: {error.read().decode()}")
except OSError as error:
    sys.exit(f"not reachable: {error}")
