"""Entry point: `python3 /run/forkd/forkd_agent`."""
import os
import sys

# The package is found beside this directory while it is imported; user code must not find anything there.
sys.path[0] = os.path.dirname(os.path.abspath(sys.path[0]))
from forkd_agent.main import main

del sys.path[0]
main()
