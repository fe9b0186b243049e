"""The checks of steps, run by a process under a sanitizer: python sanitized_steps.py SANITIZER [FILE OLD NEW].

With FILE, OLD and NEW the kernel's text is changed before it is compiled, which makes a mutant.
"""

import sys

from emulated import EmulatedArray, new_device
from kept_checks import check_kept
from mutation import edit
from step_checks import (
    DTYPES,
    check_counting,
    check_misaligned,
    check_mixed,
    check_one,
    check_skipping,
    check_stages,
)


def run_under_address(array: type[EmulatedArray]) -> None:
    check_one(array)
    check_skipping(array)
    check_counting(array)
    check_stages(array)
    for dtype in DTYPES:
        check_misaligned(array, dtype)
    check_kept(array)
    for geometry in ((1, 64, 0), (3, 256, 1), (50, 32, 7)):
        check_mixed(array, geometry)


def run_under_thread(array: type[EmulatedArray]) -> None:  # some hundred times slower: few launches
    check_mixed(array, (6, 64, 0))
    check_stages(array)
    check_mixed(array, (64, 32, 0), chunk=1024)  # a chunk a block: each one's last atomic is its first


if __name__ == "__main__":
    sanitize, *change = sys.argv[1:]
    array = new_device(sanitize=sanitize, **({"edit": edit(*change)} if change else {}))
    {"address": run_under_address, "thread": run_under_thread}[sanitize](array)
