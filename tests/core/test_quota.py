"""Quotas of control groups, read from copies of the files in which Linux shows them."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest

from vxpress.core import quota

V2 = "30 23 0:26 {top} {point} rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = "{n} 31 0:{n} {top} {point} rw,relatime - cgroup cgroup rw,{names}\n"
OTHERS = "23 28 0:22 / /sys rw,nosuid shared:7 - sysfs sysfs rw\n36 31 0:33 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"


def system(root: Path, cgroup: str, mounts: str, files: dict[str, str]) -> tuple[quota.Group, ...]:
    """Write the files of a system below ``root``, and find the groups there."""
    for name, text in {"proc/self/cgroup": cgroup, "proc/self/mountinfo": OTHERS + mounts, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return quota.groups(root)


def found(groups: tuple[quota.Group, ...]) -> tuple[list[float], list[float]]:
    return [group.processors() for group in groups], [group.used() for group in groups]


def test_a_container_of_its_own_in_version_2(tmp_path: Path) -> None:
    groups = system(
        tmp_path,
        "0::/\n",
        V2.format(top="/", point="/sys/fs/cgroup"),
        {"sys/fs/cgroup/cpu.max": "250000 100000\n", "sys/fs/cgroup/cpu.stat": "nr_periods 3\nusage_usec 4500000\n"},
    )
    assert found(groups) == ([2.5], [4.5])


@pytest.mark.parametrize("line", ["41 23 0:40 / /mnt/empty rw,relatime - tmpfs  rw,size=64k", "42 23 0:41 / /mnt", ""])
def test_other_mounts_of_any_form_are_passed_over(tmp_path: Path, line: str) -> None:
    groups = system(
        tmp_path,
        "0::/\n",
        line + "\n" + V2.format(top="/", point="/sys/fs/cgroup"),
        {"sys/fs/cgroup/cpu.max": "250000 100000\n"},
    )
    assert found(groups)[0] == [2.5]


def test_groups_within_groups_in_version_2(tmp_path: Path) -> None:
    base = "sys/fs/cgroup/kubepods.slice"
    groups = system(
        tmp_path,
        "0::/kubepods.slice/pod1/box\n",
        V2.format(top="/", point="/sys/fs/cgroup"),
        {
            f"{base}/cpu.max": "max 100000\n",
            f"{base}/pod1/cpu.max": "300000 100000\n",
            f"{base}/pod1/cpu.stat": "usage_usec 7000000\nuser_usec 1\n",
            f"{base}/pod1/box/cpu.max": "800000 100000\n",
            f"{base}/pod1/other/cpu.max": "100000 100000\n",
        },
    )
    limits, used = found(groups)
    assert limits == [8.0, 3.0, math.inf]
    assert used[1] == 7.0
    assert math.isnan(used[0])


def test_a_part_of_the_tree_that_is_mounted(tmp_path: Path) -> None:
    """A container sees the path on the machine, but its own group at the top."""
    groups = system(
        tmp_path,
        "0::/docker/abc/inner\n",
        V2.format(top="/docker/abc", point="/mnt/c\\040g"),
        {"mnt/c g/cpu.max": "200000 100000\n", "mnt/c g/inner/cpu.max": "100000 100000\n"},
    )
    assert found(groups)[0] == [1.0, 2.0]


@pytest.mark.parametrize("path", ["/docker/abc", "/../../system.slice"])
def test_a_path_outside_of_what_is_mounted_has_the_limit_of_its_top(tmp_path: Path, path: str) -> None:
    groups = system(
        tmp_path,
        f"0::{path}\n",
        V2.format(top="/docker/xyz", point="/sys/fs/cgroup"),
        {"sys/fs/cgroup/cpu.max": "200000 50000\n"},
    )
    assert found(groups)[0] == [4.0]


@pytest.mark.parametrize("names", ["cpu,cpuacct", "cpu"])
def test_version_1(tmp_path: Path, names: str) -> None:
    together = "cpuacct" in names
    base, counting = "sys/fs/cgroup/cpu", "sys/fs/cgroup/cpu" if together else "sys/fs/cgroup/cpuacct"
    mounts = V1.format(n=32, top="/", point="/sys/fs/cgroup/cpu", names=names)
    lines = "4:cpu,cpuacct:/job/step\n"
    if not together:
        mounts += V1.format(n=33, top="/", point="/sys/fs/cgroup/cpuacct", names="cpuacct")
        lines = "4:cpu:/job/step\n5:cpuacct:/job/step\n"
    groups = system(
        tmp_path,
        "11:memory:/elsewhere\n" + lines + "0::/job\n",
        mounts + V2.format(top="/", point="/sys/fs/cgroup/unified"),
        {
            f"{base}/cpu.cfs_quota_us": "-1\n",
            f"{base}/cpu.cfs_period_us": "100000\n",
            f"{base}/job/cpu.cfs_quota_us": "150000\n",
            f"{base}/job/cpu.cfs_period_us": "50000\n",
            f"{counting}/job/cpuacct.usage": "2500000000\n",
            f"{base}/job/step/cpu.cfs_quota_us": "-1\n",
            f"{base}/job/step/cpu.cfs_period_us": "100000\n",
        },
    )
    limits, used = found(groups)
    assert limits == [math.inf, 3.0, math.inf]
    assert used[1] == 2.5


def test_time_of_another_group_does_not_count(tmp_path: Path) -> None:
    mounts = "".join(
        V1.format(n=32 + i, top="/", point=f"/sys/fs/cgroup/{name}", names=name)
        for i, name in enumerate(("cpu", "cpuacct"))
    )
    files = {"cpu/job/cpu.cfs_quota_us": "100000", "cpu/job/cpu.cfs_period_us": "50000", "cpuacct/cpuacct.usage": "9"}
    groups = system(
        tmp_path,
        "4:cpu:/job\n5:cpuacct:/\n",
        mounts,
        {f"sys/fs/cgroup/{name}": text for name, text in files.items()},
    )
    limits, used = found(groups)
    assert limits == [2.0]
    assert math.isnan(used[0])


@pytest.mark.parametrize("text", ["max 100000", "what", "", "100000", "0 0", "-1 100000"])
def test_what_is_no_quota_limits_nothing(tmp_path: Path, text: str) -> None:
    file = tmp_path / "cpu.max"
    file.write_text(text)
    assert quota.Group((file,), None, 1e6).processors() == math.inf


def test_a_system_without_control_groups_has_no_quota(tmp_path: Path) -> None:
    assert quota.groups(tmp_path) == ()


@pytest.mark.skipif(not Path("/proc/self/cgroup").exists(), reason="no control groups here")
def test_groups_of_this_process_can_be_read() -> None:
    for group in quota.groups():
        assert group.processors() > 0
        used = group.used()
        assert math.isnan(used) or used > 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_process_looks_again() -> None:
    quota.groups()
    child = os.fork()
    if not child:
        os._exit(quota.groups.cache_info().currsize)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
