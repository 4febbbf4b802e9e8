"""An object store that speaks Google's JSON API, with an empty bucket named `bucket`: `python object_store.py PORT`.

It lives in memory until stdin ends.
"""

import sys

from gcp_storage_emulator.server import create_server

if __name__ == "__main__":
    server = create_server("127.0.0.1", int(sys.argv[1]), in_memory=True, default_bucket="bucket")
    server.start()
    sys.stdin.read()
    server.stop()
