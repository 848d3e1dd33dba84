"""The interpreter may end while other threads are inside the engine."""

import subprocess
import sys
import textwrap

import pytest

BODIES = {
    "streaming": "for _ in m.stream([3, 4], max_tokens=200, ignore_eos=True): pass",
    "generating": "m.generate([3, 4], max_tokens=200, ignore_eos=True)",
    "waiting": "m.stream([3, 4], max_tokens=200, ignore_eos=True); list(m.stream([5], max_tokens=200))",
    "generating many": "m.generate([[3, 4], [5, 6], [7]], max_tokens=200, ignore_eos=True)",
    "awaiting": "asyncio.run(read())",
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())
def test_daemon_threads_inside_the_engine_do_not_abort_the_exit(tiny_dir, body):
    script = f"""
        import asyncio, stepladder, threading, time
        async def read():
            async for _ in m.stream([3, 4], max_tokens=200, ignore_eos=True): pass
        m = stepladder.load({str(tiny_dir)!r}, threads=1, progress=False)
        def work():
            while True:
                {body}
        for _ in range(3):
            threading.Thread(target=work, daemon=True).start()
        time.sleep(0.2)
        print("end", flush=True)
    """
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(script)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout == "end\n"
