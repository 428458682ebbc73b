"""--check-config: what it refuses, and what it warns of."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.end_to_end import LogLines
from vhost_balloon.config.config import parse
from vhost_balloon.daemon.check_config import check_config
from vhost_balloon.errors import OperatorError


async def test_groups_are_checked() -> None:
    await check_config(parse(["--check-config", "--socket-path=/run/a", "--socket-group=0"]))
    for which in ("socket", "control"):
        with pytest.raises(OperatorError, match="there is no group 'no-such-group'"):
            await check_config(parse(["--check-config", f"--{which}-group=no-such-group"]))


async def test_what_can_only_be_a_mistake_is_a_warning(log_lines: LogLines) -> None:
    await check_config(parse(["--check-config", "--memory=4096", "--report-rate=512"]))
    assert log_lines.having("warning: 'memory': 4096 is 4 KiB", "write 4096M for MiB")
    assert log_lines.having("warning: 'report-rate': 512 B a second is less")


async def test_a_group_of_a_file_is_checked(tmp_path: Path) -> None:
    path = tmp_path / "web1.toml"
    path.write_text("socket-group = 'no-such-group'")
    with pytest.raises(OperatorError, match="there is no group 'no-such-group'"):
        await check_config(parse(["--check-config", f"--config={path}", "--socket-group=0"]))
