"""The budgets of the first issue, measured: start of the command line, import, discovery, pipeline, memory.

python bench/budgets.py
"""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RUNS = 7


def command(*args: str) -> float:
    times = []
    for _ in range(RUNS):
        began = time.perf_counter()
        subprocess.run(args, check=True, capture_output=True)
        times.append(time.perf_counter() - began)
    return statistics.median(times)


async def pipeline() -> tuple[float, float, float]:
    """Seconds of discovery with nothing listening, seconds before the model is called, MB of an idle router."""
    from contextlib import aclosing

    sys.path.insert(0, str(Path(__file__).parents[1]))
    from tests.fakes.base import running
    from tests.fakes.llm import openai_app

    from turnout.api import load_any
    from turnout.build import open_router
    from turnout.types import ChatRequest, message

    began = time.perf_counter()
    async with open_router(load_any({})):
        discovery = time.perf_counter() - began
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    async with running(openai_app(("m-7b",), 32768)) as url:
        config = load_any({"custom_endpoints": [{"name": "s", "endpoint": url}], "discovery": {"enabled": False}})
        async with open_router(config) as router:
            times = []
            for _ in range(50):
                began = time.perf_counter()
                request = ChatRequest((message("system", "x" * 500), message("user", "Write a function " + "y" * 4000)))
                async with aclosing(router.route(request)) as events:
                    async for _event in events:
                        times.append(time.perf_counter() - began)
                        break
    return discovery, statistics.median(times), pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def main() -> None:
    os.environ["TURNOUT_DATA_DIR"] = tempfile.mkdtemp()
    os.environ["TURNOUT_LOOPBACK_ONLY"] = "1"
    turnout = str(Path(sys.executable).with_name("turnout"))
    help_s = command(turnout, "--help")
    bare = command(sys.executable, "-c", "pass")
    with_import = command(sys.executable, "-c", "import turnout")
    discovery, before, memory = asyncio.run(pipeline())
    print(f"turnout --help                               {help_s:6.3f} s   (budget 0.35)")
    print(f"import turnout, beyond the interpreter       {with_import - bare:6.3f} s   (budget 0.15)")
    print(f"ten default ports, nothing listening         {discovery:6.3f} s   (budget 1)")
    print(
        f"question to first event, fake server         {before * 1000:6.1f} ms  (budget 10, the server's part included)"
    )
    print(f"idle router, resident memory                 {memory:6.1f} MB  (budget 60)")


if __name__ == "__main__":
    main()
