"""The hub's files of --config: the policy's settings, and mistakes with their lines."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vhost_balloon.errors import OperatorError
from vhost_balloon.hub.config import POLICY_SETTINGS, VM_SETTINGS, read_settings
from vhost_balloon.name_text import name_text
from vhost_balloon.policy.inputs import VmSettings
from vhost_balloon.policy.settings import Mode, PolicySettings


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "hub.toml"


def read(path: Path, text: str) -> PolicySettings:
    path.write_text(text)
    return read_settings([path])


def test_without_files_the_policy_is_off(path: Path) -> None:
    assert read_settings([]) == read(path, "") == read(path, "[policy]\n[vm]\n") == PolicySettings()
    assert PolicySettings().mode is Mode.OFF


def test_all_settings_of_a_file(path: Path) -> None:
    text = f"""
        [policy]
        mode = "dry-run"
        reserve = "4G"
        cgroup = "{path.parent}"
        zfs-arc = true

        [defaults]
        policy = "off"
        weight = 50
        floor = "512M"
        ceiling = 4294967296

        [vm.web1]
        policy = true
        weight = 10000

        [vm."db.prod"]
        floor = "1.5GiB"
        """
    defaults = VmSettings(on=False, weight=50, floor=512 << 20, ceiling=4 << 30)
    found = read(path, text)
    assert found == PolicySettings(
        Mode.DRY_RUN, 4 << 30, str(path.parent), True, defaults,
        {
            "web1": VmSettings(on=True, weight=10000, floor=512 << 20, ceiling=4 << 30),
            "db.prod": VmSettings(on=False, weight=50, floor=3 << 29, ceiling=4 << 30),
        },
    )  # fmt: skip
    assert found.of("other") == defaults
    assert all(f"{key} = " in text for key in (*POLICY_SETTINGS, *VM_SETTINGS))


@pytest.mark.parametrize(
    ("written", "found"),
    [
        ('"10%"', 0.1),
        ('"0.5 %"', 0.005),
        ('"99.9%"', 0.999),
        ("0.1", 0.1),
        ('"16M"', 16 << 20),
        ("16777216", 16 << 20),
        ('"100T"', 100 << 40),  # more than the host has is for the policy to say
    ],
)
def test_a_reserve_is_a_size_or_a_share(path: Path, written: str, found: float) -> None:
    reserve = read(path, f"[policy]\nreserve = {written}").reserve
    assert reserve == pytest.approx(found)
    assert type(reserve) is type(found)


@pytest.mark.parametrize(
    "written",
    ["0.0", "1.0", "-0.1", "nan", "inf", "0", "10", "true", '"0%"', '"100%"', '"-5%"', '"%"', '""',
     '"1e1%"', '"10"', '"٣%"', "[]", "{}", str(1 << 63), "2024-01-01"],
)  # fmt: skip
def test_any_other_reserve_is_a_mistake(path: Path, written: str) -> None:
    with pytest.raises(OperatorError, match="line 2: 'reserve' expects a size of 16 MiB or more"):
        read(path, f"[policy]\nreserve = {written}")


@pytest.mark.parametrize("written", ["0", "10001", "1.5", "true", '"10"', "[1]"])
def test_any_other_weight_is_a_mistake(path: Path, written: str) -> None:
    with pytest.raises(OperatorError, match="line 2: 'weight' expects a whole number from 1 to"):
        read(path, f"[vm.a]\nweight = {written}")


def test_later_files_win_key_by_key(path: Path, tmp_path: Path) -> None:
    later = tmp_path / "later.toml"
    path.write_text("policy.mode = 'on'\ndefaults.weight = 5\nvm.a.floor = '1G'\nvm.b.weight = 7")
    later.write_text("[defaults]\nweight = 6\n[vm.a]\nceiling = '2G'\n")
    assert read_settings([path, later]) == PolicySettings(
        Mode.ON,
        defaults=VmSettings(weight=6),
        vms={"a": VmSettings(weight=6, floor=1 << 30, ceiling=2 << 30), "b": VmSettings(weight=7)},
    )
    later.write_text("\n\n[defaults]\nceiling = '512M'\n")
    with pytest.raises(OperatorError, match=rf"^{later}: line 4: in \[vm.a\] the floor of 1 GiB"):
        read_settings([path, later])


@pytest.mark.parametrize(
    ("spelled", "name"),
    [
        ("über", "über"),
        (r"'\xfcber'", "über"),  # as `list` shows it where the locale is not UTF-8
        (r"'\xc3\xbcber'", r"\xc3\xbcber"),  # as systemd-escape writes it
        (r"'\x5cxc3\x5cxbcber'", r"\xc3\xbcber"),  # as `list` shows that
        (r"'web\x2d1'", r"web\x2d1"),
        (r"'a\udcff'", os.fsdecode(b"a\xff")),
        ("'a b'", "a b"),
        (r"'a\x20b'", "a b"),
    ],
)
def test_a_vm_is_spelled_as_ctl_takes_it(path: Path, spelled: str, name: str) -> None:
    table = f"[vm.{spelled}]" if spelled[0] == "'" else f'[vm."{spelled}"]'
    found = read(path, f"{table}\nweight = 7")
    assert found.of(name_text(name)).weight == 7
    assert found.of("other").weight == 100


def test_the_exact_spelling_is_preferred(path: Path) -> None:
    found = read(path, r"vm = {'\xfcber' = {weight = 7}, '\x5cxfcber' = {weight = 8}}")
    assert found.of("über").weight == 7
    assert found.of(name_text(r"\xfcber")).weight == 8


def test_two_spellings_of_a_vm_are_a_mistake(path: Path, tmp_path: Path) -> None:
    later = tmp_path / "later.toml"
    path.write_text("[vm.web1]\n[vm.'über']\nweight = 7")
    later.write_text("[vm.web1]\n\n[vm.'\\xfcber']\nfloor = '1G'")
    text = rf"""^{later}: line 3: \[vm."über"\] and \[vm.'\\xfcber'\] are the same VM"""
    with pytest.raises(OperatorError, match=text):
        read_settings([path, later])


def test_a_cgroup_has_to_exist_unless_the_policy_is_off(path: Path, tmp_path: Path) -> None:
    gone, later = tmp_path / "gone", tmp_path / "later.toml"
    text = f"[policy]\ncgroup = '{gone}'\n"
    assert read(path, text).cgroup == str(gone)
    later.write_text("[policy]\nmode = 'on'\n")
    with pytest.raises(OperatorError) as caught:
        read_settings([path, later])
    assert str(caught.value) == f"{path}: line 2: 'cgroup': there is no folder {gone}"
    assert read_settings([path, later], is_start=True).cgroup == str(gone), "it may come"
    gone.mkdir()
    assert read_settings([path, later]).mode is Mode.ON


ON = '[policy]\nmode = "on"\n'


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        # Tables
        ("\n[polcy]", 2, "'polcy' is not known: did you mean 'policy'?"),
        ("[default]\nweight = 5", 1, "'default' is not known: did you mean 'defaults'?"),
        (ON + "[web1]\nweight = 5", 3, "'web1' is not known"),
        ('mode = "on"', 1, "'mode' is not known: it belongs in [policy]"),
        ("floor = '1G'", 1, "'floor' is not known: it belongs in [defaults] or [vm.NAME]"),
        ("\npolicy = 'on'", 2, "'policy' is a table: write [policy], and its settings below"),
        ("[[policy]]\n", 1, "'policy' is a table"),
        ("vm = 1", 1, "'vm' is a table: write [vm.NAME], and its settings below"),
        ("[[vm]]\nweight = 5", 1, "write [vm.NAME]"),
        ("[vm]\n\nweight = 5", 3, "'weight' is not a VM's table: write [vm.NAME] for each VM"),
        ("[[vm.a]]", 1, "'a' is not a VM's table"),
        (ON + "\n[policy]\nreserve = '1G'", 4, "'policy' is given twice, first in line 1: "),
        ("[vm.a]\n[vm.b]\n[vm.a]", 3, "'vm.a' is given twice, first in line 1: "),
        # Names of VMs
        ("\n[vm.'']", 2, "'' cannot be a VM's name"),
        ("[vm.'.a']", 1, "'.a' cannot be a VM's name"),
        ("[vm.'a/b']", 1, "'a/b' cannot be a VM's name"),
        ("[vm.a]\n[vm.db.prod]\nweight = 5", 2, 'needs quotes: [vm."db.prod"]'),
        # Keys
        (ON + "resreve = '1G'", 3, "'resreve' is not known in [policy]: did you mean 'reserve'?"),
        (ON + "zfs_arc = true", 3, "did you mean 'zfs-arc'?"),
        (ON + "weight = 5", 3, "in [policy]: it belongs in [defaults] or [vm.NAME]"),
        ("[vm.a]\n\nmode = 'on'", 3, "in [vm.a]: it belongs in [policy]"),
        ("[vm.\"a.b\"]\nfloot = '1G'", 2, "in [vm.\"a.b\"]: did you mean 'floor'?"),
        ("[defaults]\nx = 1", 2, "'x' is not known in [defaults]"),
        ("[defaults]\nx.y = 1", 2, "'x' is not known in [defaults]"),
        (ON + 'mode = "off"', 3, "'policy.mode' is given twice, first in line 2: "),
        ("[vm.a]\nweight = 1\n[vm.b]\nweight = 1\nweight = 2", 5, "'vm.b.weight' is given twice"),
        # Values
        ('[policy]\nmode = "auto"', 2, "'mode' expects one of off, dry-run, on"),
        ("[policy]\nmode = true", 2, "'mode' expects one of off, dry-run, on"),
        ("[policy]\nmode = []", 2, "'mode' expects one of off, dry-run, on"),
        ("[policy]\nzfs-arc = 'on'", 2, "'zfs-arc' expects true or false"),
        ("[policy]\ncgroup = 'machine.slice'", 2, "'cgroup' expects the absolute path"),
        ('[policy]\ncgroup = "/a\\u0000"', 2, "'cgroup' expects the absolute path"),
        ("[vm.a]\npolicy = 1", 2, '\'policy\' expects "on" or "off"'),
        ("[vm.a]\nfloor = 512", 2, "'floor' expects a size of 16 MiB or more, such as 512M"),
        ("[vm.a]\nceiling = '4GB'", 2, "such as 512M: did you mean 4G?"),
        ("[defaults]\nfloor = '1G'\nceiling = '512M'", 2, "in [defaults] the floor of 1 GiB is"),
        ("[defaults]\nceiling = '1G'\n[vm.a]\nfloor = '2G'", 4, "above the ceiling of 1 GiB"),
        ("[vm.a]\nceiling = '1G'\n[defaults]\nfloor = '2G'", 2, "in [vm.a] the floor of 2 GiB"),
        ("vm = {a = {floor = '2G', ceiling = '1G'}}", 1, "in [vm.a] the floor of 2 GiB"),
        ("[vm]\n\na = {weight = 0, floor = '1G'}", 3, "'weight' expects"),
        # Values without quotes
        ("[policy]\nmode = on", 2, "'mode' needs quotes around its value: write mode = \"on\""),
        ("[policy]\nmode = auto", 2, "'mode' expects one of off, dry-run, on"),
        (ON + "reserve = 10%", 3, 'write reserve = "10%"'),
        (ON + "reserve = 4G # all", 3, 'write reserve = "4G"'),
        (ON + "cgroup = /sys/fs/cgroup", 3, 'write cgroup = "/sys/fs/cgroup"'),
        ("[defaults]\npolicy = off", 2, 'write policy = "off"'),
        ("[vm.'a.b']\nfloor = 1GB", 2, "did you mean 1G?"),
        ("[vm]\na.weight = 5\nx = on", 3, "Invalid value"),
        ("weight = on", 1, "Invalid value"),
        ("[vm.a\n", 1, "Expected ']'"),
    ],
)
def test_mistakes_say_their_line(path: Path, text: str, line: int, what: str) -> None:
    with pytest.raises(OperatorError) as caught:
        read(path, text)
    message = str(caught.value)
    assert message.startswith(f"{path}: line {line}: "), message
    assert what in message
    assert "\n" not in message


def test_any_text_is_settings_or_a_mistake(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("any") / "hub.toml"
    words = st.sampled_from(
        [*POLICY_SETTINGS, *VM_SETTINGS, "[policy]\n", "[defaults]\n", "[vm.a]\n", "vm", "[", "]",
         "{", "}", "=", " = ", ".", "\n", '"', "'", "#", "on", '"on"', '"1G"', "0.1", "10%", "5",
         "true", ","]
    )  # fmt: skip

    @settings(deadline=None)  # it writes files
    @given(st.lists(words | st.text(max_size=2), max_size=24).map("".join))
    def any_text(text: str) -> None:
        path.write_text(text)
        mistake = f"{path}: line "
        found = PolicySettings()
        try:
            found = read_settings([path])
        except OperatorError as error:
            mistake = str(error)
        assert mistake.startswith(f"{path}: line ")
        for vm in (found.defaults, *found.vms.values()):
            assert vm.floor is None or vm.ceiling is None or vm.floor <= vm.ceiling

    any_text()
