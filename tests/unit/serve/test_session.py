"""What a serving session does around Ray: ports, log reading, and ending the processes it is given."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from serve.policy import ServeInputError
from serve.session import end_processes, require_free_port, root_cause


def test_port_in_use_is_refused_with_the_option_that_helps() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ServeInputError, match=rf"cannot listen on 127\.0\.0\.1:{port}.*--port"):
            require_free_port("127.0.0.1", port)
    require_free_port("127.0.0.1", port)


def test_host_of_another_machine_is_refused() -> None:
    with pytest.raises(ServeInputError, match="--host"):
        require_free_port("192.0.2.77", 8000)


def test_process_that_does_not_end_by_itself_is_ended() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert end_processes({psutil.Process(child.pid)}, grace_s=0.01) == 1
    assert not psutil.pid_exists(child.pid)
    child.stdin.close()
    child.wait()


def test_root_cause_is_the_engines_first_error_not_serves_summary(tmp_path: Path) -> None:
    (tmp_path / "worker-1.err").write_text("RuntimeError: Engine core initialization failed.\n")
    (tmp_path / "worker-2.out").write_text(
        "(Worker pid=7) INFO 11-21 11:42:50 [a.py:1] loading\n"
        "(Worker pid=7) ERROR 11-21 11:42:58 [b.py:944]   File x, line 3\n"
        "(Worker pid=7) ERROR 11-21 11:42:58 [b.py:944] AssertionError: num_heads (4) is not divisible\n"
        "(EngineCore pid=8) ERROR 11-21 11:42:59 [c.py:9] RuntimeError: worker died\n"
    )
    assert root_cause(tmp_path) == "AssertionError: num_heads (4) is not divisible"
    (tmp_path / "worker-2.out").unlink()
    assert root_cause(tmp_path) is None
